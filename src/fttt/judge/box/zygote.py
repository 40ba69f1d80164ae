"""The zygote: a warm interpreter that makes one fresh box per submission and watches over it.

It never sees a submission or its tests: a request carries their file descriptors, which it hands
to the box unread, so nothing of one submission is left in the heap that the next box inherits.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from . import system
from .channel import BrokenBorder, Channel
from .confine import NAMESPACES, confine, leave_root
from .solver import run_solver, serve
from .tester import run_tests
from .usage import Group, Processes

__all__ = ["main"]

_TICK = 0.02
_DESCRIPTORS = 253  # the most that the kernel carries in one message
_SUBMISSION, _TESTS, _VERDICT = 3, 4, 5
_WARM = """
abc array bisect cmath collections copy dataclasses datetime decimal enum fractions functools
heapq inspect itertools json math operator random re string struct textwrap time typing
"""
"""What a submission usually imports."""


_PROGRAM = {
    "prompt": """from typing import List
def work(first, second=None):
    \"\"\"Not a problem of anybody's.\"\"\"
""",
    "test": """def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate([3, 1], [2]) == [3, 1, 2]
    assert candidate("a", "b") == "ab" and candidate((1.5,), (None,)) == (1.5, None)
    for number in range(3):
        assert candidate({"a": number}, len) == 1
    expected = [1, 2, 3]
    assert all(candidate([item]) is True for item in expected)
    try:
        candidate(1, "a")
        assert False
    except TypeError:
        pass
""",
    "entry_point": "work",
    "border": "data",
}
_BODIES = (
    "    if callable(second):\n        return second(first)\n"
    "    return True if second is None else first + second\n",
    "    return None\n",
    "    return (\n",
)
"""A right, a wrong and a broken program to warm up with."""


@dataclass
class _Box:
    """A box that is running."""

    number: int
    pid: int
    alive: int
    """A descriptor that becomes readable when the box's first process has ended."""
    begin: float
    group: Group
    end: str = "exit"
    cpu: float = 0.0


def main(control_fd: int) -> None:
    """Serve requests from the control socket until its other end is closed."""
    control = socket.socket(fileno=control_fd)
    plan = json.loads(control.recv(1 << 20))
    fds: list[int] = []
    while len(fds) < plan["descriptors"]:
        fds += socket.recv_fds(control, 1, _DESCRIPTORS)[1]
    os.environ.clear()  # bubblewrap itself leaves the working folder's name there
    for name in _WARM.split():
        importlib.import_module(name)
    groups = plan["groups"]
    own = groups.get("zygote", {}).get("join")
    fault = "" if own is None else _attempt(lambda: os.write(fds[own], b"0"))
    leave_root(plan["uid"])
    _warm_up()
    # Pages that the collector never touches stay shared between all boxes.
    gc.collect()
    gc.freeze()
    places = [Group(place, fds) for place in groups.get("places", [{}] * plan["places"])]
    zygote = Zygote(control, plan, places)
    held, found = zygote.probe()
    control.send(json.dumps({"layers": held, "groups": fault or found}).encode())
    try:
        zygote.serve()
    finally:
        zygote.close()


def _warm_up() -> None:
    """Judge programs of our own in this process, once as their tester and once as their solver.

    What the interpreter keeps of code that has run, boxes then share instead of making it anew.
    """
    seed = random.seed
    for body in _BODIES:
        for role in ("tester", "solver"):
            ours, theirs = socket.socketpair()
            files = [os.memfd_create(name) for name in ("submission", "tests")]
            os.write(files[0], json.dumps({"source": _PROGRAM["prompt"] + body}).encode())
            os.write(files[1], json.dumps(_PROGRAM).encode())
            os.lseek(files[0], 0, os.SEEK_SET)
            answer = os.open("/dev/null", os.O_WRONLY)
            other = os.fork()
            if other == 0:
                ours.close()
                if role == "tester":
                    run_solver(theirs, files[0])
                with contextlib.suppress(BaseException):
                    run_tests(theirs, files[1], 0, answer)
                os._exit(0)
            theirs.close()
            if role == "tester":
                run_tests(ours, files[1], other, answer)
            else:
                with contextlib.suppress(BrokenBorder):
                    serve(Channel(ours), _PROGRAM["prompt"] + body)
                os.close(files[1])
            ours.close()
            os.waitpid(other, 0)
            os.close(files[0])
            os.close(answer)
    random.seed = seed
    for name in ("tests", "submission"):
        sys.modules.pop(name, None)


