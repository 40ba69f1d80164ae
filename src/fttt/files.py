"""Files and folders: names, whole-file writes, locks, write errors, and reading from the hub."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies

from fttt.errors import RunError, UsageError

__all__ = [
    "SERVED",
    "begin_folder",
    "cannot_write",
    "check_unused",
    "file_name",
    "from_hub",
    "held_files",
    "held_folder",
    "hold",
    "hub_http_error",
    "is_a_file",
    "model_label",
    "numbered",
    "output_folder",
    "whole_file",
    "write_whole",
]


SERVED = "openai:"
"""Begins the name of a model that a server has."""


def file_name(*parts: str) -> str:
    """The parts joined by ``-``, with ``_`` for what a file's name should not hold."""
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def model_label(model: str) -> str:
    """The last part of a hub name, path or served name, without a GGUF file's suffix."""
    path = Path(model.removeprefix(SERVED))
    return path.stem if path.suffix == ".gguf" else path.name or model


def numbered(folder: Path) -> Iterator[Path]:
    """``folder``, ``folder-2``, ``folder-3`` and so on, for callers that need a free name."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; the old content stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; the old content stays.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with whole_file(path) as file:
        file.write(data)


def hold(handle: int, folder: Path) -> None:
    """Keep other processes out of ``folder`` until ``handle`` is closed, or its process ends.

    On a file system without locks nothing keeps them out.

    Args:
        handle: a descriptor of a file in the folder, or of the folder itself.
        folder: its name, for the sentence.

    Raises:
        UsageError: another process holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"The folder {str(folder)!r} is in use by another process; wait for it or stop it "
            "first."
        ) from error
    except OSError:
        pass  # a file system without locks: ENOLCK, ENOTSUP or ENOSYS


def held_files() -> frozenset[int] | None:
    """Inodes of the files that processes of this machine hold by :func:`hold`.

    ``None`` where the system does not list them.
    """
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    words = (line.split() for line in lines)
    return frozenset(int(w[5].rpartition(":")[2]) for w in words if len(w) > 5 and "FLOCK" in w)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from working in ``folder`` until the block ends.

    Raises:
        UsageError: another process works there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        hold(handle, folder)
        yield
    finally:
        os.close(handle)


@contextmanager
def output_folder(out: Path | None, name: str) -> Iterator[Path]:
    """The folder ``out``; without it a new one under ``outputs/``, named by ``name`` and the time.

    The new one is made at once, so that no other command takes the same name, and removed at the
    end if it is still empty. ``out`` is left as it is.

    Raises:
        RunError: it cannot be made or written.
        UsageError: ``out`` is a file.
    """
    if out is not None:
        _check_writable(out)
        yield out
        return
    folder = _made(Path("outputs") / file_name(name, datetime.now().strftime("%Y%m%d-%H%M%S")))
    try:
        yield folder
    finally:
        with suppress(OSError):  # it holds something
            folder.rmdir()
            folder.parent.rmdir()


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or an empty one that cannot be written.

    Only an attempt tells whether a folder can be made. It is removed again, but for its parents,
    in which another command may be about to make its own.
    """
    made = False
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()) and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileExistsError:
        raise is_a_file(folder) from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        if made:
            with suppress(OSError):  # it could not be made, or something was begun in it
                folder.rmdir()


def _made(wanted: Path) -> Path:
    for folder in numbered(wanted):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder
    raise AssertionError("unreachable")


def check_unused(folder: Path, resume: str, leftovers: Collection[str] = ()) -> None:
    """Refuse a place for new output that holds something already.

    Args:
        folder: the place, which need not exist.
        resume: the command that resumes what such a folder holds, without the folder's name.
        leftovers: names of files that a command killed at its start may leave, which do not count.

    Raises:
        UsageError: it is a file, or holds something.
        RunError: it cannot be read.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise is_a_file(folder)
        held = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise cannot_write(folder, error) from error
    if held <= set(leftovers):
        return
    begun = f", or resume what it holds by `{resume} {folder}`" if "config.toml" in held else ""
    raise UsageError(
        f"The output folder {str(folder)!r} is not empty; name another with --out{begun}."
    )


def begin_folder(folder: Path, resume: str) -> None:
    """Make a folder for new output, or take an empty one.

    Args:
        folder: the place.
        resume: as for :func:`check_unused`.

    Raises:
        UsageError: it is a file, or holds something.
        RunError: it cannot be made or written.
    """
    check_unused(folder, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def cannot_write(
    path: Path, error: OSError, advice: str = "name another folder with --out"
) -> RunError:
    """The error of a file or folder that cannot be written.

    Args:
        path: what cannot be written.
        error: why.
        advice: the next step.
    """
    return RunError(f"Cannot write {str(path)!r}: {error.strerror or error}; {advice}.")


def is_a_file(path: Path) -> UsageError:
    """The error of an output folder that is a file."""
    return UsageError(f"--out {str(path)!r} is a file; name a folder.")


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Read from the hub, or from its cache alone where the hub's host name does not resolve.

    The hub's client would retry for half a minute, with a message each time, before it reads the
    cache. Behind a proxy the proxy resolves names, so no look-up is made; neither is one for a
    ``name`` that is a local folder, since a failing look-up may take as long.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE or not (Path(name).is_dir() or _resolves())
    with patch.object(constants, "HF_HUB_OFFLINE", offline):
        yield


def hub_http_error() -> type[Exception]:
    """What a call of the hub raises where no answer comes: its HTTP client's own error.

    The client is ``httpx`` or, from version 2 of ``huggingface_hub`` on, another. The hub's answers
    that say no are errors of this kind, too.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return next(
        k for k in HfHubHTTPError.__bases__ if issubclass(k, Exception) and k is not OSError
    )


def _resolves() -> bool:
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if {address.scheme, "all"} & getproxies().keys():  # not "no", which names exceptions
        return True
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True
