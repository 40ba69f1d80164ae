"""Worker processes that run a verifier's job under time and memory limits that hold.

A verifier's job (a Python function of the user, a shell command, a symbolic comparison) may hang,
crash, or leave processes behind. So it runs in a *worker*, forked from a *zygote* that holds the
job and nothing else. The zygote forks and kills workers as the caller asks, reports on a dead
worker's socket how it died, and kills every process that outlived its worker: workers and zygote
are subreapers on Linux, so that even a daemon of a daemon comes back to them. Elsewhere the
worker's process group is killed.

What a job runs may be written by a model, so its environment has no variable that is named like a
key, a token or a password.

A thread of the caller's process waits for each running job, so a busy event loop never makes a
job look late.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import queue
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Protocol

from fttt.errors import RunError

__all__ = ["JobError", "WorkerPool", "main", "send"]

Job = Callable[[Any], Any]
"""A function from a JSON value to a JSON value."""

_MAIN = "from fttt.verifiers.worker_pool import main; main()"

_STARTUP_SECONDS = 120.0
"""For a zygote to import its job's modules, on a busy machine."""
_STOP_SECONDS = 5.0
"""For a zygote to end its workers once it is asked to end; after that it is killed."""

_SECRET = re.compile(
    r"(API|ACCESS|PRIVATE|SECRET|SIGNING|ENCRYPTION)_?KEY|(^|_)KEYS?$|TOKEN(_PATH)?S?$|SECRETS?($|_)"
    r"|PASSW(OR)?D|PASSPHRASE|CREDENTIAL",
    re.IGNORECASE,
)
"""Names of variables that hold keys, tokens and passwords, those of judging models among them."""

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36
_HEADER = struct.Struct("!I")

_ORDER = struct.Struct("!cI")
"""An order of the caller: ``b"w"`` starts the worker of this number (its socket is attached),
``b"k"`` kills it."""


# ---- the caller's side


class JobError(Exception):
    """The job gave no result; the message is the reason, as the end of a sentence."""


class WorkerPool:
    """A job, and up to ``workers`` processes that run it.

    A job given by name (``"module:function"``) runs in a fresh interpreter, started at the first
    request. For a closure or lambda, which has no name, the zygote is a fork of the caller, made at
    once, with the caller's objects as they are at that moment. The fork runs nothing but the job,
    and never a finaliser of the caller's objects.
    """

    def __init__(
        self,
        job: Job | str,
        *,
        time_limit: float,
        workers: int | None = None,
        memory_mb: int | None = None,
    ) -> None:
        """Prepare the pool.

        Args:
            job: a function, or the name of one; its argument and result are JSON values.
            time_limit: seconds for one run of the job, by the wall clock.
            workers: how many run at once; by default one a processor, at most 16.
            memory_mb: address space of a worker, in MiB.
        """
        self._job = job
        self._time_limit = time_limit
        self._memory_mb = memory_mb
        self._count = workers or min(16, os.cpu_count() or 1)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._zygote = None if isinstance(job, str) else _start(job, memory_mb)
        self._closed = False

    async def run(self, request: Any) -> Any:
        """The job's result for ``request``.

        Raises:
            JobError: it raised, took too long, used too much memory or died.
            RunError: no worker could be started.
        """
        with self._lock:
            if self._closed:
                raise RunError("The verifier was used after it had been closed; make a new one.")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._count, "fttt-verifier")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, request)

    async def close(self) -> None:
        """End every process of the pool. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            threads, zygote = self._threads, self._zygote
            self._threads = self._zygote = None
        if zygote is not None:
            await asyncio.to_thread(zygote.stop)  # running jobs end with it
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        if zygote is not None:
            zygote.close()  # only now is no thread reading from it

    def _run(self, request: Any) -> Any:
        worker = self._take()
        reply = worker.ask(request, self._time_limit)
        if reply is not None and reply.get("last") is False:
            self._idle.put(worker)
        else:
            worker.end()
        if reply is None:
            raise JobError(f"took longer than its limit of {self._time_limit:g} s")
        if "value" in reply:
            return reply["value"]
        if "memory" in reply:
            allowed = f" of {self._memory_mb} MiB" if self._memory_mb else ""
            raise JobError(f"used more than its memory limit{allowed}")
        if "error" in reply:
            raise JobError(f"raised {reply['error']}")
        raise JobError(f"died ({_describe(reply['died'])})")

    def _take(self) -> _Worker:
        with contextlib.suppress(queue.Empty):
            while not (worker := self._idle.get_nowait()).waiting:
                worker.end()  # it, or its zygote, was killed meanwhile
            return worker
        for _ in range(2):
            with self._lock:
                if self._closed:
                    raise RunError("The verifier was closed while an answer was being checked.")
                if self._zygote is None:
                    self._zygote = _start(self._job, self._memory_mb)
                zygote = self._zygote
                worker = zygote.spawn()
            reply = worker.hear(_STARTUP_SECONDS)
            if reply is not None and "ready" in reply:
                return worker
            worker.end()
            self._forget(zygote)  # it may have been killed: one retry with a fresh one
        raise RunError(
            "A process that checks answers could not be started; see the message above, and "
            "that the machine has memory and processes to spare."
        )

    def _forget(self, zygote: _ZygoteHandle) -> None:
        with self._lock:
            if self._zygote is zygote:
                self._zygote = None
        zygote.stop()


class _Worker:
    """The caller's end of one worker."""

    def __init__(self, zygote: _ZygoteHandle, number: int, connection: socket.socket) -> None:
        self._zygote = zygote
        self._number = number
        self._connection = connection
        self._requests = 0

    @property
    def waiting(self) -> bool:
        """Whether it waits for a request: its socket holds no message and is not closed."""
        try:
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def ask(self, request: Any, seconds: float) -> dict[str, Any] | None:
        """The worker's reply to this request, how it died, or ``None`` after the time limit."""
        self._requests += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self._connection, {"job": request, "number": self._requests})
        return self.hear(seconds)

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next message for the current request; a fork of the worker may have sent others."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                message = _receive(self._connection) or {"died": None}
                if message.get("number", self._requests) == self._requests:
                    return message
        except TimeoutError:
            pass
        finally:
            self._connection.settimeout(None)
        return None

    def end(self) -> None:
        """Kill the worker and every process that it started."""
        self._zygote.end(self._number)


