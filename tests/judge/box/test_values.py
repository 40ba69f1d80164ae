from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.judge.box.values import Reader, Writer


class Handles:
    """A border that knows one value that is not data."""

    def __init__(self) -> None:
        self.value = object()

    def export(self, value: Any) -> list[Any]:
        if value is not self.value:
            raise TypeError("not data")
        return ["y", 0]

    def owned(self, number: int) -> Any:
        return [self.value][number]

    def proxy(self, number: int, kind: str) -> Any:
        return (number, kind)


def across(value: Any, border: Handles | None = None) -> Any:
    border = border or Handles()
    writer = Writer(border, [])
    code = writer.write(value)
    code, table = json.loads(json.dumps([code, writer.table]))
    reader = Reader(border, [])
    reader.load(table)
    return reader.read(code)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
)
HASHABLE = st.recursive(
    SCALARS,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=3,
)
DATA = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=6,
)


@given(DATA)
def test_data_arrives_equal_and_of_the_same_type(value: Any) -> None:
    found = across(value)
    assert found == value
    assert type(found) is type(value)


def test_what_hypothesis_does_not_make() -> None:
    pair = namedtuple("pair", "x y")(1, [2])
    for value in (
        10**5000, -(10**5000), deque([1, 2], 2), Counter("aab"), OrderedDict(b=1, a=2),
        {1: 2}.keys(),
        {1: [2]}.items(), range(1, 9, 2), bytearray(b"\xff"), Decimal("1.10"), Fraction(1, 3), pair,
        int, KeyError, ..., NotImplemented, date(2026, 1, 2), "\ud800",
    ):  # fmt: skip
        assert across(value) == value
    assert math.isnan(across(math.nan))
    assert across(defaultdict(list, a=[1]))["b"] == []
    assert across(pair).y == [2]


def test_aliases_and_cycles_survive() -> None:
    inner: list[Any] = [1]
    found = across({"a": inner, "b": (inner,), "c": [inner, inner]})
    assert found["a"] is found["b"][0] is found["c"][1]
    inner.append(inner)
    found = across(inner)
    assert found[1] is found


def test_subclasses_leave_their_methods_behind() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Items(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

    assert across(Number(7)) != 8
    assert type(across(Number(7))) is int
    assert across(Items([1])) != [2]


def test_changes_in_place_come_back_to_the_same_objects() -> None:
    border = Handles()
    values, other, same = [3, 1], {"k": [1]}, {5}
    sent = [values, other, same]
    objects: list[Any] = []
    out = Writer(border, objects)
    codes = out.items(sent)
    there: list[Any] = []
    reader = Reader(border, there)
    reader.load(out.table)
    far_values, far_other, _ = reader.items(codes)
    far_values.sort()
    far_other["k"].append(far_values)
    back = Writer(border, there)
    back.changes(out.table)
    assert len(back.table) == 2, "what did not change does not travel"
    Reader(border, objects).load(back.table)
    assert values == [1, 3]
    assert other["k"][1] is values


def test_handles_go_out_and_come_back() -> None:
    border = Handles()
    assert across([border.value], border)[0] is border.value
    with pytest.raises(TypeError):
        across(object(), border)
    assert Reader(border, []).read(["h", 4, "iterator"]) == (4, "iterator")


HOSTILE = [
    ["r", 0], ["r", -1], ["r", "x"], ["nonesuch"], [], [[]], ["i", "zz"], ["i", 5], ["b", "eval"],
    ["b", "__import__"], ["h", "0", "k"], ["h", 0], ["y", 7], ["z", ["t", ["r", 0]]], {"a": 1},
    ["n", "x; import os", ["a"], [1]], ["n", "P", ["__class__"], [1]], ["n", "P", ["a"], []],
    ["x", "\u0100"], ["F", 1, 0], ["D", "one"], ["N", "yesterday"], ["g", 1, 2, 0],
    ["P", 1e300, 0, 0],
]  # fmt: skip


@pytest.mark.parametrize("code", HOSTILE, ids=str)
def test_a_malformed_value_is_an_error_and_nothing_else(code: Any) -> None:
    with pytest.raises((TypeError, ValueError, LookupError, ArithmeticError, AttributeError)):
        Reader(Handles(), []).read(code)


TABLES = [
    [[1, ["l", []]]], [[-1, ["l", []]]], [["x", ["l", []]]], [[0, ["?", []]]],
    [[0, ["s", [["r", 0]]]]],
    [[0, ["d", [[["r", 0], 1]]]]], [[0]], [0], [[0, ["l", [["r", 5]]]]],
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_malformed_table_is_an_error_and_nothing_else(table: Any) -> None:
    with pytest.raises((TypeError, ValueError, LookupError)):
        Reader(Handles(), []).load(table)


def test_a_known_container_cannot_change_its_kind() -> None:
    mine: list[Any] = [1]
    with pytest.raises(TypeError, match="cannot be filled"):
        Reader(Handles(), [mine]).load([[0, ["d", []]]])
    assert mine == [1]
