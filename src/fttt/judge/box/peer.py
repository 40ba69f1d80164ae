"""Calls over the border: each side asks the other, and answers while it waits.

A request names an operation, a handle and arguments. The answer carries the result or the
exception, and the containers among the arguments that were changed in place. While a side waits
for its answer it serves the other's requests, so that callbacks work to any depth.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, ClassVar

from .channel import BrokenBorder, Channel
from .values import Reader, Writer

__all__ = ["OPERATIONS", "CandidateError", "Peer", "Remote", "RemoteIterator"]

_MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
_EXCEPTIONS = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
# These steer the interpreter: raised out of a call, they would end a loop, an ``all()`` or the
# whole check as if nothing were wrong.
_STEERING = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt)


def _call(target: Any, *args: Any, **kwargs: Any) -> Any:
    return target(*args, **kwargs)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "delitem": lambda target, key: target.__delitem__(key),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
    "isinstance": lambda target, value: isinstance(value, target),
    "enter": lambda target: target.__enter__(),
    "exit": lambda target, error=None: target.__exit__(type(error), error, None),
}
"""All that one side can ask of a value of the other."""


class CandidateError(RuntimeError):
    """What the other side raised, where that exception must not pass as itself."""


class Remote:
    """Stands for a value of the other side that is not plain data.

    Equality is identity and never asks the other side; so do no operators, which would show it the
    value that a test compares with. Everything that reads (attributes, items, length, text) asks.
    """

    __slots__ = ("_remote",)

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_remote", (peer, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delattr", name)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "delitem", key)

    def __iter__(self) -> Any:
        iterator = _ask(self, "iter")
        return iterator if isinstance(iterator, RemoteIterator) else iter(iterator)

    def __contains__(self, value: Any) -> bool:
        return any(item == value for item in self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(_ask(self, "isinstance", value))

    def __enter__(self) -> Any:
        return _ask(self, "enter")

    def __exit__(self, *error: Any) -> bool:
        return bool(_ask(self, "exit", *error[1:2]))

    def __len__(self) -> int:
        return int(_ask(self, "len"))

    def __bool__(self) -> bool:
        return bool(_ask(self, "bool"))

    def __int__(self) -> int:
        return int(_ask(self, "int"))

    def __float__(self) -> float:
        return float(_ask(self, "float"))

    def __str__(self) -> str:
        return str(_ask(self, "str"))

    def __repr__(self) -> str:
        return str(_ask(self, "repr"))


class RemoteIterator(Remote):
    """Stands for an iterator of the other side."""

    __slots__ = ()

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return _ask(self, "next")


def _ask(remote: Remote, operation: str, *args: Any, **kwargs: Any) -> Any:
    peer, number = object.__getattribute__(remote, "_remote")
    return peer.ask(operation, number, args, kwargs)


class Peer:
    """One side of the border. Subclasses say what may be exported and done (:meth:`perform`)."""

    kinds: ClassVar[dict[str, type[Remote]]] = {"iterator": RemoteIterator}

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._exports: list[Any] = []
        self._export_numbers: dict[int, int] = {}
        self._proxies: dict[int, Remote] = {}
        self._exception_types: dict[tuple[str, str], type[BaseException]] = {}
        self.broken: str | None = None
        """Why the border is closed, once it is; no verdict after that can be a pass."""

    def export(self, value: Any) -> list[Any]:
        """Write a value of this side as a handle, or one of the other side as it came."""
        if isinstance(value, Remote):
            return ["y", object.__getattribute__(value, "_remote")[1]]
        kind = self.kind(value)
        number = self._export_numbers.get(id(value))
        if number is None:
            number = self._export_numbers[id(value)] = len(self._exports)
            self._exports.append(value)
        return ["h", number, kind]

    def owned(self, number: int) -> Any:
        """The value exported under ``number``."""
        if number < 0:
            raise LookupError(f"handle {number}")
        return self._exports[number]

    def proxy(self, number: int, kind: str) -> Remote:
        """The one stand-in for the other side's value ``number``."""
        if number not in self._proxies:
            self._proxies[number] = self.kinds.get(kind, Remote)(self, number)
        return self._proxies[number]

    def kind(self, value: Any) -> str:
        """What sort of handle a value gets; :class:`TypeError` where it may not cross."""
        raise NotImplementedError

    def perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Do what the other side asked for."""
        raise NotImplementedError

    def ask(
        self, operation: str, number: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Have the other side do something; raises what it raised."""
        if self.broken is not None:
            raise BrokenBorder(self.broken)
        objects: list[Any] = []
        writer = Writer(self, objects)
        request = [operation, number, writer.items(args), writer.pairs(kwargs)]
        try:
            self._send({"ask": request, "table": writer.table})
            while "ask" in (message := self._channel.receive()):
                self.serve(message)
            reader = Reader(self, objects)
            reader.load(message["table"])
            if "value" in message:
                return reader.read(message["value"])
            error = self._rebuild(message["error"], reader, operation)
        except BrokenBorder as broken:
            self.broken = str(broken)
            raise
        except _MALFORMED as malformed:
            self.broken = f"an answer that is no plain data ({type(malformed).__name__})"
            raise BrokenBorder(self.broken) from malformed
        raise error

    def _send(self, request: dict[str, Any]) -> None:
        try:
            self._channel.send(request)
        except ValueError as large:
            raise BrokenBorder(str(large)) from large

    def serve(self, message: dict[str, Any]) -> None:
        """Answer one request of the other side."""
        objects: list[Any] = []
        reader = Reader(self, objects)
        reader.load(message["table"])
        operation, number, args, kwargs = message["ask"]
        target = None if number is None else self.owned(number)
        values, names = reader.items(args), {reader.read(k): reader.read(v) for k, v in kwargs}
        writer = Writer(self, objects)
        answer: dict[str, Any] = {}
        try:
            result = self.perform(operation, target, values, names)
            answer["value"] = writer.write(result)
        except BrokenBorder:
            raise
        except BaseException as error:
            answer = {"error": self._describe(error, writer)}
        writer.changes(message["table"])
        try:
            self._channel.send({**answer, "table": writer.table})
        except ValueError as large:
            self._channel.send({"error": ["ValueError", "ValueError", [str(large)]], "table": []})

    def _describe(self, error: BaseException, writer: Writer) -> list[Any]:
        base = next(c.__name__ for c in type(error).__mro__ if _EXCEPTIONS.get(c.__name__) is c)
        try:
            args = writer.items(error.args)
        except Exception:
            args = [str(error)]
        return [type(error).__name__, base, args]

    def _rebuild(self, code: list[Any], reader: Reader, operation: str) -> BaseException:
        name, base, args = code
        values = reader.items(args)
        kind = _EXCEPTIONS[base]
        if issubclass(kind, StopIteration) and operation == "next":
            return StopIteration(*values)
        if issubclass(kind, _STEERING):
            return CandidateError(f"raised {name}")
        kind = self.exception_type(name, base)
        try:
            return kind(*values)
        except Exception:  # UnicodeDecodeError and its like want arguments of their own
            return CandidateError(f"raised {name}")

    def exception_type(self, name: str, base: str) -> type[BaseException]:
        """The built-in exception ``base``, or this side's own subclass of it for ``name``."""
        kind = _EXCEPTIONS[base]
        if name == base:
            return kind
        key = (str(name), base)
        if key not in self._exception_types:
            self._exception_types[key] = type(key[0], (kind,), {})
        return self._exception_types[key]
