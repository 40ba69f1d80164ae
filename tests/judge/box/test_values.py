"""Data over the border, there and back: through a solver that answers what it is handed."""

from __future__ import annotations

import array
import io
import ipaddress
import math
import os
import pathlib
import re
import signal
import socket
import types
import typing
import uuid
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.judge.box import tester as tester_module
from fttt.judge.box.channel import Channel
from fttt.judge.box.identities import CandidateError
from fttt.judge.box.replicas import Incoming
from fttt.judge.box.solver import Solver
from fttt.judge.box.values import Malformed


@pytest.fixture(scope="module")
def echo() -> Iterator[Any]:
    """A function of another process that answers its argument."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            Solver(Channel(theirs), {"f": lambda x: x}).serve_on()
        finally:
            os._exit(0)
    theirs.close()
    yield tester_module.Tester(Channel(ours)).ask("begin", None, (["f"], {}, False), {})["values"][
        "f"
    ]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ours.close()


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
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.timedeltas()
    | st.uuids()
    | st.ip_addresses()
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


@given(value=DATA)
def test_data_comes_back_equal_and_of_the_same_type(echo: Any, value: Any) -> None:
    for sent in (value, (value,), [value, value]):
        found = echo(sent)
        assert found == sent
        assert type(found) is type(sent)
    assert repr(echo((value,))) == repr((value,)) or isinstance(value, set | frozenset | dict)


OLD_SPELLING = typing.Optional[int], typing.List[str]  # noqa: UP006, UP045
EAST = timezone(timedelta(hours=2), "EAST")
OTHERS = [
    10**900, -(10**900), deque([1, 2], 2), Counter("aab"), OrderedDict(b=1, a=2), -0.0,
    {1: 2}.keys(), {1: [2]}.items(), range(1, 9, 2), slice(1, None), bytearray(b"\xff"),
    bytes(range(256)), Decimal("1.10"), Fraction(1, 3), int, KeyError, ..., NotImplemented,
    type(None), "\ud800", datetime(2026, 1, 2, tzinfo=EAST), datetime(2026, 1, 2, fold=1), EAST,
    array.array("d", [1.5]), re.compile("a", re.I), re.I | re.M, re.I,
    types.SimpleNamespace(a=[1]), types.MappingProxyType({1: 2}), UserDict(a=1), UserList([1]),
    ChainMap({1: 2}, {3: 4}), pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:\\x"),
    pathlib.Path("/x"), uuid.UUID(int=5), ipaddress.ip_network("10.0.0.0/8"), list[int], int | None,
    *OLD_SPELLING, Counter, Decimal, zoneinfo.ZoneInfo, math.gcd,
]  # fmt: skip


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: f"{type(value).__name__} {value!s:.20}")
def test_what_hypothesis_does_not_make(echo: Any, value: Any) -> None:
    found = echo((value,))[0]
    assert found == value
    assert type(found) is type(value)
    assert str(found) == str(value)


def test_what_is_not_equal_to_itself(echo: Any) -> None:
    assert [echo(10**5000), echo((-(10**5000),))] == [10**5000, (-(10**5000),)]
    assert math.isnan(echo(math.nan))
    assert list(echo((({1: 2}).values(),))[0]) == [2]
    assert echo((defaultdict(list, a=[1]),))[0]["b"] == []
    assert echo((memoryview(b"x"),))[0] == memoryview(b"x")
    stream = echo((io.StringIO("abc"),))[0]
    assert stream.getvalue() == "abc"


def test_a_container_that_is_answered_is_the_one_that_was_passed(echo: Any) -> None:
    inner: list[Any] = [1]
    for value in (inner, {"a": inner}, {1, 2}, deque([inner]), bytearray(b"x"), io.BytesIO(b"y")):
        assert echo(value) is value
    found = echo({"a": inner, "b": (inner,), "c": [inner, inner]})
    assert found["a"] is found["b"][0] is found["c"][1] is inner
    inner.append(inner)
    assert echo((inner,))[0] is inner


HOSTILE = [
    ["r", 0], ["r", -1], ["r", "x"], ["r"], ["nonesuch"], [], [[]], ["i", "zz"], ["i", 5],
    ["b", "eval"], ["b", "__import__"], {"a": 1}, ["z", ["t", ["r", 0]]], ["x", "\u0100"],
    ["X", "~"], ["F", 1, 0], ["D", "one"], ["N", "yesterday", 0, None], ["g", 1, 2, 0],
    ["N", "2026-01-01", 0, ["b", "int"]], ["P", 1e300, 0, 0], ["G", "os", "system"],
    ["G", "builtins", "eval"], ["G", "subprocess", "Popen"], ["G", "operator", "attrgetter"],
    ["G", "box.tester", "Tester"], ["M", "os"], ["K", "Point"], ["E", ["b", "int"], "x", None],
    ["E", ["G", "re", "RegexFlag"], "nonesuch", None], ["v", ["b", "int"], "x"],
    ["v", ["b", "bool"], 1], ["v", ["b", "str"], ["r", 0]], ["!", ["b", "int"], [], [], None],
    ["!", ["b", "ValueError"], 5, [], None], ["I", "attrgetter", ["__class__"], []],
    ["H", "Path", "x"], ["L", "cast", [1]], ["L", ["b", "int"], 5], ["U", "../../etc/passwd"],
    ["p", "(", 0], ["u", "zz"], ["A", "IPv4Address", "x"], ["y", ["x", 5]],
]  # fmt: skip
ALLOWED = (
    Malformed, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError,
    re.error,
)  # fmt: skip


@pytest.fixture
def reader() -> Iterator[Incoming]:
    """The reader of a tester that has met nothing yet."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Incoming(tester_module.Tester(Channel(ours)))


