"""An append-only file of JSON lines that survives kills and full disks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fttt.errors import RunError, UsageError
from fttt.files import cannot_write, hold

__all__ = ["LineFile", "LineTail", "encode", "read_line_at", "read_lines"]

encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
"""What the lines are encoded by."""
_SYNC_SECONDS = 1.0
"""How old an unsynced line may grow while lines keep coming. Only a power cut can lose it."""


@cache
def _disk() -> ThreadPoolExecutor:
    """Threads that wait for the disk, one a file of a run."""
    return ThreadPoolExecutor(3, "fttt-disk")


class LineFile:
    """JSON lines, each handed to the operating system before ``append`` returns.

    A killed process therefore loses nothing that was appended. ``fsync``, which guards against a
    power cut, is grouped to about one a second and waits for the disk in a thread of its own, so
    that tens of thousands of lines cost little.
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
        self._syncing: Future[None] | None = None
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

    def append(self, record: Mapping[str, Any] | str) -> None:
        """Write one line: a record, or the text of one that is encoded already.

        Raises:
            RunError: it could not be written; the file ends with the last whole line.
        """
        if self._broken is not None:
            raise self._broken
        line = record if isinstance(record, str) else encode(record)
        left = data = (line + "\n").encode("utf-8", "surrogatepass")
        try:
            while (written := os.write(self._fd, left)) < len(left):
                left = left[written:]
        except OSError as error:
            self._fail(error)
        self._size += len(data)
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            self._synced_before()
            self._syncing = _disk().submit(os.fsync, self._fd)
            self._synced = time.monotonic()

    def sync(self) -> None:
        """Wait until the disk holds every line.

        Raises:
            RunError: it does not.
        """
        self._synced_before()
        self._syncing = _disk().submit(os.fsync, self._fd)
        self._synced_before()

    def _synced_before(self) -> None:
        """Wait for the last sync, which seldom takes as long as the time between two."""
        syncing, self._syncing = self._syncing, None
        try:
            if syncing is not None:
                syncing.result()
        except OSError as error:
            if self.path.is_file():  # a pipe or a device has no disk behind it
                self._fail(error)

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
        if self._syncing is not None:
            wait((self._syncing,))
        os.close(self._fd)
        self._fd = -1

    def _fail(self, error: OSError) -> None:
        self._broken = _cannot_write(self.path, error)
        with suppress(OSError):  # else the next process to open the file cuts the line off
            os.ftruncate(self._fd, self._size)
        raise self._broken from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; a torn last line is left out.

    Raises:
        UsageError: the file cannot be read, or a line other than the last is no JSON object.
    """
    try:
        with path.open("rb") as file:
            torn: tuple[str, int] | None = None
            for number, line in enumerate(file, start=1):
                if torn is not None:
                    raise UsageError(_no_record(path, *torn))
                record = _parse(line)
                if record is None:
                    torn = (_beginning(line), number)
                    continue
                yield record
    except OSError as error:
        raise UsageError(f"Cannot read {str(path)!r}: {error.strerror}.") from error


class LineTail:
    """The lines of a file that another process appends to, each read once.

    A torn last line is read when it is whole; the process that opens the file next may cut it off
    instead. A line in the middle that is no record is passed over and told of in ``broken``.
    """

    def __init__(self, path: Path, without: str = "") -> None:
        """Begin at the start of ``path``, which need not exist yet.

        Args:
            path: the file.
            without: a key whose value, a flat list, is left out of the records. Token ids are most
                of a trial's line, and reading them takes six times as long.
        """
        self.path = path
        self.broken = ""
        self._cut = f',"{without}":['.encode() if without else b""
        self._offset = self._seen = 0  # behind what was read, and behind what was looked at
        self._inode: int | None = None

    @property
    def replaced(self) -> bool:
        """Whether it is another file than the one that was read: removed, made anew, or shorter."""
        inode, size = self._identity()
        return self._offset > 0 and (inode != self._inode or size < self._offset)

    @property
    def waiting(self) -> int:
        """Bytes that were appended since the last read, which may have met a torn line."""
        return max(0, self._identity()[1] - self._seen)

    def read(self, most: int = 1 << 20) -> list[tuple[int, dict[str, Any]]]:
        """The next records, each with the byte that its line begins at; about ``most`` bytes."""
        found: list[tuple[int, dict[str, Any]]] = []
        if not self.waiting:
            return found
        with suppress(OSError), self.path.open("rb") as file:
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            start, doubtful = self._offset, b""
            for line in file:
                record = _parse(self._shortened(line))
                if record is not None:
                    if doubtful:
                        self.broken = _no_record(self.path, _beginning(doubtful))
                    found.append((start, record))
                    self._offset, doubtful = start + len(line), b""
                else:
                    doubtful = doubtful or line
                start += len(line)
                if record is not None and start >= found[0][0] + most:
                    break
            self._seen = start
        return found

    def _identity(self) -> tuple[int | None, int]:
        try:
            facts = self.path.stat()
        except OSError:
            return None, 0
        return facts.st_ino, facts.st_size

    def _shortened(self, line: bytes) -> bytes:
        """The line without the key that is left out; within a text its quotes are escaped."""
        begin = line.find(self._cut) if self._cut else -1
        end = line.find(b"]", begin) if begin >= 0 else -1
        return line[:begin] + line[end + 1 :] if end >= 0 else line


def read_line_at(path: Path, offset: int) -> dict[str, Any]:
    """The record whose line begins at a byte.

    Raises:
        UsageError: there is none, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
    except OSError as error:
        raise UsageError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
    record = _parse(line)
    if record is None:
        raise UsageError(
            f"No record of {str(path)!r} begins at byte {offset}: the file has changed since it "
            "was read; open the run again."
        )
    return record


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


def _beginning(line: bytes) -> str:
    """What a line begins with, for a sentence about it."""
    return line[:40].decode("utf-8", "replace").strip()


def _no_record(path: Path, text: str, number: int | None = None) -> str:
    which = "A line" if number is None else f"Line {number}"
    return (
        f"{which} of {str(path)!r} is no record of a run: {text!r}; "
        "restore the file from a copy or start a new run."
    )


def _cannot_write(path: Path, error: OSError) -> RunError:
    command = f"fttt run --resume {path.parent}"
    advice = f"make room or fix the folder's permissions, then resume with `{command}`"
    return cannot_write(path, error, advice)
