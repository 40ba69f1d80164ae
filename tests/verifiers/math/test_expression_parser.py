from __future__ import annotations

import pytest

from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.evaluation import evaluate
from fttt.verifiers.math.expression_parser import ExpressionParser
from fttt.verifiers.math.lexer import NotUnderstoodError, scan
from fttt.verifiers.math.syntax_tree import Node


def parsed(text: str, *, tight: bool = False) -> Node:
    tokens = scan(text)
    return ExpressionParser(tokens, tight=tight).expression(0, len(tokens))


def test_precedence() -> None:
    x, two, three = Node("var", data="x"), *(readings(n)[0] for n in "23")
    assert readings("2+3x")[0] == Node("add", (two, Node("mul", (three, x))))
    assert readings("-x^2")[0] == Node("neg", (Node("pow", (x, two)),))
    assert readings(r"\sin 2x + 3")[0].head == "add"
    assert readings(r"\sin x \cos x")[0].head == "mul"
    assert readings(r"\sin^{-1} x")[0] == Node("call", (x,), "arcsin")
    assert readings(r"|x||x|")[0].head == "mul"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4-1", 13),
        (r"-2^2", -4),
        (r"2\frac{1}{2}", 2.5),
        ("2 1/2", 2.5),
        (r"\lfloor 7/2 \rfloor", 3),
        (r"\left|3-5\right|!", 2),
        (r"\sqrt[3]{-8}", -2),
        (r"5 \choose 2", 10),
        (r"\log_2 8", 3),
        (r"\sum_{k=1}^{4} k^2", 30),
        (r"\prod_{k=1}^{4} k", 24),
        (r"\begin{vmatrix}1&2\\\\3&4\end{vmatrix}", -2),
        ("50%", 0.5),
    ],
)
def test_values(text: str, value: float) -> None:
    assert evaluate(parsed(text)) == pytest.approx(value)


def test_a_slash_before_a_product_is_read_in_the_way_that_is_asked_for() -> None:
    one, two, x = (parsed(text) for text in ("1", "2", "x"))
    assert parsed("1/2x") == Node("mul", (Node("div", (one, two)), x))
    assert parsed("1/2x", tight=True) == Node("div", (one, Node("mul", (two, x))))


@pytest.mark.parametrize(
    ("text", "variable"),
    [("x_{12}'", "x_12'"), (r"\bar{x}", "bar x"), (r"\vec{v}", "v"), (r"\frac{dy}{dx}", "dy/dx")],
)
def test_names_of_variables(text: str, variable: str) -> None:
    assert parsed(text) == Node("var", data=variable)


@pytest.mark.parametrize(
    "text", ["2 +", "|x", r"\int x dx", r"\sum k", "x!!", r"\sin_2 x", "(1]+2"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(NotUnderstoodError):
        parsed(text)


def test_letters_are_functions_where_brackets_say_so() -> None:
    assert readings("f(x+1)")[0].head == "apply"
    assert parsed("x(x+1)").head == "mul"
    assert parsed("f^{-1}(x)") == Node("apply", (Node("var", data="x"),), "f^-1")
