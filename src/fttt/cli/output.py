"""Where a command writes: the folder that was named, or a fresh one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from fttt.errors import cannot_write
from fttt.naming import file_name

__all__ = ["output_folder"]


@contextmanager
def output_folder(out: Path | None, name: str) -> Iterator[Path]:
    """The folder ``out``; without it one under ``outputs/``, named by ``name`` and the time.

    That one is made here, so that no other command has it, and taken away again where nothing was
    begun in it.

    Raises:
        RunError: it cannot be made.
    """
    if out is not None:
        yield out
        return
    folder = _made(file_name(name, datetime.now().strftime("%Y%m%d-%H%M%S")))
    try:
        yield folder
    finally:
        with suppress(OSError):  # it holds something
            folder.rmdir()
            folder.parent.rmdir()


def _made(name: str) -> Path:
    for number in count(1):
        folder = Path("outputs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder
    raise AssertionError("unreachable")
