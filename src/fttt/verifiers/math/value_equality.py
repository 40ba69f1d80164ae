r"""Equality of values: numbers and expressions, quantities with units, sets of real numbers.

Expressions are not simplified, since that may never end. Two expressions are equal if they
have the same values at random points at which both are defined over the real numbers. A variable
that must be positive for a root or a logarithm to be defined is positive (so ``\sqrt{1/n}`` is
``n^{-1/2}``), any other has both signs (so ``\sqrt{2x^2}`` is not ``x\sqrt2``); a variable that
must be a whole number for a sum or a power is one. Sets of real numbers are compared as unions of
intervals, whether written with brackets, as inequalities or as set builders.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key, reduce

from fttt.verifiers.math.evaluation import (
    EQUAL,
    ROUGH,
    STEPS,
    Evaluation,
    UndecidedError,
    UndefinedError,
    Value,
    close,
    combined,
    evaluate,
    is_less,
    mp,
    near,
    real_number,
)
from fttt.verifiers.math.lexer import word_set
from fttt.verifiers.math.syntax_tree import (
    EXPRESSIONS,
    OPPOSITE,
    Name,
    Node,
    constant,
    difference,
    elements,
    names_of,
    number,
    replaced,
    walk,
)
from fttt.verifiers.math.units import Suffix, same_things

__all__ = [
    "RealSet",
    "constant_ratio",
    "is_set_like",
    "real_set",
    "same_quantity",
    "same_time",
    "same_value",
    "values_at",
]

# ---- expressions

_MORE_DIGITS = 160
_DECIMALS = Fraction(1, 10**6)
"""Relative difference of a decimal and the irrational number that it approximates."""
_POINTS = 10
_TRIES = 60
_WHOLE = word_set("n k m i j l N M p q r")
"""Variables that are whole numbers if an expression is defined only there."""


def same_value(first: Node, second: Node) -> bool:
    """Whether two expressions are equal.

    Raises:
        UndecidedError: one is too large or takes too long.
    """
    if first == second:
        return True
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
    """Whether both have the same value at a point; ``None`` if one is undefined there."""

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
            return close(one, other, _DECIMALS)
        distance = abs(real_number(one) - real_number(other))
        if not distance < 1e-15:
            return False
        one, other, _ = both(_MORE_DIGITS)  # zero, or a small number?
        with mp.workdps(_MORE_DIGITS):
            return bool(abs(real_number(one) - real_number(other)) <= distance * real_number(EQUAL))
    except UndefinedError:
        return None


def _is_decimal(node: Node) -> bool:
    while node.head == "neg":
        node = node.args[0]
    return node.head == "decimal"


def _has_unknowns(*nodes: Node) -> bool:
    return any(part.head in ("apply", "index") for node in nodes for part in walk(node))


def _is_complex(node: Node) -> bool:
    return any(part.head == "const" and part.data == "i" for part in walk(node))


def _points(
    first: Node, second: Node, names: list[str], real: bool, budget: list[int]
) -> Iterator[dict[str, Fraction]]:
    """Random points: real ones, then whole numbers for the variables that need them."""
    positive = _positive(first, second, names, budget) if real else frozenset()
    draw = random.Random(0)
    defined = 0
    for index in range(_TRIES):
        point = {name: _draw(draw, index, both_signs=name not in positive) for name in names}
        if index >= 20 and not defined:
            break
        defined += _defined(first, point, real, budget) and _defined(second, point, real, budget)
        yield point
    if defined >= _POINTS:
        return
    for whole in (frozenset(names) & _WHOLE, frozenset(names)):
        for index in range(_TRIES // 2):
            yield {
                name: Fraction(draw.randint(1, 9))
                if name in whole
                else _draw(draw, index, both_signs=name not in positive)
                for name in names
            }


def _draw(draw: random.Random, index: int, *, both_signs: bool) -> Fraction:
    value = Fraction(draw.randint(1, 997), draw.randint(101, 499))
    if index % 4 == 3:
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
    """The variables that must be positive for an expression to be real."""
    if not any(part.head in ("root", "pow", "call") for n in (first, second) for part in walk(n)):
        return frozenset()
    draw = random.Random(1)
    points = [{name: _draw(draw, index, both_signs=False) for name in names} for index in range(4)]
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
    """The value of ``first / second`` if it is the same at every point, else ``None``.

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


# ---- quantities

_ORDERS = frozenset(["O", "o", "\\Theta", "\\Omega", "\\omega"])
"""Orders of growth, the same for an argument times a constant."""


