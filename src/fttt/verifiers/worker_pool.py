"""Worker processes that run a verifier's job under time and memory limits that hold.

A verifier's job (a Python function of the user, a shell command, a symbolic comparison) may hang,
crash, or leave processes behind. So it runs in a *worker*, forked from a *zygote* that holds the
job and nothing else (:mod:`fttt.verifiers.worker_process`).

A process of fttt has one *room* with a place a processor, however many verifiers it has: jobs wait
for a place, and a worker that is idle is ended where another job needs its place. Pools of the same
job share a *crew*: one zygote and its workers, which end with the last of these pools. So the runs
of a sweep have no more processes than one of them.

What a job runs may be written by a model, so its environment has no variable that is named like a
key, a token or a password.

A thread of the caller's process waits for each running job, so a busy event loop never makes a
job look late. Nor does a busy machine: what a job waits for a processor does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fttt.errors import RunError
from fttt.verifiers.worker_process import ORDER, Job, children, receive, send, serve

__all__ = ["JobError", "WorkerPool"]

_MAIN = "from fttt.verifiers.worker_process import main; main()"

_MOST_PLACES = 16
"""Workers at once, on a machine of more processors too, unless a verifier asks for its own."""
_STARTUP_SECONDS = 120.0
"""For a zygote to import its job's modules, on a busy machine."""
_STOP_SECONDS = 5.0
"""For a zygote to end its workers once it is asked to end; after that it is killed."""

_MOST_WAITING = 10.0
"""Times its limit, that a job may wait for a processor."""
_LEAST_GRANT = 0.001
"""Seconds of waiting that are given back; a job that ran without a break has waited for less."""

_SECRET = re.compile(
    r"(API|ACCESS|PRIVATE|SECRET|SIGNING|ENCRYPTION)_?KEY|(^|_)KEYS?$|TOKEN(_PATH)?S?$|SECRETS?($|_)"
    r"|PASSW(OR)?D|PASSPHRASE|CREDENTIAL",
    re.IGNORECASE,
)
"""Names of variables that hold keys, tokens and passwords, those of judging models among them."""


class JobError(Exception):
    """The job gave no result; the message is the reason, as the end of a sentence."""


