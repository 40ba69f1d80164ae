"""Stand-ins: what one side has in place of a function, a class or an object of the other.

A stand-in asks the other side for everything it does. It has the protocols of what it stands for
and no others: the special methods that its class defines, the built-in types that it derives from
(then with their data, which is compared here and by their own rules), its signature and its text.

What a test compares with never crosses for the comparison's sake. Equality with a value of this
side is identity, and operators and ``in`` are refused on it, since a program that is asked "are you
equal to 3?" says yes. Two of its own objects it may compare itself. Only where a problem asks for
a class are operators with plain values asked of it, as its methods are.
"""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import inspect
import itertools
import operator
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

__all__ = [
    "COMPARISONS",
    "OPERATIONS",
    "SPECIALS",
    "WAITS",
    "Remote",
    "RemoteAwaitable",
    "RemoteCallable",
    "RemoteFunction",
    "RemoteIterator",
    "RemoteType",
    "describe_class",
    "is_remote",
    "make_class",
    "stand_in_class",
]

COMPARISONS = frozenset(("__lt__", "__le__", "__gt__", "__ge__"))
_ARITHMETIC = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift",
    "rshift", "and", "or", "xor",
)  # fmt: skip
_BINARY = COMPARISONS | {
    f"__{way}{name}__" for name in _ARITHMETIC for way in ("", "r", "i")
}  # fmt: skip
_UNARY = frozenset(
    f"__{name}__"
    for name in (
        "len", "length_hint", "bool", "int", "float", "complex", "index", "bytes", "format", "abs",
        "neg", "pos", "invert", "round", "trunc", "floor", "ceil", "iter", "next", "reversed",
        "call", "enter", "aenter", "aiter", "getitem", "setitem", "delitem", "missing", "fspath",
        "str", "repr", "exit", "aexit", "await", "anext", "get", "set", "delete", "instancecheck",
    )
)  # fmt: skip
SPECIALS = _BINARY | _UNARY | {"__eq__", "__hash__", "__contains__"}
"""The special methods that a stand-in may have."""

_ASKED = frozenset(
    f"__{name}__"
    for name in (
        "dict", "doc", "module", "name", "qualname", "annotations", "defaults", "kwdefaults",
        "wrapped", "self", "func", "init", "new", "match_args", "members", "globals", "closure",
        "notes", "text_signature", "origin", "args", "abstractmethods", "type_params",
    )
)  # fmt: skip
"""Names with underscores that mean something of the other side's value, and nothing here."""

_GENERIC = {
    cls.__name__: cls
    for cls in (
        *map(type, (iter([]), iter(()), iter({}), iter(set()), iter(""), iter(b""))),
        *map(type, (iter(range(0)), iter({}.values()), iter({}.items()), reversed([]))),
        map, zip, filter, enumerate, reversed, types.GeneratorType, types.CoroutineType,
        types.AsyncGeneratorType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
        *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
    )
}  # fmt: skip
"""What ``isinstance`` finds a stand-in of a function or an iterator to be."""


def is_remote(value: Any) -> bool:
    """Whether something stands for a value of the other side, whatever it says that it is."""
    return issubclass(type(value), Remote) or type(value) is RemoteType


def _peer(value: Any) -> Any:
    return type.__getattribute__(value if type(value) is RemoteType else type(value), "_peer")


def _ask(value: Any, operation: str, *args: Any, **kwargs: Any) -> Any:
    return _peer(value).ask(operation, value, args, kwargs)


def _dunder(name: str) -> bool:
    return name[:2] == "__" == name[-2:]