def same_quantity(gold: Node, answer: Node) -> bool:
    """Whether two quantities, counts or plain numbers are the same."""
    first, known = _parts(gold)
    second, given = _parts(answer)
    if first is None or second is None:
        return False
    if known is None or given is None:
        return _same_number(first, second)
    if known.unit is None or given.unit is None:
        unit = known.unit or given.unit
        if unit is not None and unit.powers != (("unit", 1),):
            return False
        return (unit is not None or same_things(known.things, given.things)) and _same_number(
            first, second
        )
    return _same_measure(first, known, second, given)


def _same_measure(first: Node, known: Suffix, second: Node, given: Suffix) -> bool:
    assert known.unit is not None
    assert given.unit is not None
    powers = {known.unit.powers, given.unit.powers}
    angle, turn = (("degree", 1),), (("radian", 1),)
    if powers == {angle, turn}:
        return same_value(_radians(first, known), _radians(second, given))
    temperatures = {(("celsius", 1),), (("fahrenheit", 1),)}
    if len(powers) > 1 and not (angle in powers and powers & temperatures):
        return False
    rates = [{one for one in s.things if one.startswith("per ")} for s in (known, given)]
    if all(rates) and not rates[0] & rates[1]:
        return False
    scales = (1, 1) if len(powers) > 1 else (known.unit.scale, given.unit.scale)
    return same_value(
        Node("mul", (first, number(scales[0]))), Node("mul", (second, number(scales[1])))
    )


def _radians(node: Node, suffix: Suffix | None) -> Node:
    """An angle of degrees or radians in radians."""
    if suffix is None or suffix.unit is None or suffix.unit.powers != (("degree", 1),):
        return node
    return Node("div", (Node("mul", (node, constant("pi"))), number(180)))


def _parts(node: Node) -> tuple[Node | None, Suffix | None]:
    if node.head == "quantity":
        return node.args[0], node.data
    return (node, None) if node.head in EXPRESSIONS else (None, None)


def _same_number(gold: Node, answer: Node) -> bool:
    """Expressions by value; a percentage is the number before its sign, or a hundredth of it."""
    if "percent" in (gold.head, answer.head):
        if gold.head == answer.head:
            return same_value(gold.args[0], answer.args[0])
        sign, plain = (gold, answer) if gold.head == "percent" else (answer, gold)
        return same_value(sign.args[0], plain) or same_value(sign, plain)
    alike = gold.head == answer.head == "apply" and gold.data == answer.data
    if alike and gold.data in _ORDERS and len(gold.args) == len(answer.args) == 1:
        return constant_ratio(gold.args[0], answer.args[0]) is not None
    return same_value(gold, answer)


def same_time(gold: tuple[tuple[int, ...], str], answer: tuple[tuple[int, ...], str]) -> bool:
    """Compare times of day; a time without "a.m." or "p.m." may be either."""
    (first, half), (second, other) = (
        (numbers, half if half in ("am", "pm") else "") for numbers, half in (gold, answer)
    )
    size = max(len(first), len(second))
    one = (*first, *(0,) * (size - len(first)))
    two = (*second, *(0,) * (size - len(second)))
    if half and other:
        return half == other and one == two
    if not half and not other:
        return one == two
    if not half:
        one, two, half = two, one, other
    hours = one[0] % 12 + (12 if half == "pm" else 0)
    return two in (one, (hours, *one[1:]))


# ---- sets of real numbers

_ORDERINGS = frozenset({"<", ">", "<=", ">=", "!="})


@dataclass(frozen=True, slots=True)
class _Interval:
    low: Value
    with_low: bool
    high: Value
    with_high: bool


def _compare(first: Value, second: Value) -> int:
    if near(first, second):
        return 0
    return -1 if is_less(first, second) else 1


def _by_low(first: _Interval, second: _Interval) -> int:
    return _compare(first.low, second.low)


