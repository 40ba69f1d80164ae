"""An append-only file of JSON lines that survives kills and full disks."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fttt.errors import RunError, UsageError
from fttt.files import cannot_write, hold

__all__ = ["LineFile", "read_lines"]

_SYNC_SECONDS = 1.0
"""How old an unsynced line may grow while lines keep coming. Only a power cut can lose it."""


class LineFile:
    """JSON lines, each handed to the operating system before ``append`` returns.

    A killed process therefore loses nothing that was appended. ``fsync``, which guards against a
    power cut, is grouped to about one a second, so that tens of thousands of lines cost little.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending; a torn last line of an earlier process is cut off.

        Raises:
            UsageError: another process appends to the same file.
            RunError: the file cannot be opened.
        """
        self.path = path
        self._broken: RunError | None = None
        self._synced = time.monotonic()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            hold(self._fd, path.parent)
            self._size = _whole_lines(path)
            if path.is_file():
                os.ftruncate(self._fd, self._size)
        except OSError as error:
            self._release()
            raise _cannot_write(path, error) from error
        except UsageError:
            self._release()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            RunError: it could not be written; the file ends with the last whole line.
        """
        if self._broken is not None:
            raise self._broken
        data = (json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n").encode(
            "utf-8", "surrogatepass"
        )
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            self._fail(error)
        self._size += len(data)

    def sync(self) -> None:
        """Wait until the disk holds every line."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            if self.path.is_file():  # a pipe or a device has no disk behind it
                self._fail(error)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close. Calling it twice is harmless."""
        if self._fd < 0:
            return
        try:
            if self._broken is None:
                self.sync()
        finally:
            self._release()

    def _release(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _fail(self, error: OSError) -> None:
        self._broken = _cannot_write(self.path, error)
        with contextlib.suppress(
            OSError
        ):  # else the next process to open the file cuts the line off
            os.ftruncate(self._fd, self._size)
        raise self._broken from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; a torn last line is left out.

    Raises:
        UsageError: the file cannot be read, or a line other than the last is no JSON object.
    """
    try:
        with path.open("rb") as file:
            pending: tuple[int, str] | None = None
            for number, line in enumerate(file, start=1):
                if pending is not None:
                    raise UsageError(_no_record(path, pending))
                record = _parse(line)
                if record is None:
                    pending = (number, line[:40].decode("utf-8", "replace").strip())
                    continue
                yield record
    except OSError as error:
        raise UsageError(f"Cannot read {str(path)!r}: {error.strerror}.") from error


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record on a line, or ``None`` where the line is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    if not path.is_file():
        return 0
    end = 0
    last_start, last = 0, b""
    with path.open("rb") as file:
        for line in file:
            last_start, last = end, line
            end += len(line)
    return last_start if last and _parse(last) is None else end


def _no_record(path: Path, line: tuple[int, str]) -> str:
    number, text = line
    return (
        f"Line {number} of {str(path)!r} is no record of a run: {text!r}; "
        "restore the file from a copy or start a new run."
    )


def _cannot_write(path: Path, error: OSError) -> RunError:
    command = f"fttt run --resume {path.parent}"
    advice = f"make room or fix the folder's permissions, then resume with `{command}`"
    return cannot_write(path, error, advice)