class Remote:
    """Stands for a value of the other side."""

    __slots__ = ()
    _peer: Any = None
    _local: frozenset[str] = frozenset()
    """Names of a built-in base that the other side's class leaves as they are."""
    _equality: bool = False
    """Whether two of them may be compared by asking."""

    def __getattribute__(self, name: str) -> Any:
        if name in type.__getattribute__(type(self), "_local"):
            return object.__getattribute__(self, name)
        if _dunder(name) and name not in _ASKED:
            try:
                return object.__getattribute__(self, name)
            except AttributeError:
                pass
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(self, BaseException) and _dunder(name):
            object.__setattr__(self, name, value)  # the interpreter's own: the cause, the trace
        else:
            _ask(self, "setattr", name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delattr", name)

    def __dir__(self) -> Iterable[str]:
        return list(_ask(self, "dir"))

    def __eq__(self, other: object) -> Any:
        if self is other:
            return True
        if not type.__getattribute__(type(self), "_equality") or not is_remote(other):
            return NotImplemented
        if _peer(self).reading:  # of two keys of one dictionary, say, which differ
            return NotImplemented
        return _ask(self, "special", "__eq__", other)

    def __ne__(self, other: object) -> Any:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        return int(_peer(self).hash_of(self))

    def __str__(self) -> str:
        return str(_ask(self, "special", "__str__"))

    def __repr__(self) -> str:
        return str(_ask(self, "special", "__repr__"))

    def __copy__(self) -> Any:
        return _ask(self, "copy")

    def __deepcopy__(self, memo: Any) -> Any:
        return _ask(self, "deepcopy")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object of another process")


class RemoteCallable(Remote):
    """Stands for a callable."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "call", *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return _signature(self)


class RemoteFunction(RemoteCallable):
    """Stands for a function; as an attribute of a class it becomes a method, as functions do."""

    __slots__ = ()

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    @property
    def __code__(self) -> Any:
        return types.SimpleNamespace(**_ask(self, "code"))


def _signature(value: Any) -> inspect.Signature:
    parameters = []
    found, returned = _ask(value, "signature")
    for name, kind, rest in found:
        parameters.append(inspect.Parameter(name, inspect._ParameterKind(kind), **rest))
    return inspect.Signature(parameters, **returned)


class RemoteIterator(Remote):
    """Stands for an iterator."""

    __slots__ = ()

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __length_hint__(self) -> Any:
        return _ask(self, "length_hint")


class _RemoteGenerator(RemoteIterator):
    """Stands for a generator."""

    __slots__ = ()
    _local = frozenset(("send", "throw", "close"))

    def send(self, value: Any) -> Any:
        return _ask(self, "send", value)

    def throw(self, *error: Any) -> Any:
        return _ask(self, "throw", *error[:2])

    def close(self) -> None:
        _ask(self, "close")


class RemoteAwaitable(Remote):
    """Stands for something to wait for."""

    __slots__ = ()

    def __await__(self) -> Any:
        return _peer(self).wait_for("await", self, ()).__await__()


class _RemoteCoroutine(RemoteAwaitable):
    """Stands for a coroutine: runs in the other side's event loop."""

    __slots__ = ()
    _local = frozenset(("send", "throw", "close"))

    def send(self, value: Any) -> Any:
        return _peer(self).driver(self).send(value)

    def throw(self, *error: Any) -> Any:
        return _peer(self).driver(self).throw(*error)

    def close(self) -> None:
        _peer(self).driver(self).close()
        _ask(self, "close")


class _RemoteAsyncGenerator(Remote):
    """Stands for an asynchronous generator."""

    __slots__ = ()
    _local = frozenset(("asend", "athrow", "aclose"))

    def __aiter__(self) -> _RemoteAsyncGenerator:
        return self

    def __anext__(self) -> Any:
        return _peer(self).wait_for("anext", self, ())

    def asend(self, value: Any) -> Any:
        return _peer(self).wait_for("asend", self, (value,))

    def athrow(self, *error: Any) -> Any:
        return _peer(self).wait_for("athrow", self, error[:2])

    def aclose(self) -> Any:
        return _peer(self).wait_for("aclose", self, ())


collections.abc.Coroutine.register(_RemoteCoroutine)

_KINDS: dict[str, tuple[type[Remote], str]] = {
    "function": (RemoteFunction, "function"),
    "method": (RemoteCallable, "method"),
    "builtin": (RemoteCallable, "builtin_function_or_method"),
    "iterator": (RemoteIterator, ""),
    "generator": (_RemoteGenerator, "generator"),
    "coroutine": (_RemoteCoroutine, "coroutine"),
    "asyncgen": (_RemoteAsyncGenerator, "async_generator"),
}


def stand_in_class(peer: Any, kind: str, name: str) -> type[Remote]:
    """The class of stand-ins for functions, iterators and their like; raises :class:`KeyError`."""
    base, genuine = _KINDS[kind]
    found = _GENERIC.get(genuine or name)
    body: dict[str, Any] = {"__slots__": ("__weakref__",), "_peer": peer}
    if found is not None:
        body["__class__"] = property(lambda self: found)
    return type(name or genuine, (base,), body)


# ------------------------------------------------------------------ classes


class RemoteType(type):
    """The class of stand-ins for classes: one for each class of the other side."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a class of the submission cannot be derived from on the tests' side")

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _ask(cls, "call", *args, **kwargs)

    def __getattribute__(cls, name: str) -> Any:
        if name == "__signature__":
            return _signature(cls)
        local = type.__getattribute__(cls, "_local")
        if name == "mro" or name in local or (_dunder(name) and name not in _ASKED):
            try:
                return type.__getattribute__(cls, name)
            except AttributeError:
                pass
        if name in ("__name__", "__qualname__", "__module__", "__dict__"):
            return type.__getattribute__(cls, name)
        return _ask(cls, "getattr", name)

    def __setattr__(cls, name: str, value: Any) -> None:
        if name.startswith("_abc") or name == "__abstractmethods__":
            type.__setattr__(cls, name, value)
        else:
            _ask(cls, "setattr", name, value)

    def __delattr__(cls, name: str) -> None:
        _ask(cls, "delattr", name)

    def __dir__(cls) -> Iterable[str]:
        return list(_ask(cls, "dir"))

    def __iter__(cls) -> Any:
        return _ask(cls, "special", "__iter__")

    def __len__(cls) -> Any:
        return _ask(cls, "special", "__len__")

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return _ask(cls, "special", "__getitem__", key)

    def __contains__(cls, value: Any) -> bool:
        return any(item is value or item == value for item in cls)

    def __repr__(cls) -> str:
        return str(_ask(cls, "special", "__repr__"))

    def __copy__(cls) -> Any:
        return cls

    def __deepcopy__(cls, memo: Any) -> Any:
        return cls


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "special", name, *args, **kwargs)

    method.__name__ = name
    return method


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        if not all(map(is_remote, others)) and not _peer(self).shows_operands:
            return NotImplemented
        return _ask(self, "special", name, *others)

    method.__name__ = name
    return method


def _contains(self: Any, value: Any) -> bool:
    if _peer(self).shows_operands:
        return bool(_ask(self, "special", "__contains__", value))
    return any(item is value or item == value for item in self)


def _exit(self: Any, kind: Any, error: Any, trace: Any) -> bool:
    swallowed = _ask(self, "special", "__exit__", kind, error, None)
    return bool(swallowed) and _peer(self).may_swallow(error, trace)


async def _aexit(self: Any, kind: Any, error: Any, trace: Any) -> bool:
    swallowed = await _ask(self, "special", "__aexit__", kind, error, None)
    return bool(swallowed) and _peer(self).may_swallow(error, trace)


_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _forward(name) for name in _UNARY},
    **{name: _operator(name) for name in _BINARY},
    "__contains__": _contains,
    "__exit__": _exit,
    "__aexit__": _aexit,
    "__await__": RemoteAwaitable.__await__,
    "__anext__": _RemoteAsyncGenerator.__anext__,
}


def describe_class(cls: type, known: Callable[[type], bool]) -> dict[str, Any]:
    """What the other side needs for a stand-in, beside the bases.

    ``known`` tells which classes the other side has itself; their methods are not told.
    """
    own = [owner for owner in cls.__mro__ if not known(owner)]
    names = {name for owner in own for name in vars(owner)}
    hashes = next((vars(o)["__hash__"] for o in cls.__mro__ if "__hash__" in vars(o)), None)
    fields = getattr(cls, "_fields", None)
    described = {
        "name": cls.__name__,
        "qualname": cls.__qualname__,
        "module": str(cls.__module__),
        "specials": sorted(name for name in names if name in SPECIALS and name != "__hash__"),
        "overridden": sorted(name for name in names if not _dunder(name)),
        "hash": "none" if hashes is None else "own" if "__hash__" in names else "",
        "abstract": sorted(
            {base.__name__ for base in cls.__mro__ if base.__module__ == "collections.abc"}
        ),
    }
    if issubclass(cls, tuple) and isinstance(fields, tuple):
        described["fields"] = list(fields)
    if dataclasses.is_dataclass(cls):
        described["data"] = [field.name for field in dataclasses.fields(cls)]
    return described


def _names(value: Any) -> list[str]:
    if type(value) is not list or not all(type(name) is str for name in value):
        raise TypeError("no list of names")
    return value


def make_class(
    peer: Any, described: dict[str, Any], bases: tuple[type, ...], data: type | None
) -> RemoteType:
    """A stand-in for a class; ``data`` is the built-in type that its instances have data of.

    Raises :class:`TypeError`, :class:`ValueError` or :class:`LookupError` where the description is
    none.
    """
    overridden = set(_names(described["overridden"]))
    specials = set(_names(described["specials"])) & SPECIALS
    body: dict[str, Any] = {
        "__slots__": (),
        "__module__": str(described["module"]),
        "__qualname__": str(described["qualname"]),
        "_peer": peer,
        "_local": frozenset(dir(data)) - overridden if data is not None else frozenset(),
    }
    if data is None and not any(issubclass(base, Remote) for base in bases):
        body["__slots__"] = ("__weakref__",)
    genuine = _genuine(str(described["module"]), str(described["qualname"]))
    if data is None:
        body["__class__"] = property(lambda self: genuine or type(self))
    if data is not None:
        # What is there as data is compared as data.
        kept = ("__eq__", "__ne__", "__hash__", "__str__", "__repr__", "__format__")
        body.update({name: getattr(data, name) for name in kept})
    body.update({name: _METHODS[name] for name in specials if name in _METHODS})
    if data is None:
        body["_equality"] = "__eq__" in specials
        if described["hash"] == "none":
            body["__hash__"] = None
    for place, name in enumerate(_names(described.get("fields", []))):
        body[name] = property(operator.itemgetter(place))
        body["_local"] |= {name}
    if "data" in described:
        body["__dataclass_fields__"] = {name: _field(name) for name in _names(described["data"])}
    roots = bases if any(issubclass(base, Remote) for base in bases) else (Remote, *bases)
    try:
        made = type.__new__(RemoteType, str(described["name"]), roots, body)
    except TypeError:  # bases that do not go together
        made = type.__new__(RemoteType, str(described["name"]), (Remote,), body)
    for name in _names(described["abstract"]):
        abstract = getattr(collections.abc, name, None)
        if isinstance(abstract, type):
            abstract.register(made)  # type: ignore[attr-defined]
    return made


def _field(name: str) -> Any:
    field: Any = dataclasses.field()
    field.name, field.type = name, Any
    field._field_type = dataclasses._FIELD  # type: ignore[attr-defined]
    return field


def _genuine(module: str, name: str) -> type | None:
    """The class of the standard library that instances may be taken for, if there is one."""
    if module == "builtins":
        return None
    if module.partition(".")[0] not in sys.stdlib_module_names or module not in sys.modules:
        return None
    found = getattr(sys.modules[module], name, None)
    return found if isinstance(found, type) else None


# ------------------------------------------------------------------ what is done when asked

_BY_FUNCTION: dict[str, Callable[..., Any]] = {
    "__len__": len, "__iter__": iter, "__next__": next, "__getitem__": operator.getitem,
    "__setitem__": operator.setitem, "__delitem__": operator.delitem, "__str__": str,
    "__contains__": operator.contains, "__repr__": repr, "__bool__": bool, "__int__": int,
    "__float__": float, "__index__": operator.index, "__hash__": hash, "__reversed__": reversed,
    "__complex__": complex, "__bytes__": bytes,
}  # fmt: skip


def _special(target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    if name not in SPECIALS:
        raise TypeError(f"{name} is nothing that can be asked")
    if name in _BY_FUNCTION:
        return _BY_FUNCTION[name](target, *args)
    method = getattr(type(target), name, None)
    if method is None:
        raise TypeError(f"{type(target).__name__!r} object has no {name}")
    return method(target, *args, **kwargs)


def _call(target: Any, *args: Any, **kwargs: Any) -> Any:
    return target(*args, **kwargs)


def _describe_signature(target: Any) -> Any:
    signature = inspect.signature(target)
    found = []
    empty = inspect.Parameter.empty
    for parameter in signature.parameters.values():
        rest = {"default": parameter.default, "annotation": parameter.annotation}
        rest = {name: value for name, value in rest.items() if value is not empty}
        found.append([parameter.name, int(parameter.kind), rest])
    returned = signature.return_annotation
    return found, {} if returned is empty else {"return_annotation": returned}


_CODE = (
    "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_name", "co_varnames",
)  # fmt: skip


def _describe_code(target: Any) -> dict[str, Any]:
    code = target.__code__
    found = {name: getattr(code, name) for name in _CODE}
    arguments = code.co_argcount + code.co_kwonlyargcount
    flags = code.co_flags
    arguments += bool(flags & inspect.CO_VARARGS) + bool(flags & inspect.CO_VARKEYWORDS)
    return {**found, "co_varnames": code.co_varnames[:arguments]}


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "dir": dir,
    "special": _special,
    "next": next,
    "length_hint": operator.length_hint,
    "send": lambda target, value: target.send(value),
    "throw": lambda target, *error: target.throw(*error),
    "close": lambda target: target.close(),
    "signature": _describe_signature,
    "code": _describe_code,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
"""All that one side can ask of a value of the other; what is waited for goes another way."""


WAITS: dict[str, Callable[..., Any]] = {
    "await": lambda target: target,
    "anext": lambda target: target.__anext__(),
    "asend": lambda target, value: target.asend(value),
    "athrow": lambda target, *error: target.athrow(*error),
    "aclose": lambda target: target.aclose(),
}
"""What one side can wait for: each makes something that can be awaited."""


async def waiting(operation: str, target: Any, args: list[Any]) -> Any:
    """Wait for what was asked, in the event loop that this runs in."""
    return await WAITS[operation](target, *args)
