"""Built-in classes by name, and a user's own as ``module:Name``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from fttt.errors import UsageError

__all__ = ["Registry", "find_own", "unknown_name"]

T = TypeVar("T")


class Registry(Mapping[str, type[T]]):
    """Classes by name; the module of a class is imported when it is looked up."""

    def __init__(
        self, kind: str, places: Mapping[str, str], fault: Callable[[Any], str | None]
    ) -> None:
        """List the built-in classes.

        Args:
            kind: what they are, in the words of an error (``method``).
            places: ``module:Class`` of each, by its name.
            fault: says why something that a user named is none of that kind; ``None`` where it is.
        """
        self._kind, self._places, self._fault = kind, dict(places), fault

    def __getitem__(self, name: str) -> type[T]:
        module, _, attribute = self._places[name].partition(":")
        found: type[T] = getattr(import_module(module), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, name: str) -> type[T]:
        """The class of that name, or the one that ``module:Class`` names.

        Raises:
            UsageError: there is none, or what was found is of another kind.
        """
        if name in self._places:
            return self[name]
        if ":" not in name:
            raise unknown_name(self._kind, name, self, own="a class of your own is module:Class")
        found = find_own(name, self._kind)
        if fault := self._fault(found):
            raise UsageError(f"{name!r} is no {self._kind}: {fault}.")
        own: type[T] = found
        return own


def unknown_name(kind: str, name: str, known: Collection[str], own: str = "") -> UsageError:
    """The error of a name that does not exist, with the nearest one that does.

    Args:
        kind: what was looked for, in the singular.
        name: what the user wrote.
        known: the names that exist.
        own: what else may be named.
    """
    near = _nearest(name.lower(), known)
    hint = f"did you mean {near!r}? The {kind}s are" if near else "choose from"
    return UsageError(
        f"There is no {kind} {name!r}; {hint} {', '.join(known)}{own and f'; {own}'}."
    )


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant: much alike, or alike with the same first letter."""
    alike = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    sure = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return next((one for one in alike if one in sure or one[:1] == name[:1]), None)


def find_own(path: str, kind: str) -> Any:
    """The class or function that ``module:Name`` names.

    Modules are found as Python finds them, the working directory first.

    Args:
        path: the module and, after a colon, the name in it (``Outer.inner`` too).
        kind: the kind of thing, in the words of an error.

    Raises:
        UsageError: there is no such module, it cannot be imported, or has no such name.
    """
    module_name, _, name = path.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"The {kind} {path!r} is incomplete; name it as module:Name.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise UsageError(
            f"The module {module_name!r} of the {kind} cannot be imported "
            f"({type(error).__name__}: {error}); check its name and that it runs on its own."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"The module {module_name!r} has no {kind} {name!r}; check its name.")
        found = getattr(found, part)
    return found
