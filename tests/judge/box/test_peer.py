from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from fttt.judge.box import channel as channel_module
from fttt.judge.box import tester as tester_module
from fttt.judge.box.channel import BrokenBorder, Channel
from fttt.judge.box.peer import CandidateError, Peer, Remote
from fttt.judge.box.solver import Solver


def ask(namespace: dict[str, Any], use: Callable[[Peer, Any], Any]) -> Any:
    """Let ``use`` work with a tester whose solver, in a process of its own, holds ``f``."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        channel = Channel(theirs)
        solver = Solver(channel, namespace)
        try:
            while True:
                solver.serve(channel.receive())
        finally:
            os._exit(0)
    theirs.close()
    try:
        tester = tester_module.Tester(Channel(ours))
        found = tester.ask("names", None, tuple(namespace), {})
        return use(tester, found["f"][1])
    finally:
        ours.close()
        os.waitpid(pid, 0)


def test_calls_nest_to_any_depth() -> None:
    def f(callback: Callable[[int], int], depth: int) -> int:
        return 0 if depth == 0 else 1 + callback(depth - 1)

    def use(_: Peer, remote: Any) -> Any:
        def callback(depth: int) -> Any:
            return remote(callback, depth)

        return remote(callback, 20)

    assert ask({"f": f}, use) == 20


def test_a_handle_keeps_its_identity_and_never_compares_by_value() -> None:
    class Thing:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    thing = Thing()

    def use(_: Peer, remote: Any) -> Any:
        first, second = remote(), remote()
        assert isinstance(first, Remote)
        assert first is second
        assert first != 5
        assert {first: 1}[second] == 1
        with pytest.raises(TypeError):
            first + 1
        return True

    assert ask({"f": lambda: thing}, use)


@pytest.mark.parametrize("kind", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_steers_the_interpreter_arrives_as_an_error(kind: type[BaseException]) -> None:
    def f() -> None:
        raise kind

    def use(_: Peer, remote: Any) -> Any:
        with pytest.raises(CandidateError, match=kind.__name__):
            remote()
        return True

    assert ask({"f": f}, use)


def test_exceptions_keep_type_arguments_and_changes_made_before() -> None:
    def f(values: list[int]) -> None:
        values.append(2)
        raise KeyError("k", 7)

    def use(_: Peer, remote: Any) -> Any:
        values = [1]
        with pytest.raises(KeyError) as caught:
            remote(values)
        return values, caught.value.args

    assert ask({"f": f}, use) == ([1, 2], ("k", 7))


def test_a_value_too_large_to_cross_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "MAX_MESSAGE", 1000)

    def use(tester: Peer, remote: Any) -> Any:
        with pytest.raises(ValueError, match="at most 1000 may cross"):
            remote(2000)
        assert remote(2) == "xx"
        with pytest.raises(BrokenBorder, match="may cross"):
            remote("x" * 2000)
        return tester.broken

    assert "may cross" in ask({"f": lambda n: "x" * n}, use)


def test_a_border_that_broke_stays_broken() -> None:
    def use(tester: Peer, remote: Any) -> Any:
        for _ in range(2):
            with pytest.raises(BrokenBorder, match="the other process ended"):
                remote()
        return tester.broken

    assert ask({"f": lambda: os._exit(0)}, use) == "the other process ended"


def test_of_the_testers_objects_only_what_was_handed_over_can_be_used() -> None:
    class Node:
        def __init__(self) -> None:
            self.value, self._secret = 1, 2

        def double(self) -> int:
            return 2 * self.value

    Node.__module__ = "tests"

    def f(node: Any, name: str) -> Any:
        found = getattr(node, name)
        return found() if callable(found) else found

    def use(_: Peer, remote: Any) -> Any:
        node = Node()
        assert remote(node, "value") == 1
        assert remote(node, "double") == 2
        for name in ("_secret", "__dict__"):
            with pytest.raises(TypeError, match="getattr is not allowed on this object"):
                remote(node, name)
        with pytest.raises(TypeError, match='"border": "shared"'):
            remote(object(), "value")
        return True

    assert ask({"f": f}, use)
