from __future__ import annotations

from fractions import Fraction

import mpmath  # type: ignore[import-untyped]
import pytest

from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.evaluation import (
    STEPS,
    Evaluation,
    UndecidedError,
    UndefinedError,
    close,
    evaluate,
    is_about,
    near,
)


def value(answer: str) -> object:
    return evaluate(readings(answer)[0])


def test_rational_expressions_are_exact() -> None:
    assert value(r"\frac13+\frac16") == Fraction(1, 2)
    assert value(r"\sqrt{\frac49}") == Fraction(2, 3)
    assert value("(2/3)^{-3}") == Fraction(27, 8)
    assert value(r"\operatorname{lcm}(4, 6)") == 12
    assert value("0.1+0.2") == Fraction(3, 10)


def test_others_have_sixty_digits_whatever_the_precision_of_others() -> None:
    before = mpmath.mp.dps
    assert near(value(r"\sqrt2 \cdot \sqrt2"), Fraction(2))
    assert near(value(r"\arctan 1"), value(r"\frac{\pi}{4}"))
    assert near(value(r"\sin 30^\circ"), Fraction(1, 2))
    assert not near(value(r"\sqrt2"), Fraction(14142135623730950488, 10**19))
    assert mpmath.mp.dps == before


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (r"\lim_{x \to 0} \frac{\sin x}{x}", "1"),
        (r"\sum_{n=1}^{\infty} \frac{1}{2^n}", "1"),
        (r"\int_0^1 3x^2 dx", "1"),
    ],
)
def test_limits(answer: str, limit: str) -> None:
    assert close(value(answer), value(limit), Fraction(1, 10**9))


@pytest.mark.parametrize("answer", ["1/0", "0^{-1}", r"\log 0", "(-1)!", r"\lim_{x \to 0} \frac1x"])
def test_undefined(answer: str) -> None:
    with pytest.raises(UndefinedError):
        value(answer)


@pytest.mark.parametrize(
    "answer", ["9^{9^{9}}", "(10^9)!", r"\sum_{k=1}^{10^9} k", r"\sin(10^{10^{10}})"]
)
def test_undecided(answer: str) -> None:
    with pytest.raises(UndecidedError):
        value(answer)


def test_functions_without_a_definition_have_one_value_at_an_argument() -> None:
    def at(answer: str, seed: int) -> object:
        return Evaluation({}, real=True, seed=seed, budget=[STEPS]).value(readings(answer)[0])

    assert at("f(1)", 0) == at("f(1)", 0)
    assert at("f(1)", 0) == at("f(2-1)", 0)
    assert at("f(1)", 0) != at("f(2)", 0)
    assert at("f(1)", 0) != at("f(1)", 1)


def test_only_real_values_where_those_are_asked_for() -> None:
    assert near(value("i^2"), Fraction(-1))
    with pytest.raises(UndefinedError):
        Evaluation({}, real=True, budget=[STEPS]).value(readings(r"\sqrt{-1}")[0])


def test_an_approximation_is_right_to_its_last_digit() -> None:
    third = Fraction(1, 3)
    assert is_about(third, Fraction(33, 100), Fraction(1, 100))
    assert not is_about(third, Fraction(35, 100), Fraction(1, 100))
    assert not is_about(third, Fraction(3, 10), Fraction(1))
