"""Values on their way over the border between the tester and the solver.

A value is written as JSON: numbers, text and ``None`` as they are, anything else as a list whose
first item is a tag. What has an identity (containers that can change, objects, functions, classes)
gets a number that both sides know it by, and is defined once, in the table of the message that
shows it first. Everything immutable is written where it stands. Readers rebuild data as exact
types of the standard library, from an allowed list: nothing that is read runs foreign code.
"""

from __future__ import annotations

import binascii
import builtins
import contextlib
import functools
import importlib
import math
import operator
import re
import sys
import types
import typing
from collections import (
    ChainMap,
    Counter,
    OrderedDict,
    UserDict,
    UserList,
    UserString,
    defaultdict,
    deque,
)
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, Protocol

__all__ = [
    "BASES",
    "SAFE_FUNCTIONS",
    "Border",
    "Malformed",
    "Reader",
    "Writer",
    "is_safe_class",
    "lookup",
    "make_value",
    "own_state",
    "set_state",
    "standard_name",
]

INLINE = frozenset((type(None), bool, float, str))
_PLAIN = INLINE | {int}
_BIG = 1 << 1000  # well inside what the JSON parser takes as a decimal number
_EMPTY: dict[Any, Any] = {}
_KEYS: type = type(_EMPTY.keys())
_ITEMS: type = type(_EMPTY.items())
_VALUES: type = type(_EMPTY.values())

CONSTANTS: dict[str, Any] = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) or value in (Ellipsis, NotImplemented)
}
CONSTANTS.update({kind.__name__: kind for kind in (type(None), _KEYS, _ITEMS, _VALUES)})
"""Built-in types and exceptions by name, taken before any submission ran."""

_IMPURE = {
    "attrgetter", "call", "methodcaller", "itemgetter", "setitem", "delitem", "length_hint",
}  # fmt: skip
SAFE_FUNCTIONS: dict[tuple[str, str], Any] = {
    (module.__name__.lstrip("_"), name): value
    for module in (math, operator)
    for name, value in vars(module).items()
    if isinstance(value, types.BuiltinFunctionType)
    and name not in _IMPURE
    and not name.startswith(("_", "i"))
}
"""What a submission may hand to the tests as the standard library's own function."""

SAFE_CLASSES: dict[tuple[str, str], type] = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        Counter, OrderedDict, defaultdict, deque, UserDict, UserList, UserString, ChainMap,
        Decimal, Fraction, date, datetime, time, timedelta, timezone, tzinfo,
        types.SimpleNamespace, Enum,
    )
}  # fmt: skip
"""Classes of the standard library that are the same on both sides."""

_ADDRESSES = (
    "IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface",
)  # fmt: skip
_PATHS = ("PosixPath", "PurePosixPath", "PureWindowsPath")
_GETTERS: tuple[type, ...] = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_ALIASES: tuple[type, ...] = (
    types.GenericAlias, types.UnionType, type(typing.List[int]), type(typing.Optional[int]),  # noqa: UP006,UP045
)  # fmt: skip

_SAFE_LATER = {
    ("uuid", "UUID"), ("zoneinfo", "ZoneInfo"), ("pathlib", "Path"),
    *(("pathlib", name) for name in _PATHS),
}  # fmt: skip


def is_safe_class(name: tuple[str, str]) -> bool:
    """Whether a class of the standard library, by module and name, is the same on both sides."""
    return name in SAFE_CLASSES or (name[0].partition(".")[0], name[1]) in _SAFE_LATER


BASES: tuple[type, ...] = (
    int, float, complex, str, bytes, tuple, frozenset, Decimal, Fraction, datetime, date, time,
    timedelta,
)  # fmt: skip
"""Immutable types whose subclasses cross as a value of the type and a class."""


class Malformed(Exception):  # noqa: N818
    """What was read is no value of this protocol."""


class Border(Protocol):
    """What one side knows of everything that has a number."""

    def number_of(self, value: Any) -> int | None:
        """The number that a value has, if it has one."""

    def write_other(self, writer: Writer, value: Any, kind: type) -> Any:
        """Write what is no data: a container, a class, a function, an object, an exception.

        Raises :class:`TypeError` where it may not cross.
        """

    table: dict[int, Any]
    """All that has a number, by its number."""

    def known_class(self, name: str) -> type:
        """A class that the problem's prompt defines on both sides."""

    def read_error(self, reader: Reader, code: list[Any]) -> BaseException:
        """Rebuild an exception."""

    @property
    def trusting(self) -> bool:
        """Whether functions of the standard library may be had by name."""


