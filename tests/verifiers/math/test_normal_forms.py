from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.verifiers.math.normal_forms import normal_form, strict_form


@pytest.mark.parametrize(
    "answers",
    [
        ["0.5", r"\frac{1}{2}", r"\dfrac12", "1/2", "$0.50$", r"50\%", "x = 0.5", r"x=\frac12"],
        ["5", "x = 5", "5 = x", r"5\text{ cm}", r"\text{The answer is } 5", r"\textbf{5}", "2+3=5"],
        [r"2\sqrt{2}", r"\sqrt{8}", r"\frac{4}{\sqrt2}", "2*sqrt(2)", r"x=\sqrt8"],
        [r"\sqrt2-1", r"\frac{1}{1+\sqrt{2}}", r"-1+\sqrt{2}"],
        [r"(x+1)^2", "x^2+2x+1", r"f(x) = 1+2x+x^2"],
        ["(3, \\infty)", "x > 3", "3 < x", "-x < -3", r"x \in (3,\infty)", r"\{x \mid x > 3\}"],
        ["[0, 1)", r"0 \le x < 1", r"1 > x \ge 0"],
        [r"\mathbb{R}\setminus\{0\}", r"x \ne 0", r"(-\infty,0)\cup(0,\infty)"],
        ["1, 2", "2, 1", r"\{1,2\}", r"x=1 \text{ or } x=2", r"2\text{ and }1"],
        ["(2, 3)", "x=2, y=3", "y=3, x=2", "(x,y)=(2,3)", r"\langle 2,3\rangle"],
        [r"1\pm\sqrt5", r"1+\sqrt5, 1-\sqrt5"],
        ["y=2x+3", "2x-y+3=0", "2x+3", "4x-2y=-6"],
        [r"\frac{1}{1+i}", r"\frac{1-i}{2}"],
        [r"\sqrt{a/b}", r"\frac{\sqrt{ab}}{b}"],
        ["3:2", "6:4"],
        [r"\text{(E)}", "E", r"\textbf{E}"],
        [r"\text{Even}", "even"],
        ["e^2", r"\mathrm{e}^{2}", r"\exp(2)"],
        [r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"],
        ["52_8", "52_{8}"],
        [r"\frac13", r"0.\overline{3}"],
    ],
)
def test_equal_answers_vote_together(answers: list[str]) -> None:
    assert len({normal_form(answer) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("5", "-5"),
        ("50", "0.5"),
        ("x", "X"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("x > 3", r"x \ge 3"),
        ("x > 3", "x < 3"),
        (r"\sqrt{2}", r"\sqrt{3}"),
        (r"\sqrt{x^2}", "x"),
        ("x^2", "x^3"),
        (r"\cos 36^\circ", r"\cos 36"),
        ("3:2", "2:3"),
        ("1,2", "1,3"),
        (r"\text{(A)}", r"\text{(B)}"),
        ("2^{87}", "2^{86}"),
        ("3+4i", "3-4i"),
    ],
)
def test_other_answers_vote_apart(first: str, second: str) -> None:
    assert normal_form(first) != normal_form(second)


def test_a_form_can_be_read() -> None:
    assert normal_form(r"\frac{1+\sqrt{12}}{2}") == "sqrt(3) + 0.5"
    assert normal_form(r"\frac{2}{3}\pi x^2") == "2/3*pi*x^2"
    assert normal_form("3, 1, 2") == "1, 2, 3"
    assert normal_form("-2x+y=4") == "2*x + 4"


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", "(10^{10})!", "(x+y+z)^{1000}", "(" * 900, "{"]
)
def test_what_is_too_long_has_a_form_too(answer: str) -> None:
    assert normal_form(answer)


fractions = st.fractions(-50, 50, max_denominator=30)


@given(fractions, fractions, st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_numbers_with_a_root_have_one_form(a: Fraction, b: Fraction, root: int) -> None:
    def tex(value: Fraction) -> str:
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    plain = rf"{tex(a)}+{tex(b)}\sqrt{{{root}}}"
    doubled = rf"\frac{{{tex(2 * b)}\sqrt{{{4 * root}}}+{tex(4 * a)}}}{{4}}"
    assert normal_form(plain) == normal_form(doubled)
    assert normal_form(plain) != normal_form(f"{plain}+1")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", r"\dfrac{1}{2}"),
        (r"\frac{1}{2}", r"\tfrac12"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", ".5"),
        (r"\frac1b", r"\frac{1}{b}"),
        (r"\frac1{20}", r"\frac{1}{20}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"10,\!080", "10,080"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        (r"\$5", "5"),
        ("x = 5", "5"),
        (r"5 \text{ cm}", "5"),
        ("3 + 4", "3+4"),
    ],
)
def test_the_same_string(gold: str, answer: str) -> None:
    assert strict_form(gold) == strict_form(answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{4}", "0.25"),
        ("1,2", "2,1"),
        ("2x+1", "1+2x"),
        ("abc = 5", "5"),
        ("5", "6"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
    ],
)
def test_what_the_rule_calls_different(gold: str, answer: str) -> None:
    assert strict_form(gold) != strict_form(answer)


def test_the_strict_form_is_stable() -> None:
    for answer in (r"\dfrac12", "x=5", r"3\sqrt2", "-1/3", ""):
        assert strict_form(strict_form(answer)) == strict_form(answer)
