"""Sets of real numbers as unions of intervals, out of brackets, inequalities and set builders."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from fttt.verifiers.math.sampling import same_value
from fttt.verifiers.math.tree import EXPRESSIONS, Name, Node, constant, names_of, number, replaced
from fttt.verifiers.math.values import (
    UndecidedError,
    UndefinedError,
    Value,
    combined,
    evaluate,
    is_less,
    mp,
    near,
)

__all__ = ["RealSet", "is_set_like", "real_set"]

_INFINITE = frozenset({"<", ">", "<=", ">=", "!="})
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


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
    """A union of intervals that do not touch, in their order."""

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
        return bool(set(node.data) & _INFINITE)
    if node.head == "tuple":
        return node.data in ("(]", "[)")
    return node.head == "list" and any(
        is_set_like(arg) and arg.head != "member" for arg in node.args
    )


def real_set(node: Node) -> tuple[RealSet, str | None] | None:
    """The set of real numbers that an answer is, and the name of its variable where it has one.

    ``None`` for what is no such set: pairs, sets of other things, bounds with variables.
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
        points = [_point(arg) for arg in node.args]
        return None if None in points else RealSet([p for p in points if p is not None])
    if node.head == "relation":
        return _relation(node, subjects)
    if node.head == "named":
        names = node.data[0]
        subjects |= {name.text for name in names}
        points = [_point(arg) for arg in _elements(node.args[-1])]
        return None if None in points else RealSet([p for p in points if p is not None])
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


def _elements(node: Node) -> tuple[Node, ...]:
    return node.args if node.head in ("list", "set") else (node,)


def _combined(parts: tuple[Node, ...], joint: str, subjects: set[str]) -> RealSet | None:
    """Parts with "or" are a union, with "and" what they have in common.

    Intervals side by side are a union. A comma between inequalities is an "and", where anything
    is left of it, else an "or".
    """
    sets = [_real_set(part, subjects) for part in parts]
    if any(one is None for one in sets):
        return None
    found = [one for one in sets if one is not None]
    union: Callable[[RealSet, RealSet], RealSet] = RealSet.union
    if joint != "or" and not all(part.head == "tuple" for part in parts):
        common = _reduced(found, RealSet.intersection)
        if joint == "and" or common.intervals:
            return common
    return _reduced(found, union)


def _reduced(sets: list[RealSet], step: Callable[[RealSet, RealSet], RealSet]) -> RealSet:
    total = sets[0]
    for one in sets[1:]:
        total = step(total, one)
    return total


def _number(node: Node) -> Value | None:
    """The real number that an expression without variables is."""
    if node.head not in EXPRESSIONS or names_of(node):
        return None
    value = evaluate(node)
    return None if getattr(value, "imag", 0) != 0 else value


def _point(node: Node) -> _Interval | None:
    value = _number(node)
    return None if value is None else _Interval(value, True, value, True)


def _interval(node: Node) -> RealSet | None:
    low, high = (_number(arg) for arg in node.args)
    if low is None or high is None or _compare(low, high) > (node.data == "[]") - 1:
        return None
    return RealSet([_Interval(low, node.data[0] == "[", high, node.data[1] == "]")])


def _relation(node: Node, subjects: set[str]) -> RealSet | None:
    """Where all neighbouring sides of a chain stand in their relation."""
    if not set(node.data) <= _INFINITE:
        return None
    found: RealSet | None = None
    for sign, left, right in zip(node.data, node.args, node.args[1:], strict=False):
        one = _solved_modulus(sign, left, right, subjects) or _solved(sign, left, right, subjects)
        if one is None:
            return None
        found = one if found is None else found.intersection(one)
    return found


def _solved_modulus(sign: str, left: Node, right: Node, subjects: set[str]) -> RealSet | None:
    """``|x - 1| < 2`` as the two inequalities that it stands for."""
    if right.head == "abs":
        left, right, sign = right, left, _TURNED[sign]
    if left.head != "abs" or right.head not in EXPRESSIONS or names_of(right):
        return None
    (inside,) = left.args
    upper = _solved(sign, inside, right, subjects)
    lower = _solved(_TURNED[sign], inside, Node("neg", (right,)), subjects)
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
    difference = Node("add", (left, Node("neg", (right,))))
    at: list[Any] = [replaced(difference, name, number(n)) for n in range(3)]
    bent = Node("add", (at[0], at[2]))
    middle = Node("mul", (number(2), at[1]))
    if not same_value(bent, middle):
        return None
    if not same_value(
        replaced(difference, name, number(7)),
        Node(
            "add",
            (Node("mul", (number(7), at[1])), Node("neg", (Node("mul", (number(6), at[0])),))),
        ),
    ):
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
        sign = _TURNED[sign]
    if sign == "!=":
        return RealSet([_Interval(bound, True, bound, True)]).complement()
    if sign in ("<", "<="):
        return RealSet([_Interval(-mp.inf, False, bound, sign == "<=")])
    return RealSet([_Interval(bound, sign == ">=", mp.inf, False)])
