"""Whether two answers are the same mathematics: what runs in the math verifier's workers.

Reading LaTeX is the work of ``latex2sympy2_extended``, the parser of ``math-verify``; equations,
inequalities and sets that our own rules leave open are compared by ``math-verify``. Expressions
are compared by their values: exactly for rational numbers, to 30 digits for other numbers, and at
several random points where there are variables, so that nothing has to be simplified (which may
take for ever) and a near miss is no hit.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from typing import Any

import math_verify  # type: ignore[import-untyped]
import sympy  # type: ignore[import-untyped]
from sympy.core.relational import Relational  # type: ignore[import-untyped]
from sympy.logic.boolalg import Boolean  # type: ignore[import-untyped]

from fttt.verifiers.latex import compact, rational, spoken, unit_of, without_units
from fttt.verifiers.numeral import Number
from fttt.verifiers.reading import read
from fttt.verifiers.shapes import Shape, shape_of

__all__ = ["equivalent"]

# The time limit of math-verify needs signals of its own; ours is the worker's. It warns of that.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_DIGITS = 30
_POINTS = 4
_CLOSE = sympy.Float("1e-6")
"""Relative difference that a decimal may have from an irrational number."""

_LHS = re.compile(r"[A-Za-z]\w{0,2}'?(?:\([A-Za-z](?:,\s*[A-Za-z])*\))?|\\[a-z]+|[A-Z]{1,3}")
_BASE = re.compile(r"(-?[0-9A-Z.]+)_\{?(\d+)\}?")
_TIME = re.compile(r"\d{1,2}(?::\d{2}){1,2}")
_NEVER_NUMBERS = (sympy.zoo, sympy.nan)


def equivalent(request: tuple[str, str]) -> bool:
    """The worker's job: whether the tidy answers ``[gold, answer]`` are the same.

    Exceptions (of the parser, of a recursion too deep) are the caller's to report.
    """
    gold, answer = request
    known, given = unit_of(gold), unit_of(answer)
    if known is not None and given is not None and known != given:
        return False
    return _same(shape_of(without_units(gold)), shape_of(without_units(answer)))


def _same(gold: Shape, answer: Shape) -> bool:
    if gold.kind == answer.kind == "one":
        return _same_one(gold.text, answer.text)
    if len(gold.parts) != len(answer.parts):
        return False
    kinds = {gold.kind, answer.kind}
    if kinds == {"list"} or kinds == {"union"}:
        return _same_in_any_order(gold.parts, answer.parts)
    if kinds == {"tuple", "list"}:  # "1, 2" for "(1, 2)" and the other way round
        brackets = gold.text or answer.text
        return brackets == "()" and _all_same(gold.parts, answer.parts)
    if gold.kind != answer.kind or gold.text != answer.text:
        return False
    return _all_same(gold.parts, answer.parts)


def _all_same(gold: tuple[Shape, ...], answer: tuple[Shape, ...]) -> bool:
    return all(_same(g, a) for g, a in zip(gold, answer, strict=True))


def _same_in_any_order(gold: tuple[Shape, ...], answer: tuple[Shape, ...]) -> bool:
    left = list(answer)
    for part in gold:
        match = next((other for other in left if _same(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_one(gold: str, answer: str) -> bool:
    """Two expressions, each perhaps the side of an equation that names it."""
    gold, answer = without_units(gold), without_units(answer)
    if compact(gold) == compact(answer):
        return True
    if "=" not in gold + answer and r"\approx" not in gold + answer:
        return _same_value(gold, answer)
    gold_sides, answer_sides = _sides(gold), _sides(answer)
    named = _LHS.fullmatch(gold_sides[0]) is not None
    if len(gold_sides) == 1:
        return any(_same_value(gold, side) for side in answer_sides[-1:])
    if len(answer_sides) == 1:
        wanted = gold_sides[1:] if named else gold_sides if _are_numbers(gold_sides) else []
        return any(_same_value(side, answer) for side in wanted)
    if named and compact(gold_sides[0]) == compact(answer_sides[0]):
        return _same_value(gold_sides[-1], answer_sides[-1])
    if _are_numbers(gold_sides) and _are_numbers(answer_sides):
        return all(any(_same_value(known, side) for known in gold_sides) for side in answer_sides)
    return _same_relation(read(gold), read(answer))


def _sides(text: str) -> list[str]:
    parts = re.split(r"(?<![<>!\\])=|\\approx(?![A-Za-z])", text)
    return [part.strip() for part in parts if part.strip()] or [text]


def _are_numbers(sides: list[str]) -> bool:
    return all(rational(side) is not None for side in sides)


def _same_value(gold: str, answer: str) -> bool:
    if compact(gold) == compact(answer):
        return True
    if _TIME.fullmatch(compact(gold)) and _TIME.fullmatch(compact(answer)):
        return compact(gold).lstrip("0") == compact(answer).lstrip("0")
    words, other = spoken(gold), spoken(answer)
    if words is not None or other is not None:
        return _bare_words(gold, words) == _bare_words(answer, other)
    first, second = rational(gold), rational(answer)
    if first is not None and second is not None:
        return _same_rational(first, second)
    bases = _same_in_base(gold, answer)
    if bases is not None:
        return bases
    return _same_expression(read(gold), read(answer))


def _bare_words(text: str, words: str | None) -> str:
    if words is not None:
        return words
    letters = re.sub(r"[\s{}()]+", "", re.sub(r"\\text\b", "", text))
    return letters if len(letters) == 1 else letters.casefold()


def _same_rational(gold: tuple[Any, bool], answer: tuple[Any, bool]) -> bool:
    return Number(*gold).matches(Number(*answer))


def _same_in_base(gold: str, answer: str) -> bool | None:
    """Numerals with a base; the base may be left out of one. ``None``: there is none."""
    numerals = [
        _BASE.fullmatch(compact(re.sub(r"\\text\{([^{}]*)\}", r"\1", t))) for t in (gold, answer)
    ]
    if numerals == [None, None]:
        return None
    digits = [
        match[1] if match else compact(t) for match, t in zip(numerals, (gold, answer), strict=True)
    ]
    bases = {match[2] for match in numerals if match}
    return len(bases) == 1 and digits[0] == digits[1]


def _same_expression(gold: Any, answer: Any) -> bool:
    if isinstance(gold, Relational | Boolean):
        return _same_relation(gold, answer)
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return bool(math_verify.verify(gold, answer, timeout_seconds=None))
    return _agree_everywhere(gold, answer)


def _agree_everywhere(gold: Any, answer: Any) -> bool:
    """Whether two expressions have the same value at every point that is tried."""
    if gold.has(*_NEVER_NUMBERS) or answer.has(*_NEVER_NUMBERS):
        return False
    if gold == answer:
        return True
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not symbols:
        difference = (gold - answer).doit()
        if difference.is_Rational:
            return bool(difference == 0)
    rounded = bool(gold.atoms(sympy.Float) | answer.atoms(sympy.Float))
    tried = 0
    for values in _points(symbols):
        first, second = _value(gold, values), _value(answer, values)
        if first is None and second is None:
            continue  # outside the domain of both
        if first is None or second is None or not _near(first, second, rounded and not symbols):
            return False
        tried += 1
        if tried == _POINTS or not symbols:
            return True
    return False


def _points(symbols: list[Any]) -> Iterator[dict[Any, Any]]:
    """Random rational points, the same ones each time, of both signs and sizes around 1."""
    draw = random.Random(0)
    for _ in range(4 * _POINTS if symbols else 1):
        yield {
            symbol: sympy.Rational(
                draw.choice((-1, 1)) * draw.randint(1, 997), draw.randint(101, 499)
            )
            for symbol in symbols
        }


def _value(expression: Any, values: dict[Any, Any]) -> Any:
    """The number that an expression is at a point; ``None`` where it is none."""
    value = sympy.N(expression.subs(values), _DIGITS)
    if value in _NEVER_NUMBERS or value.free_symbols or not value.is_number:
        return None
    if value.is_infinite:
        return value
    real, imaginary = value.as_real_imag()
    return value if real.is_Float or real.is_Integer or imaginary.is_Float else None


def _near(first: Any, second: Any, rounded: bool) -> bool:
    if first == second:
        return True
    if first.is_infinite or second.is_infinite:
        return False
    size = max(abs(first), abs(second))
    close = _CLOSE if rounded else sympy.Float(10) ** (10 - _DIGITS)
    return bool(abs(first - second) <= close * size)


def _same_relation(gold: Any, answer: Any) -> bool:
    """Equations and inequalities: the same up to a constant factor, else as math-verify says."""
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        factor = _factor(gold.lhs - gold.rhs, answer.lhs - answer.rhs)
        if factor is not None:
            turned = answer.reversedsign if factor < 0 else answer
            return bool(factor != 0 and gold.rel_op == turned.rel_op)
    return bool(math_verify.verify(gold, answer, timeout_seconds=None))


def _factor(first: Any, second: Any) -> Any:
    """The constant by which ``second`` times it is ``first``; ``None`` where there is none."""
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    factors = []
    for values in _points(symbols):
        above, below = _value(first, values), _value(second, values)
        if above is None or below is None or not below or not (above / below).is_real:
            continue
        factors.append(above / below)
        if len(factors) == _POINTS:
            break
    if not factors or not all(_near(factors[0], factor, False) for factor in factors):
        return None
    return factors[0]
