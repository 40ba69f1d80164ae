"""The processes in which a verifier's job runs: a zygote, and the workers that it forks.

The zygote holds the job and nothing else. It forks and kills workers as the caller
(:mod:`fttt.verifiers.worker_pool`) asks, reports on a dead worker's socket how it died, and kills
every process that outlived its worker: workers and zygote are subreapers on Linux, so that even a
daemon of a daemon comes back to them. Elsewhere the worker's process group is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["ORDER", "Job", "children", "main", "receive", "send", "serve"]

Job = Callable[[Any], Any]
"""A function from a JSON value to a JSON value."""

ORDER = struct.Struct("!cI")
"""An order of the caller: ``b"w"`` starts the worker of this number (its socket is attached),
``b"k"`` kills it."""

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36
_HEADER = struct.Struct("!I")


# ---- messages between both sides


def send(connection: socket.socket, message: object) -> None:
    """Write one message as length and JSON (lone surrogates survive as escapes)."""
    data = json.dumps(message).encode()
    connection.sendall(_HEADER.pack(len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """Read one message; ``None`` if the other side has closed, even within a message."""
    header = _read(connection, _HEADER.size)
    data = header and _read(connection, _HEADER.unpack(header)[0])
    return json.loads(data) if data else None


def _read(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(min(size - len(parts), 1 << 20))
        except ConnectionResetError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


# ---- the zygote's and the workers' side


def serve(control: socket.socket, job: Job, memory_mb: int | None) -> NoReturn:
    """Execute the orders that arrive on ``control``, until the caller ends.

    ``memory_mb`` limits the address space of a worker; ``None`` sets no limit.
    """
    try:
        _Zygote(control, job, memory_mb).run()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)  # never return into the caller's stack


class _Zygote:
    def __init__(self, control: socket.socket, job: Job, memory_mb: int | None) -> None:
        self._control = control
        self._job = job
        self._memory_mb = memory_mb
        self._parent = os.getppid()
        self._workers: dict[int, socket.socket] = {}
        self._pids: dict[int, int] = {}
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        # An inherited wake-up descriptor would write into the caller's own event loop.
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if os.getsid(0) != os.getpid():
            os.setsid()  # Ctrl-C at the terminal is for the caller, who then closes us
        _prctl(_CHILD_SUBREAPER, 1)
        # Objects of the caller must never be finalised here, least of all those of a GPU.
        gc.disable()
        gc.freeze()

    def run(self) -> None:
        control = self._control.fileno()
        try:
            while os.getppid() == self._parent:
                ready, _, _ = select.select([control, self._wake], [], [], 1.0)
                if self._wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                if control in ready and not self._obey():
                    return
                self._reap()
        finally:
            for pid, connection in self._workers.items():
                _kill(pid)
                connection.close()
            _kill_children()

    def _obey(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, ORDER.size, 1)
        if not data:
            return False
        kind, number = ORDER.unpack(data)
        if kind == b"k":
            pid = self._pids.pop(number, None)
            if pid in self._workers:
                _kill(pid)
            return True
        connection = socket.socket(fileno=descriptors[0])
        with warnings.catch_warnings():
            # A library that was imported may have threads, whose locks no worker takes.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._become_worker(connection)
        self._workers[pid] = connection
        self._pids[number] = pid
        return True

    def _reap(self) -> None:
        """Report dead workers and kill the processes that they left."""
        while True:
            for pid in children(os.getpid()):
                if pid not in self._workers:
                    _kill(pid)
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self._workers.pop(pid, None)
            if connection is not None:
                _kill_group(pid)
                with contextlib.suppress(OSError):
                    send(connection, {"died": os.waitstatus_to_exitcode(status)})
                connection.close()

    def _become_worker(self, connection: socket.socket) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            _prctl(_PDEATHSIG, signal.SIGKILL)
            _prctl(_CHILD_SUBREAPER, 1)
            self._control.close()
            for other in self._workers.values():
                other.close()
            gc.enable()
            if self._memory_mb is not None:
                size = self._memory_mb << 20
                resource.setrlimit(resource.RLIMIT_AS, (size, size))
            _work(connection, self._job, self._memory_mb)
        finally:
            os._exit(0)


def _work(connection: socket.socket, job: Job, memory_mb: int | None) -> None:
    """Answer requests one by one until the caller closes, or memory runs short."""
    worker = os.getpid()
    send(connection, {"ready": worker})
    last = False
    while not last and (request := receive(connection)) is not None:
        reply: dict[str, Any]
        try:
            reply = {"value": job(request["job"])}
        except MemoryError:
            reply = {"memory": True}
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")}
        if os.getpid() != worker:
            os._exit(0)  # the job forked, and this is the copy, which must not reply
        _kill_children()
        last = "memory" in reply or _memory_is_short(memory_mb)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        send(connection, reply | {"number": request["number"], "last": last})


def _memory_is_short(memory_mb: int | None) -> bool:
    """Whether the peak exceeds half of the limit, so that a fresh worker is due."""
    if memory_mb is None:
        return False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak >> (20 if sys.platform == "darwin" else 10) > memory_mb // 2


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def children(process: int) -> list[int]:
    """Direct children of a process with one thread, those inherited from dead descendants included
    (Linux only).
    """
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def _kill_children() -> None:
    """Kill and reap every descendant; orphans become children, so this ends with none."""
    while left := children(os.getpid()):
        for pid in left:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Serve on the descriptor of the first argument; the first message holds the job's name.

    What it asks to import besides is there in all workers from their first request on.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    order = receive(control)
    if order is None:
        return
    for module in order["imports"]:
        importlib.import_module(module)
    module, _, name = order["job"].partition(":")
    job: Job = getattr(importlib.import_module(module), name)
    serve(control, job, order["memory_mb"])