@pytest.mark.parametrize("code", HOSTILE, ids=str)
def test_a_malformed_value_is_an_error_and_nothing_else(reader: Incoming, code: Any) -> None:
    with pytest.raises(ALLOWED):
        reader.read(code)


CLASS = {
    "name": "C", "qualname": "C", "module": "m", "specials": [], "overridden": [], "hash": "",
    "abstract": [],
}  # fmt: skip
TABLES = [
    [[1, ["l"], 1]], [[2, ["l", []], 2]], [[-1, ["l", []], -1]], [["x", ["l", []], 1]], [[0]], [0],
    [[3, ["?", []], 3]], [[3, ["s", [["r", 5]]], 3]], [[3, ["d", [[["r", 3], 1]]], 3]],
    [[3, ["l", []], "x"]], [[3, ["h", "nonesuch", "x", None]]], [[3, ["h", "object", 5, None]]],
    [[3, ["h", "object", ["b", "int"], None]]], [[3, ["c", {}, [], None]]],
    [[3, ["c", {**CLASS, "specials": 5}, [], None]]], [[3, ["c", CLASS, [5], None]]],
    [[3, ["c", CLASS, [], ["b", "object"]]]], [[3, ["x", ["b", "int"], [], None]]],
    [[3, ["u", ["b", "int"], ["l", []], None], 3]], [[3, ["u", 5, None, []], 3]],
    [[3, ["l", []], 3], [3, ["d", []]]], [[3, ["l", [[0, 1]], 7], 3]], [[3, ["A", [1], "z"], 3]],
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_malformed_table_is_an_error_and_nothing_else(reader: Incoming, table: Any) -> None:
    with pytest.raises(ALLOWED):
        reader.load(table)


def test_what_is_rebuilt_as_an_exception_is_one(reader: Incoming) -> None:
    found = reader.read(["!", ["b", "KeyError"], ["k"], [["code", 7]], None])
    assert (type(found), found.args, found.code) == (KeyError, ("k",), 7)
    odd = reader.read(["!", ["b", "UnicodeDecodeError"], ["k"], [], None])
    assert type(odd) is CandidateError


def test_a_class_may_not_bring_methods_of_its_own(reader: Incoming) -> None:
    described = {**CLASS, "specials": ["__eq__", "__class__", "__getattribute__", "__del__"]}
    reader.load([[3, ["c", described, [], None]]])
    made = reader.read(["r", 3])
    assert "__del__" not in vars(made)
    assert made.__getattribute__ is not None
    assert "__eq__" not in vars(made)


def test_a_class_with_data_compares_by_it(reader: Incoming) -> None:
    described = {**CLASS, "specials": ["__eq__", "__hash__", "__lt__"], "overridden": ["upper"]}
    reader.load([[3, ["c", described, [["b", "str"]], ["b", "str"]]]])
    value = reader.read(["v", ["r", 3], "abc"])
    assert value == "abc"
    assert value != "abd"
    assert {value: 1}["abc"] == 1
    assert value < "b"
    assert isinstance(value, str)
    assert value.title() == "Abc"
