from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers.math.lexer import NotUnderstoodError, scan, spelled


def texts(answer: str) -> list[str]:
    return [str(t.value) if t.value is not None else t.text for t in scan(answer)]


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (r"$\dfrac12$.", ["frac", "{", "1", "}", "{", "2", "}", "."]),
        (r"\frac\pi 2", ["frac", "{", "pi", "}", "{", "2", "}"]),
        (r"\left( 3, \right]", ["(", "3", ",", "]"]),
        (r"\textcolor{red}{\mathbf{5}}", ["{", "{", "5", "}", "}"]),
        (r"\sqrt3x", ["sqrt", "{", "3", "}", "x"]),
        ("√3", ["sqrt", "3"]),
        ("x² ≤ 10⁻³", ["x", "^", "{", "2", "}", "<=", "10", "^", "{", "-", "3", "}"]),
        ("½", ["frac", "{", "1", "}", "{", "2", "}"]),
        (r"\text{5 apples}", ["5", "apples"]),
        (r"2 \text{ or } 3", ["2", "or", "3"]),
        (r"\text{if $x > 2$}", ["if", "x", ">", "2"]),
        (r"\operatorname{ln} x", ["ln", "x"]),
        ("sinx", ["sin", "x"]),
        ("abc", ["a", "b", "c"]),
        ("apples", ["apples"]),
        ("ax + by", ["a", "x", "+", "b", "y"]),
        (r"\left|x\right|", ["lvert", "x", "rvert"]),
        (r"\begin{array}{cc}1&2\end{array}", ["begin array", "1", "&", "2", "end array"]),
        ("€5", ["currency EUR", "5"]),
        ("$5", ["currency USD", "5"]),
        ("$5$", ["5"]),
        ("4 p.m.", ["4", "pm"]),
    ],
)
def test_tokens(answer: str, tokens: list[str]) -> None:
    assert texts(answer) == tokens


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1,234", "1234"),
        (r"10,\!080", "10080"),
        ("1{,}008{,}016", "1008016"),
        (r"12\;500", "12500"),
        ("12 500", "12500"),
        ("5e6", "5000000"),
        (".5", "1/2"),
        (r"0.1\overline{6}", "1/6"),
        (r"0.\dot{1}4285\dot{7}", "1/7"),
        ("0.(3)", "1/3"),
    ],
)
def test_a_number_is_one_token(answer: str, value: str) -> None:
    (token,) = scan(answer)
    assert token.value == Fraction(value)


def test_commas_between_digits() -> None:
    assert texts("(1,234)") == ["(", "1", ",", "234", ")"]
    assert texts("1, 234") == ["1", ",", "234"]
    assert [str(t.value) for t in scan("1,234", commas="never") if t.value is not None] == [
        "1",
        "234",
    ]
    assert len(scan("(1,234)", commas="everywhere")) == 3


@pytest.mark.parametrize("answer", ["{" * 1000, r"\frac{" * 300, "}", r"\text{", "9" * 2000, "\0"])
def test_what_has_no_tokens(answer: str) -> None:
    with pytest.raises(NotUnderstoodError):
        scan(answer)


def test_one_spelling() -> None:
    assert spelled(scan(r"\dfrac{1}{2}.")) == spelled(scan(r"$\frac12$"))
    assert spelled(scan(r"\text{Even}")) == spelled(scan("even"))
    assert spelled(scan("x")) != spelled(scan("X"))
    assert spelled(scan("1 2")) != spelled(scan("12"))


@given(st.text(alphabet="0123456789,.{}\\frac!$ ()ab^_|<>=+-/*%&;:~'\"é√²", max_size=60))
def test_no_text_is_too_strange(text: str) -> None:
    try:
        tokens = scan(text)
    except NotUnderstoodError:
        return
    assert all(token.text or token.value is not None for token in tokens)
