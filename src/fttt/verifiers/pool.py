"""Runs a verifier's job in worker processes, under a time limit that holds.

A thread of the caller's process waits for each running job, so a busy event loop never makes a
job look late. See :mod:`fttt.verifiers.zygote` for the processes themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fttt.errors import RunError
from fttt.verifiers.zygote import ORDER, Job, receive, send, serve

__all__ = ["JobError", "WorkerPool"]

_MAIN = "from fttt.verifiers.zygote import main; main()"

_STARTUP_SECONDS = 120.0
"""For a zygote to import what its job needs, on a machine that is busy with other things."""
_STOP_SECONDS = 5.0
"""For a zygote to end its workers once it was told to end; after that it is killed."""


class JobError(Exception):
    """The job gave no result; the message says why, as the end of a sentence."""


class WorkerPool:
    """A job, and up to ``workers`` processes that run it.

    A job that has a name (``"module:function"``) runs in a fresh interpreter, started at the first
    request. A closure or lambda cannot be named: given as it is, its zygote is a fork of the
    caller, made at once, which sees the caller's objects as they are at that moment. The fork runs
    the job and nothing else, and never a finaliser of the caller's objects.
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
            job: a function, or the name of one; it takes and returns what JSON can hold.
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
        """Run the job on ``request`` and return what it returned.

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
            zygote.close()  # only now does no thread listen any more

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
                worker.end()  # somebody killed it since, or its zygote
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
            self._forget(zygote)  # somebody may have killed it: once more with a fresh one
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
        """Whether it waits for a request: there is nothing to hear from it, not even its end."""
        try:
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def ask(self, request: Any, seconds: float) -> dict[str, Any] | None:
        """The worker's reply to this request, how it died, or ``None`` where the time is up."""
        self._requests += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self._connection, {"job": request, "number": self._requests})
        return self.hear(seconds)

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next message that belongs here; a copy of the worker may have sent others."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                message = receive(self._connection) or {"died": None}
                if message.get("number", self._requests) == self._requests:
                    return message
        except TimeoutError:
            pass
        finally:
            self._connection.settimeout(None)
        return None

    def end(self) -> None:
        """Kill it, if it still lives, and all that it started."""
        self._zygote.end(self._number)


class _ZygoteHandle:
    """The caller's end of a zygote."""

    def __init__(self, control: socket.socket, process: _Process) -> None:
        self._control = control
        self._process = process
        self._spawned = 0
        self._connections: dict[int, socket.socket] = {}
        # A pool that is dropped without close() leaves nothing behind either.
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
        """Send an order; a zygote that has gone is noticed by the worker's silence."""
        descriptors = [connection.fileno()] if connection else []
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [ORDER.pack(kind, number)], descriptors)

    def stop(self) -> None:
        """End the zygote and its workers."""
        _stop(self._control, self._process)

    def close(self) -> None:
        self._finish()


class _Process(Protocol):
    """A zygote's process."""

    pid: int

    def ended(self) -> bool:
        """Whether it has ended; its remains are taken away then."""


class _Started:
    """A zygote that was started as a program."""

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
    """Have a zygote end, and wait until it has; one that was stopped goes on first."""
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
        )
    send(ours, {"job": job, "memory_mb": memory_mb})
    return _ZygoteHandle(ours, _Started(process))


def _fork(ours: socket.socket, theirs: socket.socket, job: Job, memory_mb: int | None) -> _Process:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()  # what is buffered now must not be written twice
    with warnings.catch_warnings():
        # Python warns of forks beside threads; the zygote takes none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        ours.close()
        serve(theirs, job, memory_mb)

    return _Forked(pid)


def _describe(code: int | None) -> str:
    if code is None:
        return "and so did the process that would know why"
    return f"signal {-code}" if code < 0 else f"exit status {code}"
