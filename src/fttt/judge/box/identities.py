"""What has a number on both sides of the border, and how it is written and read.

Functions, objects and classes stay where they are, and the other side gets a stand-in. Containers
have a replica on each side, and so have instances of the classes that a problem's prompt defines,
since both sides have these. Exceptions are rebuilt as what they are or derive from.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections import ChainMap, UserDict, UserList, UserString
from datetime import tzinfo
from enum import Enum
from typing import Any, ClassVar

from .remote import Remote, describe_class, is_remote, make_class, stand_in_class
from .replicas import KINDS, Outgoing, ReplicaGroup, kind_of
from .values import (
    BASES,
    CONSTANTS,
    SAFE_FUNCTIONS,
    Malformed,
    Reader,
    is_safe_class,
    own_state,
    standard_name,
)

__all__ = ["CandidateError", "Identities"]

_EXCEPTIONS = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
_BY_STATE = (ChainMap, UserDict, UserList, UserString)
_DATA = frozenset((*BASES, *(kind.base for kind in KINDS), tzinfo))
# These steer the interpreter: raised out of a call, they would end a loop, an ``all()`` or the
# whole check as if nothing were wrong.
_STEERING = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt)
_ENDS = {
    "next": StopIteration,
    "send": StopIteration,
    "throw": StopIteration,
    "anext": StopAsyncIteration,
    "asend": StopAsyncIteration,
    "athrow": StopAsyncIteration,
}
_CAUSES = 5  # exceptions behind an exception that cross with it
_FUNCTIONS = {
    types.FunctionType: "function",
    types.MethodType: "method",
    types.BuiltinFunctionType: "builtin",
    type(str.lower): "builtin",
    type(int.__add__): "builtin",
    type("".__str__): "builtin",
    type(dict.fromkeys): "builtin",
    types.GeneratorType: "generator",
    types.CoroutineType: "coroutine",
    types.AsyncGeneratorType: "asyncgen",
}


class CandidateError(RuntimeError):
    """What the other side raised, where that exception must not pass as itself."""


class Identities:
    """What one side knows by number. Subclasses say what may cross."""

    parity: ClassVar[int]
    """Whose numbers these are: even ones are the tester's."""
    trusting: ClassVar[bool]
    """Whether the other side may name anything in the standard library, and end iterations."""

    def __init__(self) -> None:
        self.table: dict[int, Any] = {}
        """All that has a number, by its number."""
        self._numbers: dict[int, int] = {}
        self._next = 2 + self.parity
        self._hashes: dict[int, int | None] = {}
        self._described: dict[type, int] = {}
        self._kinds: dict[tuple[str, str], type[Remote]] = {}
        self.groups: dict[int, ReplicaGroup] = {}
        """Containers that are kept in step, by the number of each group's first."""
        self.group_of: dict[int, ReplicaGroup] = {}

    def may_cross(self, value: Any, kind: type) -> None:
        """Raises :class:`TypeError` for what the other side may not have in any form."""

    def shared_class(self, kind: type) -> str | None:
        """The name of a class that both sides have from the problem's prompt."""
        raise NotImplementedError

    def known_class(self, name: str) -> type:
        """The class that both sides have under a name."""
        raise NotImplementedError

    def number_of(self, value: Any) -> int | None:
        """The number of a value that has one."""
        return self._numbers.get(id(value))

    def enter(self, number: int, value: Any) -> None:
        """Give a value its number."""
        self.table[number] = value
        self._numbers[id(value)] = number

    def _number(self, writer: Outgoing, value: Any) -> int:
        number = self._next
        self._next += 2
        self.enter(number, value)
        writer.new.append(number)
        return number

    def new_group(self, root: int) -> ReplicaGroup:
        """A group of containers, by the number of its first."""
        if type(root) is not int:
            raise Malformed("a group without a number")
        group = self.groups[root] = ReplicaGroup(root)
        return group

    def undo(self, writer: Outgoing) -> None:
        """Forget what a message that was never sent would have shown."""
        for number in writer.new:
            value = self.table.pop(number)
            if self._numbers.get(id(value)) == number:
                del self._numbers[id(value)]
            self._hashes.pop(number, None)
            group = self.group_of.pop(number, None)
            if group is not None:
                group.discard(number)
                if not group.members:
                    self.groups.pop(group.root, None)

    def forget(self, group: ReplicaGroup) -> None:
        """Let go of containers that need no longer be kept in step."""
        for number, value in group.members.items():
            self.table.pop(number, None)
            self._numbers.pop(id(value), None)
            self.group_of.pop(number, None)
        self.groups.pop(group.root, None)

    def hash_of(self, value: Any) -> int:
        """The hash of a stand-in: its own one's, where that has one that means something."""
        number = self._numbers.get(id(value), -1)
        if number not in self._hashes:
            return object.__hash__(value)
        found = self._hashes[number]
        if found is None:
            raise TypeError(f"unhashable type: {type(value).__name__!r}")
        return found

    # -------------------------------------------------------------- writing what is no data

    def write_other(self, writer: Any, value: Any, kind: type) -> Any:
        """Write a container, a class, a function, an object or an exception."""
        number = self._numbers.get(id(value))
        if number is not None:
            group = self.group_of.get(number)
            if group is not None:
                writer.touch(group)
            return ["r", number]
        if is_remote(value):
            return self._write_copy(writer, value, kind)
        if issubclass(kind, type):
            return self._write_class(writer, value)
        if issubclass(kind, BaseException):
            return self._write_error(writer, value, kind)
        if issubclass(kind, types.ModuleType):
            return self._write_module(value)
        shape = self._shape(kind)
        if issubclass(kind, Enum):
            return self._write_member(writer, value, kind, shape)
        found = kind_of(kind)
        if found is not None or (shape and not issubclass(kind, BASES)):
            number = self._number(writer, value)
            plain = found is not None and kind is found.base
            if not plain and not shape:
                self.may_cross(value, kind)
                self._write_class(writer, kind)
            writer.introduce(number, value, own=not plain and not shape, by_state=bool(shape))
            return ["r", number]
        base = next((base for base in BASES if issubclass(kind, base)), None)
        if base is not None:
            return self._write_value(writer, value, kind, base, shape)
        known = standard_name(value) if callable(value) else None
        if known is not None and (not self.trusting or known in SAFE_FUNCTIONS):
            return ["G", *known]
        return self._write_object(writer, value, kind)

    def content(self, writer: Any, value: Any) -> list[Any]:
        """What is in a container now."""
        kind = type(value)
        shape, found = self._shape(kind), kind_of(kind)
        inner = [found.tag, *found.content(writer, value)] if found is not None else None
        if inner is not None and found is not None and kind is found.base:
            return inner
        if shape is None:
            return ["u", self._write_class(writer, kind), inner, None]
        state = own_state(value)
        return ["u", shape, inner, writer.pairs(state.keys(), state.values())]

    def _shape(self, kind: type) -> list[Any] | None:
        """The class of what crosses by its attributes, since both sides have that class."""
        name = self.shared_class(kind)
        if name is not None:
            return ["K", name]
        return ["G", kind.__module__, kind.__qualname__] if kind in _BY_STATE else None

    def _write_copy(self, writer: Any, value: Any, kind: type) -> Any:
        """Write a stand-in that has no number: an immutable value of the other side's class."""
        base = next((base for base in BASES if issubclass(kind, base)), None)
        if base is None:
            raise TypeError(f"a {kind.__name__} that has been forgotten")
        return ["v", self._write_class(writer, kind), writer.write_as(value, base)]

    def _write_value(
        self, writer: Any, value: Any, kind: type, base: type, shape: list[Any] | None
    ) -> Any:
        if shape is not None:
            state = own_state(value)
            pairs = writer.pairs(state.keys(), state.values())
            return ["v", shape, writer.write_as(value, base), pairs]
        self.may_cross(value, kind)
        code = ["v", self._write_class(writer, kind), writer.write_as(value, base)]
        if not getattr(value, "__dict__", None):
            return code
        number = self._number(writer, value)  # it has attributes, so it is more than its value
        writer.table.append([number, code])
        return ["r", number]

    def _write_member(
        self, writer: Any, value: Any, kind: type[Enum], shape: list[Any] | None
    ) -> Any:
        known = None if shape else standard_name(kind)
        if shape is None and known is None:
            return self._write_object(writer, value, kind)
        cls = shape or ["G", *(known or ())]
        # A combination of flags has no name of its own.
        name = value._name_ if value._name_ in kind._member_map_ else None
        return ["E", cls, name, None if name else writer.write_as(value._value_, int)]

    def _write_module(self, value: Any) -> Any:
        name = value.__name__
        if self.trusting or sys.modules.get(name) is not value:
            raise TypeError("a module may not cross")
        return ["M", name]

    def _reference(self, cls: type) -> list[Any] | None:
        """How to name a class that the other side has itself."""
        if CONSTANTS.get(cls.__name__) is cls:
            return ["b", cls.__name__]
        name = self.shared_class(cls)
        if name is not None:
            return ["K", name]
        known = standard_name(cls)
        if known is None:
            return None
        safe = is_safe_class(known) or known[0] == "typing"
        if safe or not self.trusting or issubclass(cls, BaseException | Enum):
            return ["G", *known]
        return None

    def _write_class(self, writer: Any, cls: Any) -> Any:
        number = self._numbers.get(id(cls))
        if number is not None:
            return ["r", number]
        return self._reference(cls) or self._describe(writer, cls)

    def _describe(self, writer: Any, cls: Any) -> Any:
        """Write a class by a description, for a stand-in of it or of its instances."""
        number = self._described.get(cls)
        if number is not None and number in self.table:
            return ["r", number]
        self.may_cross(cls, type(cls))
        bases = [
            self._write_class(writer, base)
            for base in cls.__bases__
            if _is_data(base) or self._reference(base) is None or self.shared_class(base)
        ]
        data = next((base for base in cls.__mro__ if _is_data(base)), None)
        described = describe_class(cls, lambda owner: owner is object or _is_data(owner))
        number = self._next
        if self._reference(cls) is None:
            self._number(writer, cls)
        else:  # both sides have it; the number is only the stand-in's
            self._next += 2
            self.table[number] = cls
            writer.new.append(number)
        self._described[cls] = number
        content = ["c", described, bases, None if data is None else self._reference(data)]
        writer.table.append([number, content])
        return ["r", number]

    def _write_object(self, writer: Any, value: Any, kind: type) -> Any:
        self.may_cross(value, kind)
        name = _FUNCTIONS.get(kind)
        if name is None and kind.__module__ in ("builtins", "itertools"):
            name = "iterator" if hasattr(kind, "__next__") else None
        hashed = None
        if name is None:
            name, cls = "object", self._describe(writer, kind)
            hashed = _own_hash(value, kind)
        else:
            cls = kind.__name__
        number = self._number(writer, value)
        writer.table.append([number, ["h", name, cls, hashed]])
        return ["r", number]

    def _write_error(self, writer: Any, error: Any, kind: type, depth: int = 0) -> Any:
        reference = self._reference(kind)
        arguments = error.__reduce__()[1] if isinstance(error, OSError) else error.args
        try:
            args = writer.items(list(arguments))
        except (TypeError, RecursionError):
            args = [str(error)]
        cause: Any = error.__cause__
        if cause is not None and depth < _CAUSES:
            number = self._numbers.get(id(cause))
            again = self._write_error(writer, cause, type(cause), depth + 1)
            cause = again if number is None else ["r", number]
        else:
            cause = None
        if reference is not None:
            state = []
            for name, value in vars(error).items():
                try:
                    state.append([name, writer.write(value)])
                except TypeError:
                    continue
            return ["!", reference, args, state, cause]
        self.may_cross(error, kind)
        cls = self._write_class(writer, kind)
        number = self._number(writer, error)
        writer.table.append([number, ["x", cls, args, cause]])
        return ["r", number]

    def write_raised(self, writer: Outgoing, error: BaseException) -> Any:
        """Write an exception that leaves this side for good."""
        seen: BaseException | None = error
        for _ in range(_CAUSES):
            if seen is None:
                break
            seen.__traceback__ = None  # whose frames would hold the arguments
            seen = seen.__cause__ or seen.__context__
        return writer.write(error)

    # -------------------------------------------------------------- reading what is no data

    def define(self, reader: Reader, number: int, content: list[Any]) -> Any:
        """Make what stands for a new value of the other side."""
        tag = content[0]
        if tag == "c":
            bases = tuple(reader.items(content[2]))
            data = None if content[3] is None else reader.read(content[3])
            if not all(isinstance(base, type) for base in bases):
                raise Malformed("a base that is no class")
            if data is not None and not _is_data(data):
                raise Malformed(f"{data!r} is no type of data")
            return make_class(self, content[1], bases, data)
        if tag == "h" and content[1] == "object":
            cls = reader.read(content[2])
            if not is_remote(cls) or type.__getattribute__(cls, "_peer") is not self:
                raise Malformed("an object without a class")
            if content[3] is not None:
                self._hashes[number] = int(content[3])
            return object.__new__(cls)
        if tag == "h":
            key = (str(content[1]), str(content[2]))
            if key not in self._kinds:
                self._kinds[key] = stand_in_class(self, *key)
            return object.__new__(self._kinds[key])
        if tag == "v":
            return reader.value_of(content)
        if tag == "x":
            error = self._new_error(reader.read(content[1]), reader.items(content[2]))
            error.__cause__ = None if content[3] is None else reader.read(content[3])
            return error
        raise Malformed(f"{tag!r} defines nothing")

    def read_error(self, reader: Reader, code: list[Any]) -> BaseException:
        """Rebuild an exception of a class that both sides have."""
        error = self._new_error(reader.read(code[1]), reader.items(code[2]))
        for name, value in code[3]:
            if type(name) is str:
                vars(error)[name] = reader.read(value)
        cause = None if code[4] is None else reader.read(code[4])
        if isinstance(cause, BaseException):
            error.__cause__ = cause
        return error

    def raisable(
        self, error: BaseException, operation: str, args: tuple[Any, ...]
    ) -> BaseException:
        """What to raise for an exception of the other side."""
        if self.trusting or not isinstance(error, _STEERING):
            return error
        name = args[0] if operation == "special" and args else operation
        end = _ENDS.get(str(name).strip("_"))
        if end is not None and type(error) is end:
            return error
        return CandidateError(f"raised {type(error).__name__}")

    def _new_error(self, kind: Any, args: list[Any]) -> BaseException:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise Malformed(f"{kind!r} is no exception")
        base = next(base for base in kind.__mro__ if _EXCEPTIONS.get(base.__name__) is base)
        if kind is base:
            try:
                return kind(*args)
            except Exception:  # UnicodeDecodeError and its like want arguments of their own
                return CandidateError(f"raised {kind.__name__}")
        try:
            error: BaseException = base.__new__(kind, *args)
        except TypeError:
            error = base.__new__(kind)
        BaseException.args.__set__(error, tuple(args))  # type: ignore[attr-defined]
        return error


def _is_data(cls: type) -> bool:
    """Whether instances of a class have data that both sides know how to hold."""
    if cls in _DATA or _EXCEPTIONS.get(cls.__name__) is cls:
        return True
    return issubclass(cls, BaseException) and standard_name(cls) is not None


def _own_hash(value: Any, kind: type) -> int | None:
    method: Any = kind.__hash__
    if method is None or method is object.__hash__:
        return None
    try:
        return hash(value)
    except Exception:
        return None