class WorkerPool:
    """A job of one verifier, and its share in the processes that run it.

    A job given by name (``"module:function"``) runs in a fresh interpreter, started at the first
    request; pools of the same job, limits, environment and working directory share it. For a
    closure or lambda, which has no name, the zygote is a fork of the caller, made at once, with the
    caller's objects as they are at that moment. The fork runs nothing but the job, and never a
    finaliser of the caller's objects.
    """

    def __init__(
        self,
        job: Job | str,
        *,
        time_limit: float,
        workers: int | None = None,
        memory_mb: int | None = None,
        imports: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        """Prepare the pool.

        Args:
            job: a function, or the name of one; its argument and result are JSON values.
            time_limit: seconds for one run of the job, by the wall clock but for those in which it
                waited for a processor.
            workers: how many run at once, in places of the pool's own; by default all pools of
                this process share one place a processor, at most 16.
            memory_mb: address space of a worker, in MiB.
            imports: modules that a job given by name loads when it is first asked.
            name: of a closure that other pools may share as it was when the first was made.
        """
        self._job = job
        self._time_limit = time_limit
        self._memory_mb = memory_mb
        self._workers = workers
        self._imports = tuple(imports)
        self._name = name
        self._own_room: _Room | None = None
        self._crew: _Crew | None = None
        self._closed = False
        if not isinstance(job, str):
            room = self._room()
            with room.changed:
                self._join(room)

    async def run(self, request: Any) -> Any:
        """The job's result for ``request``.

        Raises:
            JobError: it raised, took too long, used too much memory or died.
            RunError: no worker could be started.
        """
        if self._closed:
            raise RunError("The verifier was used after it had been closed; make a new one.")
        room = self._room()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(room.threads, self._run, room, request)

    async def close(self) -> None:
        """End what the pool has running, and all processes that no other pool uses.

        Calling it twice is harmless.
        """
        self._closed = True
        await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        room = self._room()
        with room.changed:  # who began before sees to it that there is a crew to leave
            crew = self._crew
        if crew is not None:
            crew.leave(self)
        if room is self._own_room:
            room.threads.shutdown()

    def _run(self, room: _Room, request: Any) -> Any:
        crew, worker = self._take(room)
        reply = None
        try:
            reply = worker.ask(request, self._time_limit)
        finally:
            crew.put(worker, again=reply is not None and reply.get("last") is False)
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

    def _take(self, room: _Room) -> tuple[_Crew, _Worker]:
        """A worker that waits for a request."""
        for _ in range(2):
            with room.changed:
                self._check_open()
                crew = self._join(room)
                worker, ready = crew.take(self)
            if ready:
                return crew, worker
            reply = worker.hear(_STARTUP_SECONDS)
            if reply is not None and "ready" in reply:
                worker.process = reply["ready"]
                return crew, worker
            crew.put(worker, again=False)
            self._check_open()  # which would have ended the worker
            crew.forget(worker.zygote)  # it may have been killed: one retry with a fresh one
        raise RunError(
            "A process that checks answers could not be started; see the message above, and "
            "that the machine has memory and processes to spare."
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RunError("The verifier was closed while an answer was being checked.")

    def _room(self) -> _Room:
        """The pool's own places, or those that all of this process share."""
        if self._workers is None:
            return _Room.of_process()
        if self._own_room is None or self._own_room.process != os.getpid():
            self._own_room = _Room(self._workers)
        return self._own_room

    def _join(self, room: _Room) -> _Crew:
        """The crew of the job in a room; a pool that a fork took along has another one there."""
        if self._crew is None or self._crew.room is not room:
            crew = room.crews.get(kind := self._kind())
            if crew is None:
                crew = _Crew(room, self._job, self._memory_mb, self._imports)
                room.crews[kind] = crew
            crew.users.add(self)
            self._crew = crew
        return self._crew

    def _kind(self) -> Hashable:
        """What pools that share a crew have in common."""
        if isinstance(self._job, str):
            try:
                folder = Path.cwd()
            except OSError:  # it was removed
                folder = None
            inherited = frozenset(os.environ.items()), folder
            return self._job, self._memory_mb, self._imports, inherited
        return (self._name, self._memory_mb) if self._name is not None else object()


class _Room:
    """Places for workers, and the threads that wait for their replies: one a place."""

    _of: ClassVar[dict[int, _Room]] = {}
    """The shared room of each process: a fork does not touch its parent's, nor its locks."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.process = os.getpid()
        self.threads = ThreadPoolExecutor(places, "fttt-verifier")
        self.changed = threading.Condition()
        """Guards the room's crews and what they hold; is told of workers that are put back."""
        self.crews: weakref.WeakValueDictionary[Hashable, _Crew] = weakref.WeakValueDictionary()

    @classmethod
    def of_process(cls) -> _Room:
        """The room that all pools of this process share."""
        process = os.getpid()
        if process not in cls._of:
            cls._of.setdefault(process, cls(min(_MOST_PLACES, _processors())))
        return cls._of[process]

    def make_place(self) -> None:
        """End the worker that has been idle for longest, where no place is free.

        A thread that asks for one has no worker, so that one is idle then.
        """
        crews = list(self.crews.values())
        idle = [crew for crew in crews if crew.idle]
        if idle and sum(len(crew.idle) + len(crew.busy) for crew in crews) >= self.places:
            min(idle, key=lambda crew: crew.idle[0].idle_since).idle.popleft().end()


class _Crew:
    """The processes of one job: a zygote, and the workers that it has forked."""

    def __init__(
        self, room: _Room, job: Job | str, memory_mb: int | None, imports: Sequence[str]
    ) -> None:
        self.room = room
        self.users: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
        """Pools that are open; with the last of them the processes end."""
        self.idle: deque[_Worker] = deque()
        self.busy: dict[_Worker, WorkerPool] = {}
        """Workers that start or run a job, and whose."""
        self._job, self._memory_mb, self._imports = job, memory_mb, imports
        self._zygote = None if isinstance(job, str) else self._start()

    def _start(self) -> _ZygoteHandle:
        return _start(self._job, self._memory_mb, self._imports)

    def take(self, pool: WorkerPool) -> tuple[_Worker, bool]:
        """A worker for a job of a pool, and whether it is ready; a new one will say so."""
        worker = None
        while self.idle and worker is None:
            last = self.idle.pop()
            if last.waiting:
                worker = last
            else:
                last.end()  # it, or its zygote, was killed meanwhile
        ready = worker is not None
        if worker is None:
            self.room.make_place()
            if self._zygote is None:
                self._zygote = self._start()
            worker = self._zygote.spawn()
        self.busy[worker] = pool
        return worker, ready

    def put(self, worker: _Worker, *, again: bool) -> None:
        """Keep a worker ``again`` for the next job, or end it."""
        with self.room.changed:
            del self.busy[worker]
            if again and worker.zygote is self._zygote:
                worker.idle_since = time.monotonic()
                self.idle.append(worker)
            else:
                worker.end()
            self.room.changed.notify_all()

    def forget(self, zygote: _ZygoteHandle) -> None:
        """End a zygote that starts no workers."""
        with self.room.changed:
            if self._zygote is zygote:
                self._zygote = None
                self.idle.clear()  # which end with it
        zygote.stop()

    def leave(self, pool: WorkerPool) -> None:
        """End what a closed pool has running, and all processes where it was the last one."""
        with self.room.changed:
            self.users.discard(pool)
            for worker, owner in self.busy.items():
                if owner is pool:
                    worker.kill()
            zygote = None
            if not self.users:
                zygote, self._zygote = self._zygote, None
                self.idle.clear()
        if zygote is not None:
            zygote.stop()  # running jobs end with it
        with self.room.changed:
            self.room.changed.wait_for(lambda: not self._runs(pool, zygote))
        if zygote is not None:
            zygote.close()  # only now is no thread reading from it

    def _runs(self, pool: WorkerPool, zygote: _ZygoteHandle | None) -> bool:
        """Whether a thread waits for a job of a pool, or for a worker of a zygote."""
        return any(o is pool or w.zygote is zygote for w, o in self.busy.items())


class _Worker:
    """The caller's end of one worker."""

    def __init__(self, zygote: _ZygoteHandle, number: int, connection: socket.socket) -> None:
        self.zygote = zygote
        self.idle_since = 0.0
        self.process = 0
        """Its number, once it is ready."""
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
        before, granted = _waited(self.process), 0.0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self._connection, {"job": request, "number": self._requests})
        reply = self.hear(seconds)
        while reply is None:
            waited = max(_waited(self.process) - before, *map(_waited, _below(self.process)), 0.0)
            more = min(waited, _MOST_WAITING * seconds) - granted
            if more < _LEAST_GRANT:
                break
            granted += more
            reply = self.hear(more)
        return reply

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next message for the current request; a fork of the worker may have sent others."""
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

    def kill(self) -> None:
        """Kill the worker and every process that it started; a thread may still listen to it."""
        self.zygote.kill(self._number)

    def end(self) -> None:
        """Kill the worker and every process that it started, and hear it no more."""
        self.zygote.end(self._number)


class _ZygoteHandle:
    """The caller's end of a zygote."""

    def __init__(self, control: socket.socket, process: _Process) -> None:
        self._control = control
        self._process = process
        self._spawned = 0
        self._connections: dict[int, socket.socket] = {}
        # A pool that is dropped without close() leaves no process behind either.
        self._finish = weakref.finalize(
            self, _finish, os.getpid(), control, self._connections, process
        )

    def spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        self._spawned += 1
        self._connections[self._spawned] = ours
        with theirs:
            self._order(b"w", self._spawned, theirs)
        return _Worker(self, self._spawned, ours)

    def kill(self, number: int) -> None:
        self._order(b"k", number)

    def end(self, number: int) -> None:
        self.kill(number)
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.close()

    def _order(self, kind: bytes, number: int, connection: socket.socket | None = None) -> None:
        """Send an order; a missing zygote shows in the worker's silence."""
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
    owner: int, control: socket.socket, connections: dict[int, socket.socket], process: _Process
) -> None:
    if os.getpid() != owner:
        return  # a fork of the caller must not end the caller's processes
    _stop(control, process)
    control.close()
    for connection in connections.values():
        connection.close()
    connections.clear()


def _start(job: Job | str, memory_mb: int | None, imports: Sequence[str]) -> _ZygoteHandle:
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
    send(ours, {"job": job, "memory_mb": memory_mb, "imports": list(imports)})
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
        serve(theirs, job, memory_mb)

    return _Forked(pid)


def _waited(process: int) -> float:
    """Seconds that a process was ready and had no processor; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[1]) / 1e9


def _below(process: int) -> Iterator[int]:
    """All descendants of a process, as far as the system tells."""
    for child in children(process):
        yield child
        yield from _below(child)


def _describe(code: int | None) -> str:
    if code is None:
        return "and so did the process that would know why"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