class RealSet:
    """A union of separate intervals in ascending order."""

    def __init__(self, intervals: list[_Interval]) -> None:
        found: list[_Interval] = []
        for one in sorted(intervals, key=cmp_to_key(_by_low)):
            order = _compare(one.low, one.high)
            if order > 0 or (order == 0 and not (one.with_low and one.with_high)):
                continue
            last = found[-1] if found else None
            if last is not None:
                gap = _compare(last.high, one.low)
                if gap > 0 or (gap == 0 and (last.with_high or one.with_low)):
                    found[-1] = _joined(last, one)
                    continue
            found.append(one)
        self.intervals = found

    def union(self, other: RealSet) -> RealSet:
        return RealSet(self.intervals + other.intervals)

    def intersection(self, other: RealSet) -> RealSet:
        return RealSet([_common(a, b) for a in self.intervals for b in other.intervals])

    def complement(self) -> RealSet:
        low, with_low = -mp.inf, False
        gaps = []
        for one in self.intervals:
            gaps.append(_Interval(low, with_low, one.low, not one.with_low))
            low, with_low = one.high, not one.with_high
        gaps.append(_Interval(low, with_low, mp.inf, False))
        return RealSet([gap for gap in gaps if not _is_nowhere(gap)])

    def same(self, other: RealSet) -> bool:
        if len(self.intervals) != len(other.intervals):
            return False
        return all(
            near(a.low, b.low)
            and near(a.high, b.high)
            and (a.with_low, a.with_high) == (b.with_low, b.with_high)
            for a, b in zip(self.intervals, other.intervals, strict=True)
        )


def _joined(first: _Interval, second: _Interval) -> _Interval:
    with_low = first.with_low or (near(first.low, second.low) and second.with_low)
    order = _compare(first.high, second.high)
    if order > 0:
        return _Interval(first.low, with_low, first.high, first.with_high)
    with_high = second.with_high or (order == 0 and first.with_high)
    return _Interval(first.low, with_low, second.high, with_high)


def _common(first: _Interval, second: _Interval) -> _Interval:
    low = _compare(first.low, second.low)
    high = _compare(first.high, second.high)
    lower, upper = (second if low < 0 else first), (first if high < 0 else second)
    with_low = first.with_low and second.with_low if low == 0 else lower.with_low
    with_high = first.with_high and second.with_high if high == 0 else upper.with_high
    return _Interval(lower.low, with_low, upper.high, with_high)


def _is_nowhere(one: _Interval) -> bool:
    infinite = one.low == mp.inf or one.high == -mp.inf
    return infinite or (near(one.low, one.high) and not (one.with_low and one.with_high))


ALL = RealSet([_Interval(-mp.inf, False, mp.inf, False)])
_NAMED = {
    "R": ALL,
    "R+": RealSet([_Interval(number(0).data, False, mp.inf, False)]),
    "R0+": RealSet([_Interval(number(0).data, True, mp.inf, False)]),
    "R-": RealSet([_Interval(-mp.inf, False, number(0).data, False)]),
}


def is_set_like(node: Node) -> bool:
    """Whether an answer can only be a set: a union, an inequality, half-open brackets."""
    if node.head in ("union", "inter", "minus", "numbers", "member", "builder"):
        return True
    if node.head == "relation":
        return bool(set(node.data) & _ORDERINGS)
    if node.head == "tuple":
        return node.data in ("(]", "[)")
    return node.head == "list" and any(
        is_set_like(arg) and arg.head != "member" for arg in node.args
    )


def real_set(node: Node) -> tuple[RealSet, str | None] | None:
    """The set of real numbers that an answer denotes, and the name of its variable.

    ``None`` for other answers: pairs, sets of other elements, bounds with variables.
    """
    try:
        subjects: set[str] = set()
        found = _real_set(node, subjects)
    except (UndefinedError, UndecidedError):
        return None
    if found is None or len(subjects) > 1:
        return None
    return found, next(iter(subjects), None)


def _real_set(node: Node, subjects: set[str]) -> RealSet | None:
    if node.head == "tuple" and len(node.args) == 2 and node.data in ("()", "[]", "(]", "[)"):
        return _interval(node)
    if node.head == "numbers":
        return _NAMED.get(node.data)
    if node.head in ("union", "inter", "minus"):
        first, second = (_real_set(arg, subjects) for arg in node.args)
        if first is None or second is None:
            return None
        if node.head == "union":
            return first.union(second)
        return first.intersection(second if node.head == "inter" else second.complement())
    if node.head == "set":
        return _points_of(node.args)
    if node.head == "relation":
        return _relation(node, subjects)
    if node.head == "named":
        names = node.data[0]
        subjects |= {name.text for name in names}
        return _points_of(elements(node.args[-1]))
    if node.head == "member":
        if isinstance(node.data, Name):
            subjects.add(node.data.text)
        return _real_set(node.args[0], subjects)
    if node.head == "builder":
        name, joint = node.data
        inner: set[str] = set()
        found = _combined(node.args, joint, inner)
        return found if inner <= {name.text} else None
    if node.head == "list":
        return _combined(node.args, node.data, subjects)
    return None


