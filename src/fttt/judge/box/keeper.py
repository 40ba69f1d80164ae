"""A keeper: makes one box after the other, ends each at its limits, and reports its end.

All keepers wait at the control socket, and whoever is idle takes the next request. A box's network
namespace, in which nothing can be reached, is its keeper's, since the kernel takes as long to make
one as for all others together; it is empty when the next box comes. Whoever asked for a box and
does not wait for it any more hangs up at the pipe of its verdict.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from .confine import NAMESPACES, adopt_orphans, clone, confine, die_with_parent, map_ids
from .program import run_program
from .solver import run_solver
from .tester import run_tests
from .usage import ControlGroup, Processes, slowness

__all__ = ["Keeper", "namespaces", "try_in"]

_TICK = 0.02
_LOOKS = 5
"""The most looks at a box that is over a limit, until one finds the processes of the one before."""
_FIRST = 3
"""The first of a box's own descriptors: the submission, then its tests or input and output, then
the pipe of the verdict."""
_MOST_FILES = 4


@dataclass
class _Box:
    """The box that is running."""

    number: int
    pid: int
    begin: float
    end: str = "exit"
    cpu: float = 0.0
    slow: float = 1.0
    """The machine, as it was found to be after what is usually granted was used up."""
    next_speed: float = 0.0
    """When to look at that again."""


class Keeper:
    """Makes boxes in one place, one at a time."""

    def __init__(self, control: socket.socket, plan: dict[str, Any], group: ControlGroup) -> None:
        self._control, self._group = control, group
        self._limits: dict[str, Any] = plan["limits"]
        self._program = bytes.fromhex(plan["filter"])
        self._ids = os.getuid(), os.getgid()
        self._counted = group.counts_cpu and group.bounds_memory
        """Whether the control group does all the counting."""
        self._processes = Processes()
        layers = frozenset(plan["layers"])
        # Memory that boxes have mapped can be read only from the user namespace of the zygote.
        self.own_layers = layers & {"user", "network"} if self._counted else frozenset[str]()
        """The namespaces to make it in."""
        self._layers = layers - (self.own_layers - {"user"})

    def live(self, ready: int) -> NoReturn:
        """Serve until the control socket is closed; why that is impossible goes to ``ready``."""
        code = 70
        try:
            die_with_parent()
            self._processes = Processes()
            if "user" in self.own_layers:
                map_ids(*self._ids)
                self._ids = os.getuid(), os.getgid()
            if "pid" not in self._layers:
                adopt_orphans()
            try_in(self._layers, self._try_box, self._group.into)
            os.close(ready)
            self._serve()
            code = 0
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(ready, (str(error) or type(error).__name__).encode()[:500])
        finally:
            os._exit(code)

    def _serve(self) -> None:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._control, 1 << 12, _MOST_FILES)
            except ConnectionError:
                return
            if not message:
                return
            request = json.loads(message)
            number = request["box"]
            self._group.begin()
            try:
                pid = clone(namespaces(self._layers), self._group.into)
            except OSError as error:
                self._report({"box": number, "end": f"no box could be made: {error}"})
            else:
                if pid == 0:
                    self._run_box(fds, program=request["program"])
                self._watch(_Box(number, pid, time.monotonic()), fds[-1])
            for fd in fds:
                os.close(fd)

    def _try_box(self) -> None:
        self._group.join()
        self._confine()

    def _confine(self) -> None:
        confine(self._layers, self._limits, self._program, self._ids)

    def _run_box(self, fds: list[int], *, program: bool) -> NoReturn:
        """The life of a box's first process."""
        code = 70
        verdict = _FIRST + len(fds) - 1
        try:
            die_with_parent()
            self._group.join()
            _keep_only(fds)
            if "pid" not in self._layers:
                adopt_orphans()
            self._confine()
            if program:
                run_program(*range(_FIRST, verdict + 1))
            else:
                _run_apart(*range(_FIRST, verdict + 1))
            code = 0
        except OSError as error:
            text = {"status": "broken", "detail": f"the box could not be closed: {error}"}
            os.write(verdict, json.dumps(text).encode())
        finally:
            os._exit(code)

    def _watch(self, box: _Box, verdict: int) -> None:
        """Wait for a box's end, which comes at its limits, or when nobody waits for it."""
        alive = os.pidfd_open(box.pid)
        poll = select.poll()
        poll.register(alive, select.POLLIN)
        for fd in (verdict, self._control.fileno()):
            poll.register(fd, 0)  # says only that the other end is closed
        next_look = 0.0
        while alive not in (ready := dict(poll.poll(_TICK * 1000))):
            for fd in ready:
                poll.unregister(fd)
                self._end(box, "killed")
            now = time.monotonic()
            if box.end == "exit" and now >= next_look:
                self._end_beyond_limits(box, now)
                end = time.monotonic()
                next_look = end + max(_TICK, end - now)  # half of the time at the most
        os.close(alive)
        _, status, usage = os.wait4(box.pid, 0)
        if "pid" not in self._layers:
            _sweep()
        if box.end == "exit":
            self._explain(box, status, usage.ru_utime + usage.ru_stime)
        seconds = time.monotonic() - box.begin
        self._report({"box": box.number, "end": box.end, "status": status, "seconds": seconds})

    def _explain(self, box: _Box, status: int, cpu: float) -> None:
        """Say why a box ended that this process did not end: the kernel may have, or somebody."""
        if self._group.overrun():
            box.end = "memory"
        elif os.WIFSIGNALED(status):
            spent = max(box.cpu, cpu) >= self._limits["cpu_seconds"]
            ending = os.WTERMSIG(status)
            if ending == signal.SIGXCPU or (ending == signal.SIGKILL and spent):
                box.end = "timeout"
            elif ending == signal.SIGKILL:
                # Nothing inside can reach the first process, so this came from outside.
                box.end = "killed"

    def _report(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # nobody is left who would read it
            self._control.send(json.dumps(message).encode())

    def _end(self, box: _Box, reason: str) -> None:
        """Kill a box's first process, and with it (in its own pid namespace) all others."""
        if box.end == "exit":
            box.end = reason
            os.kill(box.pid, signal.SIGKILL)

    def _end_beyond_limits(self, box: _Box, now: float) -> None:
        """End a box that is over a limit which the kernel does not hold it to by itself."""
        seen: set[tuple[int, int]] = set()
        for _ in range(_LOOKS):
            reason = self._over(box, now)
            if not reason:
                return
            # A process that ends in mid-look counts twice: as itself, and in its parent or in the
            # shares of those that it shared pages with. So such a look says nothing.
            found = set() if self._counted else self._processes.members(box.pid)
            if found == seen:
                break
            seen = found
        self._end(box, reason)

    def _over(self, box: _Box, now: float) -> str:
        """The limit that a box is over, if any."""
        group, limits = self._group, self._limits
        if not self._counted:
            self._processes.look([box.pid])
        if group.bounds_memory:
            spent = group.overrun()
        else:
            most = limits["memory_bytes"]
            spent = self._processes.memory(box.pid, most) > most
        if spent:
            return "memory"
        cpu = group.cpu() if group.counts_cpu else self._processes.cpu(box.pid)
        box.cpu = max(box.cpu, cpu)
        if self._spent(box, now) or self._late(box, now):
            return "timeout"
        return ""

    def _spent(self, box: _Box, now: float) -> bool:
        """Whether a box is over its processor time, of which there is more on a slow machine.

        Else its right programs that are slow would fail. It is looked at while the box runs, since
        neighbours make a machine slower and faster.
        """
        usual = self._limits["cpu_seconds"]
        if box.cpu <= usual:
            return False
        if now >= box.next_speed:
            box.slow, box.next_speed = max(box.slow, slowness()), now + 1
        return bool(box.cpu > usual * min(box.slow, self._limits["slowest"]))

    def _late(self, box: _Box, now: float) -> bool:
        """Whether a box is over its wall limit, without what it had to wait for a processor.

        Else neighbours that keep all processors busy could make an honest box fail.
        """
        late = now - box.begin - self._limits["wall_seconds"]
        if late <= 0:
            return False
        if self._counted:
            self._processes.look([box.pid])
        granted = min(self._processes.waited(box.pid), self._limits["waiting_seconds"])
        return bool(late > granted)


def _run_apart(submission: int, tests: int, verdict: int) -> None:
    """Run a submission in one process and its tests in this one."""
    ours, theirs = socket.socketpair()
    solver = os.fork()
    if solver == 0:
        ours.close()
        os.close(tests)
        os.close(verdict)
        run_solver(theirs, submission)
    theirs.close()
    os.close(submission)
    run_tests(ours, tests, solver, verdict)


def namespaces(layers: Iterable[str]) -> int:
    """The flags that make a process in the namespaces among some layers."""
    return sum(NAMESPACES[name] for name in layers if name in NAMESPACES)


def try_in(layers: Iterable[str], action: Callable[[], None], group: int | None = None) -> None:
    """Do something in a process of its own, in the namespaces among some layers.

    Raises :class:`OSError` where that fails.
    """
    read, write = os.pipe()
    pid = clone(namespaces(layers), group)
    if pid == 0:
        try:
            action()
            os.write(write, b"held")
        except BaseException as error:
            os.write(write, str(error).encode()[:500])
        os._exit(0)
    os.close(write)
    answer = os.read(read, 500)
    os.close(read)
    os.waitpid(pid, 0)
    if answer != b"held":
        raise OSError(answer.decode() or "the process was killed")


def _sweep() -> None:
    """Without a pid namespace: end the orphans of an ended box, which are this process's now.

    All are stopped before any is killed: the limit on processes then keeps a fork bomb from
    growing back faster than it is killed.
    """
    stopped: set[int] = set()
    while strays := _strays():
        killing = strays <= stopped
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if killing else signal.SIGSTOP)
            with contextlib.suppress(ChildProcessError):  # its own parent goes first
                os.waitpid(pid, os.WNOHANG)
        stopped |= strays


def _strays() -> set[int]:
    """The processes below this one."""
    processes = Processes()
    processes.look([os.getpid()])
    return {process.pid for process in processes.families[os.getpid()]} - {os.getpid()}


def _keep_only(fds: list[int]) -> None:
    """Close every descriptor but these, which become 3 and on, and the null device."""
    # Lifted first, so that none is overwritten while it is still wanted.
    beyond = _FIRST + len(fds)
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD, beyond) for fd in fds]
    for place, fd in enumerate(lifted):
        os.dup2(fd, _FIRST + place, inheritable=False)
    os.closerange(beyond, os.sysconf("SC_OPEN_MAX"))
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
