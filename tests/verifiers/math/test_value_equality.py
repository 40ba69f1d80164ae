from __future__ import annotations

import pytest

from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.syntax_tree import Node
from fttt.verifiers.math.value_equality import (
    constant_ratio,
    is_set_like,
    real_set,
    same_quantity,
    same_time,
    same_value,
)


def tree(answer: str) -> Node:
    return readings(answer, "all")[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\sqrt{1/n}", r"n^{-1/2}"),
        (r"\sqrt{x^2}", "|x|"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"\pi", "3.14159265"),
        (r"e^{i\pi}", "-1"),
        ("f(x)+f(y)", "f(y)+f(x)"),
    ],
)
def test_equal_expressions(first: str, second: str) -> None:
    assert same_value(tree(first), tree(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sqrt{2x^2}", r"x\sqrt2"),
        (r"\pi", "3.14"),
        ("x", "y"),
        ("f(x)", "g(x)"),
        (r"\sqrt2 + 10^{-30}", r"\sqrt2"),
        (r"\ln x^2", r"2 \ln x + 1"),
    ],
)
def test_different_expressions(first: str, second: str) -> None:
    assert not same_value(tree(first), tree(second))


def test_constant_ratio() -> None:
    assert constant_ratio(tree("2x-2y"), tree("y-x")) == -2
    assert constant_ratio(tree("x^2"), tree("x")) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"(0, 2] \cup (2, 3)", "(0, 3)"),
        (r"[0, 2] \cap (1, 3)", "(1, 2]"),
        (r"\mathbb{R} \setminus \{1\}", r"(-\infty, 1) \cup (1, \infty)"),
        ("|x - 1| < 2", "(-1, 3)"),
        (r"|x| \ge 1", r"(-\infty, -1] \cup [1, \infty)"),
        (r"1 < 3 - 2x \le 5", "[-1, 1)"),
        (r"\{x \mid x > 2\}", r"(2, \infty)"),
        (r"x \ne 0", r"(-\infty, 0) \cup (0, \infty)"),
        (r"x < 1 \text{ or } x > 0", r"\mathbb{R}"),
    ],
)
def test_sets_of_real_numbers(first: str, second: str) -> None:
    one, other = real_set(tree(first)), real_set(tree(second))
    assert one is not None
    assert other is not None
    assert one[0].same(other[0])
    assert not one[0].same(one[0].complement())
    assert one[0].same(one[0].complement().complement())


@pytest.mark.parametrize("answer", ["(1, 2, 3)", "(2, 1)", "x^2 > 1", "(a, b)", "5"])
def test_what_is_no_set_of_real_numbers(answer: str) -> None:
    assert real_set(tree(answer)) is None


def test_what_can_only_be_a_set() -> None:
    assert is_set_like(tree("[0, 1)"))
    assert is_set_like(tree("x > 1"))
    assert not is_set_like(tree("(0, 1)"))  # a point, perhaps
    assert not is_set_like(tree("x = 1"))


def test_quantities() -> None:
    metre = tree(r"1\text{ m}")
    assert same_quantity(metre, tree(r"100\text{ cm}"))
    assert same_quantity(metre, tree("1"))
    assert not same_quantity(metre, tree(r"100\text{ m}"))
    assert not same_quantity(metre, tree(r"1\text{ s}"))
    assert same_quantity(tree(r"50\%"), tree("0.5"))
    assert same_quantity(tree(r"180^\circ"), tree(r"\pi\text{ radians}"))


def test_times_of_day() -> None:
    assert same_time(((10, 30), "pm"), ((22, 30), ""))
    assert same_time(((10, 30), ""), ((10, 30, 0), "am"))
    assert not same_time(((10, 30), "am"), ((10, 30), "pm"))