class _ZygoteHandle:
    """The caller's end of a zygote."""

    def __init__(self, control: socket.socket, process: _Process) -> None:
        self._control = control
        self._process = process
        self._spawned = 0
        self._connections: dict[int, socket.socket] = {}
        # A pool that is dropped without close() leaves no process behind either.
        self._finish = weakref.finalize(self, _finish, control, self._connections, process)

    def spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        self._spawned += 1
        self._connections[self._spawned] = ours
        with theirs:
            self._order(b"w", self._spawned, theirs)
        return _Worker(self, self._spawned, ours)

    def end(self, number: int) -> None:
        self._order(b"k", number)
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.close()

    def _order(self, kind: bytes, number: int, connection: socket.socket | None = None) -> None:
        """Send an order; a missing zygote shows in the worker's silence."""
        descriptors = [connection.fileno()] if connection else []
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [_ORDER.pack(kind, number)], descriptors)

    def stop(self) -> None:
        """End the zygote and its workers."""
        _stop(self._control, self._process)

    def close(self) -> None:
        self._finish()


class _Process(Protocol):
    """A zygote's process."""

    pid: int

    def ended(self) -> bool:
        """Whether it has ended; it is reaped then."""


class _Started:
    """A zygote in a fresh interpreter."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def ended(self) -> bool:
        return self._process.poll() is not None


class _Forked:
    """A zygote that is a fork of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = False

    def ended(self) -> bool:
        if not self._ended:
            try:
                self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                self._ended = True
        return self._ended


def _stop(control: socket.socket, process: _Process) -> None:
    """End a zygote and wait for it; a stopped process is continued first."""
    # Shut down, not only closed: a process forked since then may hold a copy of the descriptor.
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + _STOP_SECONDS
    pause = 0.001
    while not process.ended():
        late = time.monotonic() > deadline
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL if late else signal.SIGCONT)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _finish(
    control: socket.socket, connections: dict[int, socket.socket], process: _Process
) -> None:
    _stop(control, process)
    control.close()
    for connection in connections.values():
        connection.close()
    connections.clear()


def _start(job: Job | str, memory_mb: int | None) -> _ZygoteHandle:
    ours, theirs = socket.socketpair()
    with theirs:
        if not isinstance(job, str):
            return _ZygoteHandle(ours, _fork(ours, theirs, job, memory_mb))
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={name: text for name, text in os.environ.items() if not _SECRET.search(name)},
        )
    send(ours, {"job": job, "memory_mb": memory_mb})
    return _ZygoteHandle(ours, _Started(process))


def _fork(ours: socket.socket, theirs: socket.socket, job: Job, memory_mb: int | None) -> _Process:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()  # buffered text must not be written twice
    with warnings.catch_warnings():
        # Python warns of forks in threaded processes; the zygote takes none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        ours.close()
        for name in filter(_SECRET.search, list(os.environ)):
            del os.environ[name]
        _serve(theirs, job, memory_mb)

    return _Forked(pid)


def _describe(code: int | None) -> str:
    if code is None:
        return "and so did the process that would know why"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


# ---- messages between both sides


def send(connection: socket.socket, message: object) -> None:
    """Write one message as length and JSON (lone surrogates survive as escapes)."""
    data = json.dumps(message).encode()
    connection.sendall(_HEADER.pack(len(data)) + data)


def _receive(connection: socket.socket) -> Any:
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


def _serve(control: socket.socket, job: Job, memory_mb: int | None) -> NoReturn:
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
        data, descriptors, _, _ = socket.recv_fds(self._control, _ORDER.size, 1)
        if not data:
            return False
        kind, number = _ORDER.unpack(data)
        if kind == b"k":
            pid = self._pids.pop(number, None)
            if pid in self._workers:
                _kill(pid)
            return True
        connection = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if pid == 0:
            self._become_worker(connection)
        self._workers[pid] = connection
        self._pids[number] = pid
        return True

    def _reap(self) -> None:
        """Report dead workers and kill the processes that they left."""
        while True:
            for pid in _children():
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
    send(connection, {"ready": True})
    last = False
    while not last and (request := _receive(connection)) is not None:
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


def _children() -> list[int]:
    """Direct children, those inherited from dead descendants included (Linux only)."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def _kill_children() -> None:
    """Kill and reap every descendant; orphans become children, so this ends with none."""
    while children := _children():
        for pid in children:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Serve on the descriptor of the first argument; the first message holds the job's name."""
    control = socket.socket(fileno=int(sys.argv[1]))
    order = _receive(control)
    if order is None:
        return
    module, _, name = order["job"].partition(":")
    job: Job = getattr(importlib.import_module(module), name)
    _serve(control, job, order["memory_mb"])
