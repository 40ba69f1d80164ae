from __future__ import annotations

import pytest

from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.lexer import NotUnderstoodError, scan
from fttt.verifiers.math.syntax_tree import (
    Name,
    Node,
    as_interval,
    assignments,
    both_signs,
    combine,
    determinant,
    match_brackets,
    name_of,
    names_of,
    number,
    outside,
    renamed,
)


def tree(answer: str) -> Node:
    return readings(answer)[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("x", Name("var", "x")),
        ("x_1", Name("var", "x_1")),
        ("f(x)", Name("function", "f", ("x",))),
        ("f^{-1}(x)", Name("function", "f^-1", ("x",))),
        ("(x, y)", Name("tuple", "x,y", ("x", "y"))),
        (r"\angle CBA", Name("figure", "angle ABC")),
        (r"\overline{BA}", Name("figure", "AB")),
        ("[ABC]", Name("figure", "area ABC")),
        (r"\text{the Area}", Name("words", "the area")),
        (r"\sin A", Name("figure", "sin A")),
        ("x^2", None),
        ("2x", None),
        ("x(x+1)", None),
        (r"\text{not } x", None),
        (r"\text{twice the length}", None),
    ],
)
def test_names(text: str, name: Name | None) -> None:
    tokens = scan(text)
    assert name_of(tokens, match_brackets(tokens), 0, len(tokens)) == name


def test_brackets() -> None:
    tokens = scan("(1, [2]) + {3}")
    partner = match_brackets(tokens)
    assert {tokens[low].text + tokens[high].text for low, high in partner.items()} == {
        "()",
        "[]",
        "{}",
    }
    assert [tokens[n].text for n in outside(partner, 0, len(tokens))] == ["(", "+", "{"]
    assert match_brackets(scan("[0, 1)")) == {0: 4}
    for wrong in ("(1", "1)", "(1}", r"\{1)"):
        with pytest.raises(NotUnderstoodError):
            match_brackets(scan(wrong, commas="never"))


def test_free_variables() -> None:
    assert names_of(tree(r"\sum_{k=1}^{n} kx")) == {"n", "x"}
    assert renamed(tree("x+y"), {"x": "y", "y": "x"}) == tree("y+x")


def test_both_signs() -> None:
    assert both_signs(tree("1")) == (tree("1"),)
    plus, minus = both_signs(tree(r"1 \pm 2 \mp 3"))
    assert plus == Node("add", (number(1), number(2), Node("neg", (number(3),))))
    assert minus == Node("add", (number(1), Node("neg", (number(2),)), number(3)))


def test_matrices() -> None:
    matrix = tree(r"\begin{pmatrix}1&2\\\\3&4\end{pmatrix}")
    doubled = combine("mul", [number(2), matrix])
    assert doubled.args[0] == Node("mul", (number(2), number(1)))
    assert determinant(matrix).head == "add"
    with pytest.raises(NotUnderstoodError):
        combine("mul", [matrix, matrix])
    with pytest.raises(NotUnderstoodError):
        determinant(tree(r"\begin{pmatrix}1&2\end{pmatrix}"))


def test_assignments() -> None:
    assert assignments(tree("x=1, y=2")) == {"x": number(1), "y": number(2)}
    assert assignments(tree("(x,y)=(1,2)")) == {"x": number(1), "y": number(2)}
    assert assignments(tree("x=1, x=2")) is None
    assert assignments(tree("x=1")) is None


def test_an_inequality_with_symbolic_bounds_is_an_interval() -> None:
    assert as_interval(tree("x > a"), tree(r"(a, \infty)")) == tree(r"(a, \infty)")
    assert as_interval(tree(r"a \le x < b"), tree("1")) == tree("[a, b)")
    assert as_interval(tree("x^2 > a^2"), tree("1")) == tree("x^2 > a^2")