def _combined(parts: tuple[Node, ...], joint: str, subjects: set[str]) -> RealSet | None:
    """The union of parts with "or", the intersection of parts with "and".

    A list of intervals is a union. A comma between inequalities is an "and" unless the intersection
    is empty, else an "or".
    """
    sets = [_real_set(part, subjects) for part in parts]
    found = [one for one in sets if one is not None]
    if len(found) < len(sets):
        return None
    if joint != "or" and not all(part.head == "tuple" for part in parts):
        common = reduce(RealSet.intersection, found)
        if joint == "and" or common.intervals:
            return common
    return reduce(RealSet.union, found)


def _number(node: Node) -> Value | None:
    """The real value of an expression without variables, else ``None``."""
    if node.head not in EXPRESSIONS or names_of(node):
        return None
    value = evaluate(node)
    return None if getattr(value, "imag", 0) != 0 else value


def _points_of(nodes: Sequence[Node]) -> RealSet | None:
    """The set of the values of expressions; ``None`` if one has no real value."""
    values = [_number(node) for node in nodes]
    if any(value is None for value in values):
        return None
    return RealSet([_Interval(value, True, value, True) for value in values])


def _interval(node: Node) -> RealSet | None:
    low, high = (_number(arg) for arg in node.args)
    if low is None or high is None or _compare(low, high) > (node.data == "[]") - 1:
        return None
    return RealSet([_Interval(low, node.data[0] == "[", high, node.data[1] == "]")])


def _relation(node: Node, subjects: set[str]) -> RealSet | None:
    """The solutions of a chain of inequalities."""
    if not set(node.data) <= _ORDERINGS:
        return None
    found: RealSet | None = None
    for sign, left, right in zip(node.data, node.args, node.args[1:], strict=False):
        one = _solved_modulus(sign, left, right, subjects) or _solved(sign, left, right, subjects)
        if one is None:
            return None
        found = one if found is None else found.intersection(one)
    return found


def values_at(node: Node, name: str, values: Sequence[int]) -> list[Node]:
    """The expression with each of the values in place of a variable."""
    return [replaced(node, {name: number(value)}) for value in values]


def _solved_modulus(sign: str, left: Node, right: Node, subjects: set[str]) -> RealSet | None:
    """The solutions of ``|x - 1| < 2`` and the like, by two inequalities."""
    if right.head == "abs":
        left, right, sign = right, left, OPPOSITE.get(sign, sign)
    if left.head != "abs" or right.head not in EXPRESSIONS or names_of(right):
        return None
    (inside,) = left.args
    upper = _solved(sign, inside, right, subjects)
    lower = _solved(OPPOSITE.get(sign, sign), inside, Node("neg", (right,)), subjects)
    if upper is None or lower is None:
        return None
    return upper.intersection(lower) if sign in ("<", "<=", "!=") else upper.union(lower)


def _solved(sign: str, left: Node, right: Node, subjects: set[str]) -> RealSet | None:
    """The solutions of an inequality that is linear in one variable."""
    if left.head not in EXPRESSIONS or right.head not in EXPRESSIONS:
        return None
    names = names_of(left) | names_of(right)
    if len(names) != 1:
        return None
    (name,) = names
    infinite = constant("infty")
    if any(side in (infinite, Node("neg", (infinite,))) for side in (left, right)):
        subjects.add(name)
        return ALL
    at = values_at(difference(left, right), name, (0, 1, 2, 7))
    if not same_value(Node("add", (at[0], at[2])), Node("mul", (number(2), at[1]))):
        return None
    line = difference(Node("mul", (number(7), at[1])), Node("mul", (number(6), at[0])))
    if not same_value(at[3], line):
        return None
    zero, one = evaluate(at[0]), evaluate(at[1])
    if any(getattr(value, "imag", 0) != 0 for value in (zero, one)):
        return None
    slope = combined(operator.sub, one, zero)
    if near(slope, number(0).data):
        return None
    subjects.add(name)
    bound = combined(operator.truediv, -zero, slope)
    if slope < 0:
        sign = OPPOSITE.get(sign, sign)
    if sign == "!=":
        return RealSet([_Interval(bound, True, bound, True)]).complement()
    if sign in ("<", "<="):
        return RealSet([_Interval(-mp.inf, False, bound, sign == "<=")])
    return RealSet([_Interval(bound, sign == ">=", mp.inf, False)])