class Writer:
    """Writes the values of one message, and defines what the other side has not seen yet."""

    def __init__(self, border: Border) -> None:
        self.border = border
        self.table: list[list[Any]] = []
        """Definitions and changes of what has a number: ``[number, content]``."""

    def write(self, value: Any) -> Any:
        """Write one value; raises :class:`TypeError` for what may not cross."""
        kind = type(value)
        if kind in INLINE:
            return value
        if kind is int:
            return value if -_BIG < value < _BIG else ["i", hex(value)]
        number = self.border.number_of(value)
        write = _writer_of(kind) if number is None else None
        return write(self, value) if write else self.border.write_other(self, value, kind)

    def write_as(self, value: Any, base: type) -> Any:
        """Write a value of a subclass as the immutable type beneath it."""
        if base is str:
            return str.__str__(value)
        if base is int:
            return self.write(int.__pos__(value))
        if base is float:
            return float.__pos__(value)
        return _WRITERS[base](self, value)

    def items(self, values: Iterable[Any]) -> list[Any]:
        """Write each of some values."""
        values = values if type(values) is list else list(values)
        kinds = set(map(type, values))
        if kinds <= INLINE:
            return values
        if kinds == {int} and min(values) > -_BIG and max(values) < _BIG:
            return values
        write = self.write
        return [value if type(value) in INLINE else write(value) for value in values]

    def pairs(self, keys: Iterable[Any], values: Iterable[Any]) -> list[Any]:
        """Write keys and values as a list of pairs."""
        return [list(pair) for pair in zip(self.items(keys), self.items(values), strict=True)]


