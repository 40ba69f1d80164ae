"""Pairs of answers by kind, in ``answers.toml``: a wrong one that passes is the worst fault."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.verifiers.math import judge_quickly
from fttt.verifiers.math.comparison import GoldError, equivalent, judged
from fttt.verifiers.math.evaluation import UndecidedError
from fttt.verifiers.math.lexer import NotUnderstoodError

ROUGHLY = ("approx", "about", "nearly")
"""An exact answer is right where the gold one is rounded, though not the other way round."""
ANSWERS = tomllib.loads(Path(__file__).with_name("answers.toml").read_text(encoding="utf-8"))


def same(gold: str, answer: str) -> bool:
    """The verdict; what cannot be read or computed is no answer."""
    quick = judge_quickly(gold, answer)
    try:
        return equivalent((gold, answer)) if quick is None else quick
    except (GoldError, NotUnderstoodError, UndecidedError):
        return False


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_same_answer_in_other_words(kind: str) -> None:
    refused = [pair for pair in ANSWERS[kind]["same"] if not same(*pair)]
    assert not refused


@pytest.mark.parametrize("kind", ANSWERS)
def test_another_answer(kind: str) -> None:
    passed = [pair for pair in ANSWERS[kind]["different"] if same(*pair)]
    assert not passed


@pytest.mark.parametrize("kind", ANSWERS)
def test_another_answer_is_wrong_the_other_way_round_too(kind: str) -> None:
    passed = [
        pair
        for pair in ANSWERS[kind]["different"]
        if same(*reversed(pair)) and not any(word in pair[1] for word in ROUGHLY)
    ]
    assert not passed


def test_every_answer_is_itself() -> None:
    pairs = [pair for kind in ANSWERS.values() for part in kind.values() for pair in part]
    answers = {text for pair in pairs for text in pair}
    assert not [text for text in answers if not same(text, text)]


numbers = st.integers(-30, 30)
signs = st.sampled_from("+-")


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """LaTeX of rational expressions in ``x`` and ``y``."""
    if depth == 0:
        return draw(st.sampled_from(["x", "y", "2", "7", r"\frac{1}{3}", "0.5", r"\pi"]))
    left, right = (draw(expressions(depth - 1)) for _ in range(2))
    shape = draw(st.sampled_from(["{}+{}", "{}-({})", r"({})\cdot ({})", "({})({})"]))
    return shape.format(left, right)


@given(expressions(), expressions())
@settings(max_examples=25, deadline=None)
def test_equality_does_not_depend_on_how_an_expression_is_written(first: str, second: str) -> None:
    total = f"({first})+({second})"
    assert same(total, f"({second})+({first})")
    assert same(total, rf"\frac{{2({first})+2({second})}}{{2}}")
    assert not same(total, f"{total}+1")
    assert same(first, second) == same(second, first)


@given(st.lists(numbers, min_size=2, max_size=5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_lists_in_any_order_and_tuples_in_their_own(
    values: list[int], randoms: random.Random
) -> None:
    shuffled = randoms.sample(values, len(values))
    gold, other = (", ".join(map(str, part)) for part in (values, shuffled))
    assert same(gold, other)
    assert same(gold, rf"\{{{other}\}}")
    assert same(f"({gold})", f"({other})") == (values == shuffled)
    assert not same(gold, f"{other}, 51")


@st.composite
def inequalities(draw: st.DrawFn) -> tuple[str, str, str]:
    """A bound as an interval, as an inequality, and turned round with a factor."""
    bound = draw(st.fractions(-20, 20, max_denominator=9))
    factor = draw(st.integers(-5, 5).filter(bool))
    sign, turned = draw(
        st.sampled_from([("<", ">"), (">", "<"), (r"\le", r"\ge"), (r"\ge", r"\le")])
    )
    text = rf"\frac{{{bound.numerator}}}{{{bound.denominator}}}"
    closed = sign.startswith("\\")
    interval = (
        rf"(-\infty, {text}{']' if closed else ')'}"
        if sign in ("<", r"\le")
        else rf"{'[' if closed else '('}{text}, \infty)"
    )
    product = bound * factor
    scaled = (
        rf"{factor}x {sign if factor > 0 else turned} "
        rf"\frac{{{product.numerator}}}{{{product.denominator}}}"
    )
    return interval, f"x {sign} {text}", scaled


@given(inequalities())
@settings(max_examples=60, deadline=None)
def test_a_linear_inequality_is_its_interval(forms: tuple[str, str, str]) -> None:
    interval, plain, scaled = forms
    assert same(interval, plain)
    assert same(interval, scaled)
    flipped = plain.replace("<", "!").replace(">", "<").replace("!", ">")
    other = flipped if flipped != plain else plain.replace(r"\le", "<").replace(r"\ge", ">")
    assert not same(interval, other)


def kilometres(metres: Fraction) -> Iterator[str]:
    yield rf"{metres}\text{{ m}}"
    yield rf"{metres * 100}\text{{ cm}}"
    yield rf"{metres / 1000}\text{{ km}}"


@given(st.fractions(1, 99, max_denominator=8))
@settings(max_examples=30, deadline=None)
def test_a_length_in_any_unit(metres: Fraction) -> None:
    gold, *others = kilometres(metres)
    assert all(same(gold, other) for other in others)
    assert not same(gold, rf"{metres}\text{{ cm}}")
    assert not same(gold, rf"{metres}\text{{ m}}^2")
    assert same(gold, str(metres))


def test_of_an_ambiguous_slash_both_readings_count() -> None:
    assert same(r"\frac{1}{2x}", "1/2x")
    assert same(r"\frac{x}{2}", "1/2x")
    assert not same(r"\frac{2}{x}", "1/2x")


@pytest.mark.parametrize("answer", [r"\sum_{i=1}^{10^{9}} i", r"\sin(10^{10^{10}})", "(10^{10})!"])
def test_what_is_too_large_is_not_decided(answer: str) -> None:
    with pytest.raises(UndecidedError):
        equivalent(("1", answer))
    assert equivalent((answer, answer))
    assert judged(("1", answer))[::2] == (False, True)
    assert judged((answer, "1"))[::2] == (False, False)


@pytest.mark.parametrize(
    ("gold", "answer", "why"),
    [
        ("13535", r"\sqrt{35} \approx 8.162", "an approximation that is none"),
        ("p - q", r"S = q^2 = 2q", "a chain of values that are not equal"),
        (r"\sqrt{51}", r"\frac{\text{exact}}{0.7}", "a text in an expression"),
        ("7", "62125: This", "an expression that is missing"),
        ("7", r"\frac{7", "a brace that is not closed"),
        ("7", "1" + "/2" * 900, "an expression that is too deep"),
    ],
)
def test_whose_fault_it_is_that_answers_cannot_be_compared(
    gold: str, answer: str, why: str
) -> None:
    """An answer without a meaning is wrong; against a gold answer without one nothing is known."""
    assert judged((gold, answer)) == (False, why, True)
    assert judged((answer, gold)) == (False, why, False)


def test_one_reading_of_an_ambiguous_answer_is_enough() -> None:
    assert same("11033", r"\frac{22,066}{2}")
    assert same(r"10\sqrt{10}", r"\sqrt{1,000}")
    assert not same("3", r"\frac{1,2}{3}")
    assert not same("10", r"\frac{22,066.67}{P} - 1")


def test_a_limit_without_variables_is_computed_once() -> None:
    """It was computed at every point of the other answer, until the time or the steps ran out."""
    for limit in (r"\sum_{l=2}^\infty \frac{1}{l}", r"\lim_{x \to 0} \frac{1}{x}"):
        assert judged(("p - q", limit)) == (False, "", True)
    assert same(r"p \cdot \frac{\pi^2}{6}", r"p \sum_{k=1}^\infty \frac{1}{k^2}")
    assert not same(r"\int_0^1 x dx", r"\int_0^2 x dx")
    assert not same(r"x + \int_0^x x dx", r"x + \int_0^1 x dx")
