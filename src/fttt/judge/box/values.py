"""Plain data on its way over the border between the tester and the solver.

A value is written as JSON: numbers, strings and ``None`` as they are, anything else as a list whose
first item is a tag. Containers that can change are kept in a numbered table that belongs to one
call, so that aliases and cycles survive, and so that the answer to a call can say which of its
arguments were changed in place. What is not data (functions, instances, iterators) stays where it
is and crosses as a handle.
"""

from __future__ import annotations

import builtins
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

__all__ = ["Border", "Reader", "Writer"]

_INLINE = frozenset((type(None), bool, float, str))
_BIG = 1 << 1000  # well inside what the JSON parser takes as a decimal number
_CONSTANTS = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) or value in (Ellipsis, NotImplemented)
}
"""Built-in types and exceptions by name, taken before any submission ran."""


class Border(Protocol):
    """What one side knows of handles."""

    def export(self, value: Any) -> list[Any]:
        """Write a value that is not data as a handle; :class:`TypeError` where that is refused."""

    def owned(self, number: int) -> Any:
        """The value that this side exported under ``number``."""

    def proxy(self, number: int, kind: str) -> Any:
        """The stand-in for a value of the other side."""


class Writer:
    """Writes the values of one call; ``objects`` is the call's table as it grows."""

    def __init__(self, border: Border, objects: list[Any]) -> None:
        self._border = border
        self._objects = objects
        self._numbers = {id(value): number for number, value in enumerate(objects)}
        self._table: dict[int, list[Any]] = {}

    @property
    def table(self) -> list[list[Any]]:
        """The containers met so far as ``[number, content]``, by number."""
        return [[number, self._table[number]] for number in sorted(self._table)]

    def write(self, value: Any) -> Any:
        """Write one value; raises :class:`TypeError` for what may not cross."""
        kind = type(value)
        if kind in _INLINE:
            return value
        if kind is int:
            return value if -_BIG < value < _BIG else ["i", hex(value)]
        if kind in _CONTENT:
            return self._refer(value, _CONTENT[kind])
        if kind in _IMMUTABLE:
            return _IMMUTABLE[kind](self, value)
        return self._write_unusual(value, kind)

    def changes(self, written: list[list[Any]]) -> None:
        """Add to the table what has changed in the containers written before."""
        for number, before in written:
            value = self._objects[number]
            content = _CONTENT[type(value)](self, value)
            if content != before:
                self._table[number] = content

    def _write_unusual(self, value: Any, kind: type) -> Any:
        if isinstance(value, type) or value is Ellipsis or value is NotImplemented:
            name = str(getattr(value, "__name__", value))
            if _CONSTANTS.get(name) is value:
                return ["b", name]
        # Subclasses cross as the built-in type beneath: their own methods stay behind.
        if issubclass(kind, (str, float)):
            return value
        if issubclass(kind, int):
            return self.write(int.__add__(value, 0))
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return ["n", kind.__name__, list(kind._fields), [self.write(item) for item in value]]
        for base, write in _IMMUTABLE.items():
            if issubclass(kind, base):
                return write(self, value)
        for base, content in _CONTENT.items():
            if issubclass(kind, base):
                return self._refer(base(value), content)
        return self._border.export(value)

    def _refer(self, value: Any, content: Callable[[Writer, Any], list[Any]]) -> list[Any]:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
            self._table[number] = content(self, value)
        return ["r", number]

    def items(self, values: Iterable[Any]) -> list[Any]:
        """Write each of some values."""
        write = self.write
        return [value if type(value) in _INLINE else write(value) for value in values]

    def pairs(self, mapping: dict[Any, Any]) -> list[Any]:
        """Write a mapping's items in its order."""
        return [[self.write(key), self.write(value)] for key, value in mapping.items()]


_CONTENT: dict[type, Callable[[Writer, Any], list[Any]]] = {
    list: lambda writer, value: ["l", writer.items(value)],
    Counter: lambda writer, value: ["C", writer.pairs(value)],
    OrderedDict: lambda writer, value: ["o", writer.pairs(value)],
    defaultdict: lambda writer, value: [
        "f",
        writer.pairs(value),
        writer.write(value.default_factory),
    ],
    dict: lambda writer, value: ["d", writer.pairs(value)],
    set: lambda writer, value: ["s", writer.items(value)],
    bytearray: lambda writer, value: ["a", bytes(value).decode("latin-1")],
    deque: lambda writer, value: ["q", writer.items(value), value.maxlen],
}

_IMMUTABLE: dict[type, Callable[[Writer, Any], list[Any]]] = {
    tuple: lambda writer, value: ["t", *writer.items(value)],
    frozenset: lambda writer, value: ["z", *writer.items(value)],
    bytes: lambda writer, value: ["x", value.decode("latin-1")],
    complex: lambda writer, value: ["c", value.real, value.imag],
    range: lambda writer, value: ["g", *map(writer.write, (value.start, value.stop, value.step))],
    slice: lambda writer, value: ["e", *map(writer.write, (value.start, value.stop, value.step))],
    type({}.keys()): lambda writer, value: ["k", *writer.items(value)],
    type({}.items()): lambda writer, value: ["m", *writer.pairs(dict(value))],
    Decimal: lambda writer, value: ["D", str(value)],
    Fraction: lambda writer, value: [
        "F",
        writer.write(value.numerator),
        writer.write(value.denominator),
    ],
    timedelta: lambda writer, value: ["P", value.days, value.seconds, value.microseconds],
    datetime: lambda writer, value: ["N", value.isoformat()],
    date: lambda writer, value: ["Y", value.isoformat()],
    time: lambda writer, value: ["T", value.isoformat()],
}


