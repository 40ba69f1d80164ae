r"""Whether two expressions are equal: by their values, at random points where they have variables.

Nothing is simplified, since that may take for ever and prove nothing. Two expressions are equal
where they have the same values at random points at which both are defined over the real numbers.
A variable that must be positive for a root or a logarithm to be defined is positive (so
``\sqrt{1/n}`` is ``n^{-1/2}``), any other has both signs (so ``\sqrt{2x^2}`` is not ``x\sqrt2``);
one that must be whole for a sum or a power is whole.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Mapping
from fractions import Fraction

from fttt.verifiers.math.symbols import word_set
from fttt.verifiers.math.tree import Node, names_of, walk
from fttt.verifiers.math.values import (
    EQUAL,
    ROUGH,
    STEPS,
    Evaluation,
    UndefinedError,
    Value,
    close,
    combined,
    mp,
    near,
    real_number,
)

__all__ = ["constant_ratio", "same_value"]

_MORE_DIGITS = 160
_DECIMALS = Fraction(1, 10**6)
"""Relative difference that a decimal may have from the irrational number that it stands for."""
_POINTS = 10
_TRIES = 60
_WHOLE = word_set("n k m i j l N M p q r")
"""Variables that are whole numbers where that makes an expression defined."""


def same_value(first: Node, second: Node) -> bool:
    """Whether two expressions are equal.

    Raises:
        UndecidedError: one is too large or takes too long.
    """
    if first == second:
        return not any(node.head == "dots" for node in walk(first)) or first == second
    if any(node.head in ("dots", "pm", "mp") for one in (first, second) for node in walk(one)):
        return False
    names = sorted(names_of(first) | names_of(second))
    budget = [STEPS]
    if not names and not _has_unknowns(first, second):
        return _agree_at({}, first, second, real=False, seed=0, budget=budget) is True
    real = not _is_complex(first) and not _is_complex(second)
    agreed = 0
    for seed, point in enumerate(_points(first, second, names, real, budget)):
        agree = _agree_at(point, first, second, real=real, seed=seed, budget=budget)
        if agree is False:
            return False
        agreed += agree is True
        if agreed == _POINTS:
            return True
    return False


def _agree_at(
    point: Mapping[str, Fraction],
    first: Node,
    second: Node,
    *,
    real: bool,
    seed: int,
    budget: list[int],
) -> bool | None:
    """Whether both have the same value at a point; ``None`` where one has none there."""

    def both(digits: int) -> tuple[Value, Value, bool]:
        with mp.workdps(digits):
            evaluation = Evaluation(point, real=real, seed=seed, budget=budget)
            return evaluation.value(first), evaluation.value(second), evaluation.rough

    try:
        one, other, rough = both(mp.dps)
        if isinstance(one, Fraction) and isinstance(other, Fraction):
            return one == other
        if rough:
            return close(one, other, ROUGH) or bool(
                abs(real_number(one) - real_number(other)) < real_number(ROUGH**2)
            )
        if close(one, other, EQUAL):
            return True
        if not point and (_is_decimal(first) != _is_decimal(second)):
            return _is_rounded(one, other)
        difference = abs(real_number(one) - real_number(other))
        if not difference < 1e-15:
            return False
        one, other, _ = both(_MORE_DIGITS)  # nought, or a small number?
        with mp.workdps(_MORE_DIGITS):
            return bool(
                abs(real_number(one) - real_number(other)) <= difference * real_number(EQUAL)
            )
    except UndefinedError:
        return None


def _is_decimal(node: Node) -> bool:
    while node.head == "neg":
        node = node.args[0]
    return node.head == "decimal"


def _is_rounded(first: Value, second: Value) -> bool:
    """Whether a decimal is the irrational number beside it, rounded."""
    return close(first, second, _DECIMALS)


def _has_unknowns(*nodes: Node) -> bool:
    return any(part.head in ("apply", "index") for node in nodes for part in walk(node))


def _is_complex(node: Node) -> bool:
    return any(part.head == "const" and part.data == "i" for part in walk(node))


def _points(
    first: Node, second: Node, names: list[str], real: bool, budget: list[int]
) -> Iterator[dict[str, Fraction]]:
    """Random points: real ones, then whole ones for the variables that need it."""
    positive = _positive(first, second, names, budget) if real else frozenset()
    draw = random.Random(0)
    defined = 0
    for number in range(_TRIES):
        point = {name: _draw(draw, number, both_signs=name not in positive) for name in names}
        if number >= 20 and not defined:
            break
        defined += _defined(first, point, real, budget) and _defined(second, point, real, budget)
        yield point
    if defined >= _POINTS:
        return
    for whole in (frozenset(names) & _WHOLE, frozenset(names)):
        for number in range(_TRIES // 2):
            yield {
                name: Fraction(draw.randint(1, 9))
                if name in whole
                else _draw(draw, number, both_signs=name not in positive)
                for name in names
            }


def _draw(draw: random.Random, number: int, *, both_signs: bool) -> Fraction:
    value = Fraction(draw.randint(1, 997), draw.randint(101, 499))
    if number % 4 == 3:
        value *= 37
    return -value if both_signs and draw.random() < 0.5 else value


def _defined(node: Node, point: Mapping[str, Fraction], real: bool, budget: list[int]) -> bool:
    try:
        with mp.workdps(15):
            Evaluation(point, real=real, budget=budget).value(node)
    except UndefinedError:
        return False
    return True


def _positive(first: Node, second: Node, names: list[str], budget: list[int]) -> frozenset[str]:
    """The variables that must be positive for an expression to be real, the others being so."""
    if not any(part.head in ("root", "pow", "call") for n in (first, second) for part in walk(n)):
        return frozenset()
    draw = random.Random(1)
    points = [
        {name: _draw(draw, number, both_signs=False) for name in names} for number in range(4)
    ]
    found = set()
    for name in names:
        for node in (first, second):
            signs = {
                sign: [_defined(node, {**p, name: sign * p[name]}, True, budget) for p in points]
                for sign in (1, -1)
            }
            if any(signs[1]) and not any(signs[-1]):
                found.add(name)
    return frozenset(found)


def constant_ratio(first: Node, second: Node) -> Value | None:
    """The number that ``first / second`` is at every point; ``None`` where it is not constant.

    Raises:
        UndecidedError: one is too large or takes too long.
    """
    names = sorted(names_of(first) | names_of(second))
    real = not _is_complex(first) and not _is_complex(second)
    budget = [STEPS]
    ratios: list[Value] = []
    for seed, point in enumerate(_points(first, second, names, real, budget)):
        try:
            evaluation = Evaluation(point, real=real, seed=seed, budget=budget)
            above, below = evaluation.value(first), evaluation.value(second)
        except UndefinedError:
            continue
        if above == 0 or below == 0:
            if above != below:
                return None
            continue
        ratios.append(combined(operator.truediv, above, below))
        if not near(ratios[0], ratios[-1]):
            return None
        if len(ratios) == _POINTS:
            return ratios[0]
    return None
