"""Where a command writes, the folder that was named or a fresh one, and how it goes on there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

import typer

from fttt.errors import DivergedError, RunError, cannot_write
from fttt.naming import file_name

__all__ = ["output_folder", "way_on"]


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


@contextmanager
def way_on(command: str, folder: Path) -> Iterator[None]:
    """Say by which command goes on what has begun in ``folder`` and cannot end.

    Nothing is said where the error says it, or where going on would end in the same way.
    """
    try:
        yield
    except RunError as error:
        helps = not isinstance(error, DivergedError) and command not in str(error)
        if helps and any(folder.glob("*.toml")):
            typer.echo(f"fttt: Go on with {command}.", err=True)
        raise


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
