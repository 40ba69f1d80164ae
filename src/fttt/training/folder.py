"""The folder of a training: begun empty, written by one process at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fttt.errors import UsageError, cannot_write, is_a_file
from fttt.lock import hold

__all__ = ["begin_folder", "held_folder"]


def begin_folder(folder: Path, command: str) -> None:
    """Make a folder for a new training.

    Args:
        folder: new or empty.
        command: what goes on with a training, without the folder, for the sentence.

    Raises:
        UsageError: it holds something, or is a file.
        RunError: it cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise is_a_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = any(folder.iterdir())
    except OSError as error:
        raise cannot_write(folder, error) from error
    if held:
        begun = (folder / "config.toml").is_file()
        go_on = f", or go on with the training in it by `{command} {folder}`" if begun else ""
        raise UsageError(
            f"The folder {str(folder)!r} is not empty; name another with --out{go_on}."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in ``folder`` until the block ends.

    Raises:
        UsageError: another process trains there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        hold(handle, folder)
        yield
    finally:
        os.close(handle)
