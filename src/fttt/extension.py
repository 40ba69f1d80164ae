"""What a user wrote outside of this package, named as ``module:Name``."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from fttt.errors import UsageError

__all__ = ["find_own"]


def find_own(path: str, what: str) -> Any:
    """The class or function that ``module:Name`` names.

    Modules are found as Python finds them, the working directory first.

    Args:
        path: the module and, after a colon, the name in it (``Outer.inner`` too).
        what: what is looked for, in the words of an error.

    Raises:
        UsageError: there is no such module, it cannot be imported, or has no such name.
    """
    module_name, _, name = path.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"The {what} {path!r} is incomplete; name it as module:Name.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise UsageError(
            f"The module {module_name!r} of the {what} cannot be imported "
            f"({type(error).__name__}: {error}); check its name and that it runs on its own."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"The module {module_name!r} has no {what} {name!r}; check its name.")
        found = getattr(found, part)
    return found
