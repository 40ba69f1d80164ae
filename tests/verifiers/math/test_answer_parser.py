from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.lexer import NotUnderstoodError


def head(answer: str) -> str:
    return readings(answer)[0].head


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("x+1", "add"),
        ("2x", "mul"),
        (r"2\frac{1}{2}", "number"),
        (r"2\frac{x}{2}", "mul"),
        ("2(3)", "mul"),
        ("f(x, y)", "apply"),
        ("x(x+1)", "mul"),
        ("1, 2, 3", "list"),
        ("1; 2", "list"),
        (r"2 \text{ and } 3", "list"),
        (r"\{1, 2\}", "set"),
        ("(1, 2)", "tuple"),
        (r"\langle 1, 2 \rangle", "tuple"),
        ("[0, 1)", "tuple"),
        ("(7)", "number"),
        (r"(0,1) \cup [2, 3]", "union"),
        (r"\mathbb{R} \setminus \{0\}", "minus"),
        (r"x \in (0,1)", "member"),
        (r"\{x \mid x > 2\}", "builder"),
        (r"\{2k : k \in \mathbb{Z}\}", "family"),
        ("0 < x < 1", "relation"),
        ("x^2 = 5", "relation"),
        ("x = 5", "named"),
        ("5 = x", "named"),
        (r"P(X = 2) = \frac14", "named"),
        (r"\angle ABC = 50^\circ", "named"),
        (r"\text{Area} = 5", "named"),
        ("f^{-1}(x) = 2x", "named"),
        ("x = x + 1", "relation"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "matrix"),
        (r"\left[\begin{array}{c} 1 \\ 2 \end{array}\right]", "matrix"),
        ("3:2", "ratio"),
        ("11:30", "time"),
        ("52_8", "based"),
        (r"5\text{ km/h}", "quantity"),
        (r"5\text{ apples}", "quantity"),
        (r"5\text{ or more}", "list"),
        (r"2\text{ times }x", "text"),
        (r"\text{two lines}", "text"),
        (r"\text{(E)}", "choice"),
        ("E: a wheel turns", "choice"),
        (r"7 \pmod{10}", "mod"),
        (r"1 \pm \sqrt{2}", "add"),
        (r"50\%", "percent"),
        (r"x > 2 \text{ for all } y", "relation"),
    ],
)
def test_kinds(answer: str, kind: str) -> None:
    assert head(answer) == kind


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "1 2",
        "(1",
        "(1]]",
        "+",
        r"\frac{1}{}",
        r"\unknown{3}",
        "x^",
        ":::",
        "(" * 500,
        "x=\ud800",
    ],
)
def test_what_is_not_understood(answer: str) -> None:
    with pytest.raises(NotUnderstoodError):
        readings(answer)


def test_ambiguous_notation_has_two_readings() -> None:
    assert len(readings("1/2x")) == 2
    assert len(readings("1/(2x)")) == 1
    assert {tree.head for tree in readings("100,200")} == {"number", "list"}


def test_letters_are_units_only_where_they_may_be() -> None:
    assert readings("5m", "all")[0].head == "quantity"
    assert readings("5m", "marked")[0].head == "mul"
    assert readings(r"5\text{ m}", "marked")[0].head == "quantity"
    assert readings(r"5\text{m}", "none")[0].head == "mul"
    assert readings(r"5\text{x}", "all")[0].head == "mul"


@given(st.text(alphabet="()[]{}\\,;<>=x1 &|:^_/+-!%$", max_size=80))
def test_no_text_is_too_strange(text: str) -> None:
    with contextlib.suppress(NotUnderstoodError):
        assert readings(text)
