"""What runs inside the sandbox: standard library only, so that it can start without this package.

The folder is bound read-only into the sandbox as a top-level package called ``box`` and run by a
bare interpreter; nothing here may import another part of ``fttt``.

Its modules are imported by :func:`import_zygote`, which compiles them in processes of their own
where that has not been done: what compiling leaves in the memory would lie between what stays, and
every box would copy the holes.
"""

from __future__ import annotations

import marshal
import os
import sys
from importlib.machinery import FileFinder, SourceFileLoader
from types import CodeType
from typing import Any

__all__ = ["import_zygote"]

_HERE = os.path.dirname(__file__)  # noqa: PTH120  (pathlib would stay in every box)


class _Loader(SourceFileLoader):
    """The standard loader, but for the place where it compiles."""

    def source_to_code(self, *given: Any, **options: Any) -> CodeType:  # type: ignore[override]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = super().source_to_code(*given, **options)
            with os.fdopen(write, "wb") as file:
                marshal.dump(code, file)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            content = file.read()
        os.waitpid(pid, 0)
        found: CodeType = marshal.loads(content)
        return found


def _find(path: str) -> FileFinder:
    if path != _HERE:
        raise ImportError(f"{path} is no place of the box's modules")
    return FileFinder(path, (_Loader, [".py"]))


def import_zygote() -> Any:
    """The zygote's module."""
    sys.path_hooks.insert(0, _find)
    sys.path_importer_cache.pop(_HERE, None)
    from . import zygote

    sys.path_hooks.remove(_find)
    return zygote
