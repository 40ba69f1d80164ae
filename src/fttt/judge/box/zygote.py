"""The zygote: a warm interpreter from which every box is forked.

It finds out which layers hold, and makes a keeper for each place, which makes the boxes. Neither
ever sees a submission or its tests: a request carries their file descriptors, which go to the box
unread, so nothing of one submission is left in the heap that the next box inherits.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import socket
import sys
from typing import Any

from .channel import BrokenBorder, Channel
from .confine import NAMESPACES, clone, confine, leave_root, trim_memory
from .keeper import Keeper, namespaces, try_in
from .solver import run_solver, serve
from .tester import run_tests
from .usage import ControlGroup

__all__ = ["main"]

_DESCRIPTORS = 253  # the most that the kernel carries in one message
_COLLECT = 10_000
"""The new objects at which a box collects garbage."""
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
    trim_memory()
    # Pages that the collector never touches stay shared between all boxes.
    gc.collect()
    gc.freeze()
    # A collection of the first few hundred objects would only cost each box time.
    gc.set_threshold(_COLLECT, *gc.get_threshold()[1:])
    places = [ControlGroup(place, fds) for place in groups.get("places", [{}] * plan["places"])]
    answers = _probe(plan)
    plan["layers"] = [name for name in plan["layers"] if not answers[name]]
    keepers, found = _make_keepers(control, plan, places)
    control.send(json.dumps({"layers": answers, "groups": fault or found}).encode())
    control.close()
    while keepers:
        pid, status = os.wait()
        keepers.discard(pid)
        if status:
            break  # what is asked of it would never be answered; the others end with this process


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


def _probe(plan: dict[str, Any]) -> dict[str, str]:
    """Try every layer in a process of its own; why those do not hold that do not."""
    answers: dict[str, str] = {}
    program, ids = bytes.fromhex(plan["filter"]), (os.getuid(), os.getgid())

    def enter(layers: set[str]) -> None:
        try_in(layers, lambda: confine(frozenset(layers), plan["limits"], program, ids))

    layers = set(plan["layers"])
    together = _attempt(lambda: enter(layers & set(NAMESPACES)))
    for name in sorted(layers & set(NAMESPACES)):
        # All others live in the user namespace, so each is tried together with it.
        answers[name] = together and _attempt(lambda name=name: enter({"user", name}))
    held = {name for name, error in answers.items() if not error}
    for name in sorted(layers - set(NAMESPACES)):
        answers[name] = _attempt(lambda name=name: enter(held & {"user", "mount"} | {name}))
    return answers


def _make_keepers(
    control: socket.socket, plan: dict[str, Any], places: list[ControlGroup]
) -> tuple[set[int], str]:
    """Make a keeper for each place, and say why one of them cannot make boxes there."""
    keepers, answers, faults = set[int](), list[int](), list[str]()
    for place in places:
        read, write = os.pipe()
        keeper = Keeper(control, plan, place)
        pid = clone(namespaces(keeper.own_layers))
        if pid == 0:
            os.close(read)
            keeper.live(write)
        os.close(write)
        keepers.add(pid)
        answers.append(read)
    for read in answers:
        with os.fdopen(read, "rb") as answer:
            faults.append(answer.read().decode(errors="replace"))
    return keepers, next(filter(None, faults), "")


def _attempt(action: Any) -> str:
    """Why an action failed, or nothing."""
    try:
        action()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""
