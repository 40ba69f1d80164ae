from __future__ import annotations

import operator
import os
import socket
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from fttt.judge.box import channel as channel_module
from fttt.judge.box import tester as tester_module
from fttt.judge.box.channel import BrokenBorder, Channel
from fttt.judge.box.identities import CandidateError
from fttt.judge.box.peer import Peer, Refused
from fttt.judge.box.remote import is_remote
from fttt.judge.box.solver import Solver


def ask(
    namespace: dict[str, Any],
    use: Callable[[tester_module.Tester, Any], Any],
    threads: bool = False,
) -> Any:
    """Let ``use`` work with a tester whose solver, in a process of its own, holds ``f``."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            Solver(Channel(theirs), namespace).serve_on()
        finally:
            os._exit(0)
    theirs.close()
    try:
        tester = tester_module.Tester(Channel(ours))
        if threads:
            tester.read_on()
        found = tester.ask("begin", None, (list(namespace), {}, threads), {})
        return use(tester, found["values"]["f"])
    finally:
        ours.shutdown(socket.SHUT_RDWR)
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


class Anything:
    """Equal to everything, and less and more."""

    def __eq__(self, other: object) -> bool:
        return True

    def __lt__(self, other: object) -> bool:
        return True

    __gt__ = __le__ = __ge__ = __lt__
    __hash__ = object.__hash__

    def __sub__(self, other: object) -> float:
        return 0.0

    __rsub__ = __add__ = __radd__ = __sub__

    def __contains__(self, item: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter((1,))


def test_no_value_of_the_tests_is_shown_to_be_compared() -> None:
    def use(tester: tester_module.Tester, remote: Any) -> Any:
        found = remote()
        assert is_remote(found)
        assert operator.ne(found, 5)
        assert not operator.eq(found, 5)
        assert not operator.eq(5, found)
        assert [found] != [5]
        assert {found: 1}.get(5) is None
        assert found not in (5, "x")
        assert 5 not in found
        assert 1 in found, "by what it iterates over"
        for operation in (
            lambda: found - 5, lambda: 5 - found, lambda: found + 1, lambda: found < 5,
            lambda: operator.lt(5, found), lambda: sorted([found, 5]),
        ):  # fmt: skip
            with pytest.raises(TypeError):
                operation()
        assert found == remote(), "two of its own objects it compares"
        assert found < remote()
        tester.shows_operands = True
        assert found - 5 == 0.0, "where a class is asked for"
        assert found != 5, "but equality with a plain value stays identity"
        return True

    assert ask({"f": Anything}, lambda tester, cls: use(tester, cls))
    assert ask({"f": lambda: Anything()}, use)


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __lt__(self, other: object) -> bool:
        return True

    __gt__ = __ge__ = __le__ = __lt__

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __sub__(self, other: object) -> int:
        return 0

    __rsub__ = __sub__

    def __bool__(self) -> bool:
        return True


class Pretender(dict[Any, Any]):
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __class_getitem__(cls, key: object) -> Any:
        return cls

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "other"), [(Liar(3), 7), (Pretender({1: 2}), {1: 3})], ids=["int", "dict"]
)
def test_data_of_a_class_of_its_own_is_compared_as_data(value: Any, other: Any) -> None:
    def use(_: Peer, remote: Any) -> Any:
        found = remote()
        assert operator.ne(found, other)
        assert not operator.eq(found, other)
        assert not operator.eq(other, found)
        assert other not in [found]
        if isinstance(other, int):
            assert not found > other
            assert not other < found
            assert abs(found - other) == 4
            assert found == 3
        return True

    assert ask({"f": lambda: value}, use)


def test_a_handle_keeps_its_identity() -> None:
    thing = types.SimpleNamespace()
    other = threading.Lock()

    def use(_: Peer, remote: Any) -> Any:
        first, second = remote(), remote()
        assert first is second
        assert {first: 1}[second] == 1
        return True

    assert ask({"f": lambda: other}, use)
    assert ask({"f": lambda: thing}, lambda _, remote: remote() == types.SimpleNamespace())


@pytest.mark.parametrize("kind", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_steers_the_interpreter_arrives_as_an_error(kind: type[BaseException]) -> None:
    class Own(kind):  # type: ignore[misc, valid-type]
        pass

    def f(own: bool) -> None:
        raise Own if own else kind

    def use(_: Peer, remote: Any) -> Any:
        for own in (True, False):
            with pytest.raises(CandidateError, match=kind.__name__ if not own else "Own"):
                remote(own)
        return True

    assert ask({"f": f}, use)


def test_exceptions_keep_type_arguments_attributes_and_changes_made_before() -> None:
    class OwnError(KeyError):
        def __init__(self, key: str) -> None:
            super().__init__(key)
            self.code = 7

        def twice(self) -> int:
            return 2 * self.code

    def f(values: list[int]) -> None:
        values.append(2)
        raise OwnError("k")

    def use(_: Peer, remote: Any) -> Any:
        values = [1]
        with pytest.raises(KeyError) as caught:
            remote(values)
        error: Any = caught.value
        return values, error.args, error.code, error.twice(), type(error).__name__

    assert ask({"f": f}, use) == ([1, 2], ("k",), 7, 14, "OwnError")


def test_an_exception_of_the_tests_comes_back_as_itself() -> None:
    class MineError(Exception):
        pass

    error = MineError("x")

    def callback() -> None:
        raise error

    def f(callback: Callable[[], None]) -> None:
        try:
            callback()
        finally:
            del callback

    def use(_: Peer, remote: Any) -> Any:
        with pytest.raises(MineError) as caught:
            remote(callback)
        return caught.value is error

    assert ask({"f": f}, use)


def test_a_value_too_large_to_cross_is_refused_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def use(tester: tester_module.Tester, remote: Any) -> Any:
        monkeypatch.setattr(channel_module, "MAX_MESSAGE", 1000)
        assert remote(2) == "xx"
        with pytest.raises(Refused, match="at most 1000 may cross"):
            remote("x" * 2000)
        assert remote([3][0]) == "xxx", "the border still holds"
        return tester.refused

    assert "may cross" in ask({"f": lambda n: "x" * n}, use)

    def answer(tester: tester_module.Tester, remote: Any) -> Any:
        with pytest.raises(Refused, match="cannot cross"):
            remote(60 << 20)
        assert remote(2) == "\u00e92"
        return tester.refused

    assert "cannot cross" in ask({"f": lambda n: "\u00e9" * (n // 2) + str(n)}, answer)


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

    def gather() -> Any:
        yield 1

    def f(node: Any, name: str) -> Any:
        found = getattr(node, name)
        return found() if callable(found) else found

    def use(_: Peer, remote: Any) -> Any:
        node = Node()
        assert remote(node, "value") == 1
        assert remote(node, "double") == 2
        assert remote(node, "__dict__") == {"value": 1}
        for name in ("_secret", "__globals__", "__reduce__", "__init__"):
            with pytest.raises((TypeError, AttributeError)):
                remote(node, name)
        for name in ("__globals__", "__closure__", "func_globals", "__self__", "__builtins__"):
            with pytest.raises((TypeError, AttributeError)):
                remote(lambda: node, name)
            with pytest.raises((TypeError, AttributeError)):
                remote(node.double, name)
        for name in ("gi_frame", "gi_code", "gi_yieldfrom"):
            with pytest.raises((TypeError, AttributeError)):
                remote(gather(), name)
        return True

    assert ask({"f": f}, use)


@pytest.mark.parametrize(
    "value",
    [types.ModuleType("tests"), (lambda: 0).__code__, Channel.__new__(Channel)],
    ids=["module", "code", "channel"],
)
def test_what_would_lead_to_the_tests_may_not_cross(value: Any) -> None:
    def use(tester: tester_module.Tester, remote: Any) -> Any:
        with pytest.raises(Refused, match="may not cross"):
            remote(value)
        with pytest.raises(Refused, match="may not cross"):
            remote([1, {"a": value}])
        return remote([1, 2])

    assert ask({"f": lambda x: x}, use) == [1, 2]


def test_containers_stay_in_step_only_while_somebody_holds_them() -> None:
    kept: list[Any] = []

    def f(values: Any, keep: bool) -> Any:
        if keep:
            kept.append(values)
        return sum(map(sum, kept))

    def use(tester: tester_module.Tester, remote: Any) -> Any:
        for n in range(20):
            assert remote([n], False) == 0
            assert remote([[n], (n, [n])][0], False) == 0
        assert not tester.groups, "nobody kept any"
        values = [1, 2]
        assert remote(values, True) == 3
        assert len(tester.groups) == 1
        values.append(4)
        assert remote([], False) == 7
        values = []
        for _ in range(3):
            remote([], False)
        assert not tester.groups, "the tests let it go"
        large = list(range(1000))
        remote(large, False)
        assert len(tester.groups) == 1, "what is large is cached"
        large[3] = 0
        assert remote(large, True) == 7 + sum(large)
        return True

    assert ask({"f": f}, use)


def test_each_thread_is_served_by_one_of_its_own() -> None:
    gate = threading.Barrier(3)

    def f(callback: Callable[[int], int], number: int) -> Any:
        gate.wait(5)
        return threading.get_ident(), callback(number)

    def use(_: Peer, remote: Any) -> Any:
        found: dict[int, Any] = {}

        def work(number: int) -> None:
            found[number] = [remote(lambda n: 2 * n, number) for _ in range(2)]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert {number: pairs[0][1] for number, pairs in found.items()} == {0: 0, 1: 2, 2: 4}
        idents = [{ident for ident, _ in pairs} for pairs in found.values()]
        assert all(len(each) == 1 for each in idents)
        assert len(set.union(*idents)) == 3
        return True

    assert ask({"f": f}, use, threads=True)