@lru_cache(maxsize=64)
def _named(name: str, fields: tuple[str, ...]) -> Any:
    # namedtuple() takes identifiers only and none with an underscore in front.
    return namedtuple(name, fields)


class Reader:
    """Rebuilds the values of one call as exact built-in types.

    Everything here may be fed by a hostile writer: a value that is not well formed raises
    :class:`TypeError`, :class:`ValueError`, :class:`LookupError`, :class:`OverflowError` or
    :class:`ArithmeticError` and builds nothing but data.
    """

    def __init__(self, border: Border, objects: list[Any]) -> None:
        self._border = border
        self._objects = objects

    def load(self, table: list[list[Any]]) -> None:
        """Read the call's containers: new ones are built, known ones changed in place."""
        for number, content in table:
            if number == len(self._objects):
                self._objects.append(self._empty(content))
            elif not 0 <= number < len(self._objects):
                raise LookupError(f"container {number} of {len(self._objects)}")
        for number, content in table:
            self._fill(self._objects[number], content)

    def read(self, code: Any) -> Any:
        """Read one value."""
        if type(code) is list:
            return _READERS[code[0]](self, code)
        if type(code) in _INLINE or type(code) is int:
            return code
        raise TypeError(f"{type(code).__name__} is no value")

    def items(self, codes: list[Any]) -> list[Any]:
        """Read each of some values."""
        read = self.read
        return [read(code) if type(code) is list else code for code in codes]

    def container(self, number: int) -> Any:
        """The container with this number."""
        if number < 0:
            raise LookupError(f"container {number}")
        return self._objects[number]

    def handle(self, code: list[Any]) -> Any:
        """A value of the other side, by the stand-in for it."""
        _, number, kind = code
        if type(number) is not int or type(kind) is not str:
            raise TypeError("a handle is a number and a kind")
        return self._border.proxy(number, kind)

    def own(self, code: list[Any]) -> Any:
        """A value of this side that comes back."""
        return self._border.owned(code[1])

    def _empty(self, content: list[Any]) -> Any:
        if content[0] == "q":
            return deque(maxlen=content[2])
        if content[0] == "f":
            return defaultdict(self.read(content[2]))
        return _EMPTY[content[0]]()

    def _fill(self, target: Any, content: list[Any]) -> None:
        tag, body = content[0], content[1]
        if type(target) is not _EMPTY[tag]:
            raise TypeError(f"a {type(target).__name__} cannot be filled as {tag!r}")
        if tag == "l":
            target[:] = self.items(body)
        elif tag == "a":
            target[:] = body.encode("latin-1")
        elif tag in "sq":
            new = self.items(body)
            target.clear()
            (target.update if tag == "s" else target.extend)(new)
        else:
            pairs = [(self.read(key), self.read(value)) for key, value in body]
            target.clear()
            for key, value in pairs:
                target[key] = value


_EMPTY: dict[str, Callable[[], Any]] = {
    "l": list,
    "C": Counter,
    "o": OrderedDict,
    "f": defaultdict,
    "d": dict,
    "s": set,
    "a": bytearray,
    "q": deque,
}

_READERS: dict[str, Callable[[Reader, list[Any]], Any]] = {
    "r": lambda reader, code: reader.container(code[1]),
    "t": lambda reader, code: tuple(reader.items(code[1:])),
    "i": lambda reader, code: int(code[1], 16),
    "z": lambda reader, code: frozenset(reader.items(code[1:])),
    "x": lambda reader, code: code[1].encode("latin-1"),
    "c": lambda reader, code: complex(code[1], code[2]),
    "g": lambda reader, code: range(*reader.items(code[1:])),
    "e": lambda reader, code: slice(*reader.items(code[1:])),
    "k": lambda reader, code: dict.fromkeys(reader.items(code[1:])).keys(),
    "m": lambda reader, code: {reader.read(k): reader.read(v) for k, v in code[1:]}.items(),
    "n": lambda reader, code: _named(code[1], tuple(code[2]))(*reader.items(code[3])),
    "b": lambda reader, code: _CONSTANTS[code[1]],
    "D": lambda reader, code: Decimal(code[1]),
    "F": lambda reader, code: Fraction(reader.read(code[1]), reader.read(code[2])),
    "P": lambda reader, code: timedelta(code[1], code[2], code[3]),
    "N": lambda reader, code: datetime.fromisoformat(code[1]),
    "Y": lambda reader, code: date.fromisoformat(code[1]),
    "T": lambda reader, code: time.fromisoformat(code[1]),
    "h": Reader.handle,
    "y": Reader.own,
}