def standard_name(value: Any) -> tuple[str, str] | None:
    """Module and name of what the standard library holds under them, if this is such a thing."""
    owner = getattr(value, "__objclass__", None)
    module = getattr(owner if isinstance(owner, type) else value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if type(module) is not str or type(name) is not str:
        return None
    home, _, _ = module.partition(".")
    if home not in sys.stdlib_module_names and home != "builtins":
        return None
    for place in (module.lstrip("_"), module):
        if place in sys.modules and _follow(sys.modules[place], name) is value:
            return place, name
    return None


def _follow(found: Any, name: str) -> Any:
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def lookup(module: str, name: str) -> Any:
    """What the standard library holds under a name; raises :class:`Malformed`."""
    if module.partition(".")[0] not in {*sys.stdlib_module_names, "builtins"}:
        raise Malformed(f"{module} is no module of the standard library")
    found = _follow(importlib.import_module(module), name)
    if found is None:
        raise Malformed(f"{module} has no {name}")
    return found


def _is_standard(zone: Any) -> bool:
    """Whether the standard library made a time zone."""
    return type(zone) in (timezone, getattr(sys.modules.get("zoneinfo"), "ZoneInfo", timezone))


def _write_zone(writer: Writer, value: Any) -> Any:
    """A time zone: as itself where the standard library made it, else as its offset now."""
    zone = value.tzinfo
    if zone is None or _is_standard(zone):
        return writer.write(zone)
    offset = zone.utcoffset(value if isinstance(value, datetime) else None)
    return None if offset is None else writer.write(timezone(offset))


def _write_time(writer: Writer, value: Any) -> list[Any]:
    plain = time(value.hour, value.minute, value.second, value.microsecond)
    return ["T", plain.isoformat(), value.fold, _write_zone(writer, value)]


def _write_datetime(writer: Writer, value: Any) -> list[Any]:
    parts = (value.year, value.month, value.day, value.hour, value.minute, value.second)
    plain = datetime(*parts, value.microsecond)
    return ["N", plain.isoformat(), value.fold, _write_zone(writer, value)]


def _write_timezone(writer: Writer, value: timezone) -> list[Any]:
    arguments: Any = value.__reduce__()[1]
    return ["Z", writer.write(value.utcoffset(None)), *arguments[1:]]


def _write_alias(writer: Writer, value: Any) -> Any:
    if isinstance(value, types.UnionType):
        return ["L", "|", writer.items(value.__args__)]
    origin = value.__origin__
    if origin is typing.Union:
        return ["L", "Union", writer.items(value.__args__)]
    name = getattr(value, "_name", None)  # of what typing spells in its own way
    return ["L", name if name else writer.write(origin), writer.items(value.__args__)]


def _write_getter(writer: Writer, value: Any) -> Any:
    kind, arguments = value.__reduce__()[:2]
    if isinstance(kind, type):
        return ["I", kind.__name__, writer.items(arguments), []]
    # A methodcaller with keywords reduces to a partial.
    keywords = writer.pairs(kind.keywords.keys(), kind.keywords.values())
    return ["I", "methodcaller", writer.items(kind.args + arguments), keywords]


def _write_bytes(value: bytes) -> list[Any]:
    """Bytes as text; base64 where escapes would make them six times as long."""
    if value.isascii():
        return ["x", value.decode("ascii")]
    return ["X", binascii.b2a_base64(value, newline=False).decode("ascii")]


def _write_mapping(tag: str) -> Callable[[Writer, Any], list[Any]]:
    return lambda writer, value: [tag, *writer.pairs(dict(value).keys(), dict(value).values())]


_WRITERS: dict[type, Callable[[Writer, Any], Any]] = {
    tuple: lambda writer, value: ["t", *writer.items(tuple.__iter__(value))],
    frozenset: lambda writer, value: ["z", *writer.items(frozenset.__iter__(value))],
    bytes: lambda writer, value: _write_bytes(bytes(memoryview(value))),
    memoryview: lambda writer, value: ["y", _write_bytes(value.tobytes())],
    complex: lambda writer, value: ["c", value.real, value.imag],
    range: lambda writer, value: ["g", *map(writer.write, (value.start, value.stop, value.step))],
    slice: lambda writer, value: ["e", *map(writer.write, (value.start, value.stop, value.step))],
    _KEYS: lambda writer, value: ["k", *writer.items(value)],
    _ITEMS: _write_mapping("m"),
    _VALUES: lambda writer, value: ["w", *writer.items(value)],
    types.MappingProxyType: _write_mapping("j"),
    Decimal: lambda writer, value: ["D", str(Decimal(value))],
    Fraction: lambda writer, value: [
        "F",
        writer.write(value.numerator),
        writer.write(value.denominator),
    ],
    timedelta: lambda writer, value: ["P", value.days, value.seconds, value.microseconds],
    datetime: _write_datetime,
    time: _write_time,
    date: lambda writer, value: ["Y", date.isoformat(value)],
    timezone: _write_timezone,
    re.Pattern: lambda writer, value: ["p", writer.write(value.pattern), value.flags],
    type(Ellipsis): lambda writer, value: ["b", "Ellipsis"],
    type(NotImplemented): lambda writer, value: ["b", "NotImplemented"],
    **dict.fromkeys(_GETTERS, _write_getter),
    **dict.fromkeys(_ALIASES, _write_alias),
}


_LATER: dict[str, dict[str, Callable[[Writer, Any], Any]]] = {
    "zoneinfo": {"ZoneInfo": lambda writer, value: ["U", value.key]},
    "uuid": {"UUID": lambda writer, value: ["u", value.hex]},
    "pathlib": dict.fromkeys(_PATHS, lambda writer, value: ["H", type(value).__name__, str(value)]),
    "ipaddress": dict.fromkeys(
        _ADDRESSES, lambda writer, value: ["A", type(value).__name__, str(value)]
    ),
}
"""Types of modules that are imported where a program uses them: every box would copy them."""


def _writer_of(kind: type) -> Callable[[Writer, Any], Any] | None:
    write = _WRITERS.get(kind)
    if write is None and not _LATER.keys().isdisjoint(sys.modules.keys()):
        for module, writers in list(_LATER.items()):
            kinds = getattr(sys.modules.get(module), "__dict__", {})
            with contextlib.suppress(KeyError):  # it is not imported, or being so just now
                _WRITERS.update({kinds[name]: write for name, write in writers.items()})
                del _LATER[module]
        return _WRITERS.get(kind)
    return write


class Reader:
    """Rebuilds the values of one message as exact types.

    Everything here may be fed by a hostile writer: a value that is not well formed raises
    :class:`Malformed`, :class:`TypeError`, :class:`ValueError`, :class:`LookupError`,
    :class:`ArithmeticError` or :class:`AttributeError` and builds nothing but data.
    """

    def __init__(self, border: Border) -> None:
        self.border = border

    def read(self, code: Any) -> Any:
        """Read one value."""
        if type(code) is list:
            return _READERS[code[0]](self, code)
        if type(code) in _PLAIN:
            return code
        raise Malformed(f"{type(code).__name__} is no value")

    def numbered(self, number: int) -> Any:
        """The value with this number; raises :class:`LookupError`."""
        return self.border.table[number]

    def items(self, codes: list[Any]) -> list[Any]:
        """Read each of some values."""
        if type(codes) is not list:
            raise Malformed(f"{type(codes).__name__} is no list of values")
        read = self.read
        return [code if type(code) in _PLAIN else read(code) for code in codes]

    def pairs(self, codes: list[Any]) -> dict[Any, Any]:
        """Read pairs of keys and values."""
        read = self.read
        return {read(key): read(value) for key, value in codes}

    def value_of(self, code: list[Any]) -> Any:
        """A value of a subclass of an immutable type: the class, and the value beneath."""
        kind, value = self.read(code[1]), self.read(code[2])
        base = next((base for base in BASES if type(value) is base), None)
        if not isinstance(kind, type) or base is None or not issubclass(kind, base):
            raise Malformed(f"a {type(value).__name__} is no {kind!r}")
        made = make_value(kind, base, value)
        if len(code) > 3:
            set_state(made, self.pairs(code[3]))
        return made

    def named(self, code: list[Any]) -> Any:
        """What the standard library holds under a name."""
        key = (str(code[1]), str(code[2]))
        found = SAFE_CLASSES.get(key) or SAFE_FUNCTIONS.get(key)
        if found is not None:
            return found
        if self.border.trusting or is_safe_class(key):
            return lookup(*key)
        if key[0] == "typing" and key[1] in typing.__all__:
            return getattr(typing, key[1])
        found = _follow(sys.modules.get(key[0]), key[1])
        standard = key[0].partition(".")[0] in sys.stdlib_module_names
        if standard and isinstance(found, type) and issubclass(found, BaseException | Enum):
            return found
        raise Malformed(f"{key} may not cross")

    def member(self, code: list[Any]) -> Any:
        """A member of an enumeration that both sides have."""
        kind = self.read(code[1])
        if not isinstance(kind, type) or not issubclass(kind, Enum):
            raise Malformed(f"{kind!r} is no enumeration")
        return kind[code[2]] if type(code[2]) is str else kind(self.read(code[3]))


def make_value(kind: type, base: Any, value: Any) -> Any:
    """An instance of ``kind``, a subclass of the immutable ``base``, without running its code."""
    if issubclass(base, datetime):
        parts = (value.year, value.month, value.day, value.hour, value.minute, value.second)
        made = base.__new__(kind, *parts, value.microsecond, value.tzinfo)
    elif issubclass(base, date):
        made = base.__new__(kind, value.year, value.month, value.day)
    elif issubclass(base, time):
        made = base.__new__(kind, value.hour, value.minute, value.second, value.microsecond)
    elif issubclass(base, timedelta):
        made = base.__new__(kind, value.days, value.seconds, value.microseconds)
    else:
        made = base.__new__(kind, value)
    return made


def _slots(cls: type) -> Iterator[tuple[str, str]]:
    """The slots of an instance: the name that is written, and the one that Python made of it."""
    for owner in cls.__mro__:
        names = vars(owner).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name in ("__dict__", "__weakref__"):
                continue
            private = name.startswith("__") and not name.endswith("__")
            yield name, f"_{owner.__name__.lstrip('_')}{name}" if private else name


def own_state(value: Any) -> dict[str, Any]:
    """The attributes of an instance, of its dictionary and its slots."""
    state = {}
    for _, name in _slots(type(value)):
        try:
            state[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    with contextlib.suppress(AttributeError):
        state.update(object.__getattribute__(value, "__dict__"))
    return state


def set_state(value: Any, state: dict[str, Any]) -> None:
    """Give an instance these attributes and no others; none of its own code runs."""
    if not all(type(name) is str for name in state):
        raise Malformed("an attribute without a name")
    slots = {name for _, name in _slots(type(value))}
    for name in slots:
        if name in state:
            object.__setattr__(value, name, state[name])
        else:
            try:
                object.__delattr__(value, name)
            except AttributeError:
                continue
    rest = {name: item for name, item in state.items() if name not in slots}
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        if rest:
            raise Malformed(f"a {type(value).__name__} has no {sorted(rest)}") from None
        return
    attributes.clear()
    attributes.update(rest)


def _named_class(module: str, names: Iterable[str], code: list[Any]) -> Any:
    if code[1] not in names:
        raise Malformed(f"{module} has no such {code[1]}")
    return lookup(module, code[1])(code[2])


def _zoned(kind: Any, reader: Reader, code: list[Any]) -> Any:
    zone = reader.read(code[3])
    if zone is not None and not _is_standard(zone):
        raise Malformed("no time zone")
    return kind.fromisoformat(code[1]).replace(fold=code[2], tzinfo=zone)


def _timezone(reader: Reader, code: list[Any]) -> timezone:
    offset = reader.read(code[1])
    if len(code) > 2:
        return timezone(offset, code[2])
    return timezone(offset) if offset else UTC


def _alias(reader: Reader, code: list[Any]) -> Any:
    arguments = tuple(reader.items(code[2]))
    if code[1] == "|":
        return functools.reduce(operator.or_, arguments)
    if type(code[1]) is str:
        if code[1] not in typing.__all__:
            raise Malformed(f"typing has no {code[1]}")
        return getattr(typing, code[1])[arguments]
    origin = reader.read(code[1])
    if not isinstance(origin, type):
        raise Malformed("no generic type")
    return types.GenericAlias(origin, arguments)


def _bytes(code: Any) -> bytes:
    return (
        code[1].encode("ascii")
        if code[0] == "x"
        else binascii.a2b_base64(code[1], strict_mode=True)
    )


def _module(reader: Reader, name: Any) -> types.ModuleType:
    if not reader.border.trusting or name not in sys.stdlib_module_names:
        raise Malformed(f"the module {name} may not cross")
    return importlib.import_module(name)


_CHECKED_GETTERS = {kind.__name__: kind for kind in _GETTERS}


def _getter(reader: Reader, code: list[Any]) -> Any:
    if not reader.border.trusting:
        raise Malformed("a getter may not cross")
    return _CHECKED_GETTERS[code[1]](*reader.items(code[2]), **reader.pairs(code[3]))


_READERS: dict[str, Callable[[Reader, list[Any]], Any]] = {
    "r": lambda reader, code: reader.numbered(code[1]),
    "t": lambda reader, code: tuple(reader.items(code[1:])),
    "i": lambda reader, code: int(code[1], 16),
    "z": lambda reader, code: frozenset(reader.items(code[1:])),
    "x": lambda reader, code: _bytes(code),
    "X": lambda reader, code: _bytes(code),
    "y": lambda reader, code: memoryview(_bytes(code[1])),
    "c": lambda reader, code: complex(float(code[1]), float(code[2])),
    "g": lambda reader, code: range(*reader.items(code[1:])),
    "e": lambda reader, code: slice(*reader.items(code[1:])),
    "k": lambda reader, code: dict.fromkeys(reader.items(code[1:])).keys(),
    "m": lambda reader, code: reader.pairs(code[1:]).items(),
    "w": lambda reader, code: dict(enumerate(reader.items(code[1:]))).values(),
    "j": lambda reader, code: types.MappingProxyType(reader.pairs(code[1:])),
    "v": Reader.value_of,
    "b": lambda reader, code: CONSTANTS[code[1]],
    "G": Reader.named,
    "K": lambda reader, code: reader.border.known_class(code[1]),
    "E": Reader.member,
    "M": lambda reader, code: _module(reader, code[1]),
    "!": lambda reader, code: reader.border.read_error(reader, code),
    "D": lambda reader, code: Decimal(code[1]),
    "F": lambda reader, code: Fraction(reader.read(code[1]), reader.read(code[2])),
    "P": lambda reader, code: timedelta(code[1], code[2], code[3]),
    "N": lambda reader, code: _zoned(datetime, reader, code),
    "T": lambda reader, code: _zoned(time, reader, code),
    "Y": lambda reader, code: date.fromisoformat(code[1]),
    "Z": _timezone,
    "U": lambda reader, code: lookup("zoneinfo", "ZoneInfo")(code[1]),
    "u": lambda reader, code: lookup("uuid", "UUID")(hex=code[1]),
    "p": lambda reader, code: re.compile(reader.read(code[1]), code[2]),
    "H": lambda reader, code: _named_class("pathlib", _PATHS, code),
    "A": lambda reader, code: _named_class("ipaddress", _ADDRESSES, code),
    "I": _getter,
    "L": _alias,
}