class Zygote:
    """Makes boxes, ends them at their limits, and reports each one's end."""

    def __init__(self, control: socket.socket, plan: dict[str, Any], places: list[Group]) -> None:
        self._control = control
        self._places = places
        self._counted = all(place.counts_cpu and place.bounds_memory for place in places)
        """Whether control groups do all the counting."""
        self._processes = Processes()
        self._limits: dict[str, Any] = plan["limits"]
        self._program = bytes.fromhex(plan["filter"])
        self._layers = frozenset(plan["layers"])
        self._ids = os.getuid(), os.getgid()
        self._boxes: dict[int, _Box] = {}
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)

    def probe(self) -> tuple[dict[str, str], str]:
        """Try every layer in a box of its own, keep what holds, and say why others do not.

        The second answer is why the control groups are of no use, or nothing.
        """
        answers: dict[str, str] = {}
        held = set()
        namespaces = self._layers & set(NAMESPACES)
        together = _attempt(lambda: self._enter(namespaces))
        for name in sorted(namespaces):
            # All others live in the user namespace, so each is tried together with it.
            error = together and _attempt(lambda name=name: self._enter({"user", name}))
            answers[name] = error
            held |= {name} if not error else set()
        for name in sorted(self._layers - namespaces):
            layers = frozenset(held & {"user", "mount"} | {name})
            error = _attempt(lambda layers=layers: self._enter(layers))
            answers[name] = error
            held |= {name} if not error else set()
        self._layers = frozenset(held)
        if "pid" not in held:
            system.adopt_orphans()
        return answers, _attempt(self._try_places)

    def _try_places(self) -> None:
        for group in self._places:
            self._enter(self._layers, group)

    def _enter(self, layers: set[str] | frozenset[str], group: Group | None = None) -> None:
        """Close a box with these layers around nothing; raises :class:`OSError` where it fails."""
        read, write = os.pipe()
        pid = system.clone(_flags(layers), None if group is None else group.into)
        if pid == 0:
            try:
                if group is not None:
                    group.join()
                confine(frozenset(layers), self._limits, self._program, self._ids)
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

    def serve(self) -> None:
        """Handle requests and ends of boxes until the control socket is closed."""
        next_watch = 0.0
        while True:
            ready = self._poll.poll(_TICK * 1000 if self._boxes else None)
            for fd, _ in ready:
                if fd != self._control.fileno():
                    self._reap(self._boxes[fd])
                elif not self._handle_request():
                    return
            now = time.monotonic()
            if self._boxes and now >= next_watch:
                self._watch(now)
                end = time.monotonic()
                next_watch = end + max(_TICK, end - now)  # half of the time at the most

    def close(self) -> None:
        """End all boxes; inside bubblewrap they would end with this process anyway."""
        for box in list(self._boxes.values()):
            self._end(box, "killed")
            os.waitpid(box.pid, 0)
        self._boxes.clear()
        if "pid" not in self._layers:
            self._sweep()

    def _handle_request(self) -> bool:
        """Make or kill a box as asked; false where the other end is gone."""
        try:
            message, fds, _, _ = socket.recv_fds(self._control, 1 << 12, 3)
        except ConnectionError:
            return False
        if not message:
            return False
        request = json.loads(message)
        if "kill" in request:
            for box in self._boxes.values():
                if box.number == request["kill"]:
                    self._end(box, "killed")
            return True
        group = self._places.pop()
        group.begin()
        try:
            pid = system.clone(_flags(self._layers), group.into)
        except OSError as error:
            self._places.append(group)
            self._report({"box": request["box"], "end": f"no box could be made: {error}"})
        else:
            if pid == 0:
                self._run_box(fds, group)
            self._add(request["box"], pid, group)
        for fd in fds:
            os.close(fd)
        return True

    def _run_box(self, fds: list[int], group: Group) -> None:
        """The life of a box's first process; never returns."""
        code = 70
        try:
            system.die_with_parent()
            group.join()
            _keep_only(fds)
            if "pid" not in self._layers:
                system.adopt_orphans()
            confine(self._layers, self._limits, self._program, self._ids)
            ours, theirs = socket.socketpair()
            solver = os.fork()
            if solver == 0:
                ours.close()
                os.close(_TESTS)
                os.close(_VERDICT)
                run_solver(theirs, _SUBMISSION)
            theirs.close()
            os.close(_SUBMISSION)
            run_tests(ours, _TESTS, solver, _VERDICT)
            code = 0
        except OSError as error:
            text = {"status": "broken", "detail": f"the box could not be closed: {error}"}
            os.write(_VERDICT, json.dumps(text).encode())
        finally:
            os._exit(code)

    def _add(self, number: int, pid: int, group: Group) -> None:
        alive = os.pidfd_open(pid)
        self._boxes[alive] = _Box(number, pid, alive, time.monotonic(), group)
        self._poll.register(alive, select.POLLIN)

    def _reap(self, box: _Box) -> None:
        _, status, usage = os.wait4(box.pid, 0)
        self._poll.unregister(box.alive)
        os.close(box.alive)
        del self._boxes[box.alive]
        if "pid" not in self._layers:
            self._sweep()
        if box.end == "exit":
            self._explain(box, status, usage.ru_utime + usage.ru_stime)
        self._places.append(box.group)
        self._report({"box": box.number, "end": box.end, "status": status})

    def _explain(self, box: _Box, status: int, cpu: float) -> None:
        """Say why a box ended that this process did not end: the kernel may have, or somebody."""
        if box.group.overrun():
            box.end = "memory"
        elif os.WIFSIGNALED(status):
            spent = max(box.cpu, cpu) >= self._limits["cpu_seconds"]
            ending = os.WTERMSIG(status)
            if ending == signal.SIGXCPU or (ending == signal.SIGKILL and spent):
                box.end = "timeout"
            elif ending == signal.SIGKILL:
                # Nothing inside can reach the first process, so this came from outside.
                box.end = "killed"

    def _sweep(self) -> None:
        """Without pid namespaces: end the orphans of ended boxes, which are this one's now.

        All are stopped before any is killed: the limit on processes then keeps a fork bomb from
        growing back faster than it is killed.
        """
        known = {box.pid for box in self._boxes.values()}
        stopped: set[int] = set()
        while strays := _strays(known):
            killing = strays <= stopped
            for pid in strays:
                _signal(pid, signal.SIGKILL if killing else signal.SIGSTOP)
                with contextlib.suppress(ChildProcessError):  # its own parent goes first
                    os.waitpid(pid, os.WNOHANG)
            stopped |= strays

    def _report(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())

    def _end(self, box: _Box, reason: str) -> None:
        """Kill a box's first process, and with it (in its own pid namespace) all others."""
        box.end = reason
        os.kill(box.pid, signal.SIGKILL)

    def _watch(self, now: float) -> None:
        """End the boxes that are over a limit which the kernel does not hold them to by itself."""
        over = self._look(now)
        if over and not self._counted:
            # A child that is awaited in mid-look counts twice: as itself and in its parent.
            over = self._look(now)
        for box, reason in over:
            self._end(box, reason)

    def _look(self, now: float) -> list[tuple[_Box, str]]:
        """The boxes that are over a limit, and which."""
        if not self._counted:
            self._processes.look(box.pid for box in self._boxes.values())
        return [
            (box, reason)
            for box in self._boxes.values()
            if box.end == "exit" and (reason := self._over(box, now))
        ]

    def _over(self, box: _Box, now: float) -> str:
        group, limits = box.group, self._limits
        if group.bounds_memory:
            spent = group.overrun()
        else:
            most = limits["memory_bytes"]
            spent = self._processes.memory(box.pid, most) > most
        if spent:
            return "memory"
        cpu = group.cpu() if group.counts_cpu else self._processes.cpu(box.pid)
        box.cpu = max(box.cpu, cpu)
        if cpu > limits["cpu_seconds"] or self._late(box, now):
            return "timeout"
        return ""

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


def _strays(known: set[int]) -> set[int]:
    """The processes below this one that belong to no known box."""
    processes = Processes()
    processes.look(known | {os.getpid()})
    return {process.pid for process in processes.families[os.getpid()]} - {os.getpid()}


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _flags(layers: set[str] | frozenset[str]) -> int:
    return sum(NAMESPACES[name] for name in layers if name in NAMESPACES)


def _attempt(action: Any) -> str:
    """Why an action failed, or nothing."""
    try:
        action()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""


def _keep_only(fds: list[int]) -> None:
    """Close every descriptor but these, which become 3, 4, 5, and the null device."""
    # Lifted first, so that none is overwritten while it is still wanted.
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD, _VERDICT + 1) for fd in fds]
    for place, fd in enumerate(lifted):
        os.dup2(fd, _SUBMISSION + place, inheritable=False)
    os.closerange(_VERDICT + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


if __name__ == "__main__":
    main(int(sys.argv[1]))
