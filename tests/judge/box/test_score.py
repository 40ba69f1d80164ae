from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from fttt.judge.box.score import SCORE, Score, instrument


def run(test: str, candidate: Callable[..., Any]) -> Score:
    """Run tests with a candidate in this process, counted."""
    tree = ast.parse(test)
    score = instrument(tree, test)
    space: dict[str, Any] = {SCORE: score}
    exec(compile(tree, "<tests>", "exec", dont_inherit=True), space)
    space["check"](candidate)
    return score


def plain(test: str, candidate: Callable[..., Any]) -> bool:
    """Whether the tests pass as they are."""
    space: dict[str, Any] = {}
    exec(compile(test, "<tests>", "exec", dont_inherit=True), space)
    try:
        space["check"](candidate)
    except Exception:
        return False
    return True


def square_of_evens(value: int) -> int:
    if value == 13:
        raise ValueError("unlucky")
    return value * value if value % 2 == 0 else -1


CASES: dict[str, tuple[str, int, int]] = {
    "every assert": ("assert f(2) == 4\nassert f(3) == 9\nassert f(4) == 16", 2, 3),
    "an exception is a failure as well": ("assert f(13) == 1\nassert f(2) == 4", 1, 2),
    "turns of a loop over a range": ("for i in range(10): assert f(i) == i * i", 5, 10),
    "turns over two lists": (
        "xs, ys = [1, 2, 4], [1, 4, 16]\n"
        "for i, (x, y) in enumerate(zip(xs, ys)):\n    assert f(x) == y, i", 2, 3,
    ),
    "a loop over what the candidate made is one test": (
        "for x in (f(i) for i in range(4)):\n    assert x >= 0\nassert f(2) == 4", 1, 2,
    ),
    "calls of a helper": (
        "def same(a, b):\n    assert a == b\nsame(f(2), 4)\nsame(f(3), 9)\nprint('done')", 1, 2,
    ),
    "another name for it": ("square = f\nsquare(13)\nsquare(2)", 1, 2),
    "the result of a failed step": (
        "x = f(2)\nassert x == 4\nx = f(13)\nassert x == 4\nassert f(4) == 16", 2, 3,
    ),
    "a name that two loops share": (
        "for x in [2, 13]: assert f(x) == 4\nfor x in [4]: assert f(x) == 16", 2, 3,
    ),
    "a try around it": (
        "try:\n    f(13)\nexcept ValueError: pass\nelse: assert False\nassert f(3) == 9", 1, 2,
    ),
    "an early return": ("assert f(3) == 9\nif f(2) == 4: return\nassert f(4)", 0, 2),
    "nothing that could fail": ("f(2) == 4 if f else None\nprint(2)", 1, 1),
    "a generator": ("yield f(13)", 1, 1),
    "one that looks at its own variables": ("assert list(locals()) == ['f']", 1, 1),
    "breaks": ("for i in range(9):\n    if i == 3: break\n    assert f(i) == i * i", 3, 9),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tests_are_counted_and_their_verdict_kept(name: str) -> None:
    body, passed, total = CASES[name]
    test = f"def check(f):\n{textwrap.indent(body, '    ')}\n"
    score = run(test, square_of_evens)
    assert score.end() == (passed, total)
    assert (not score.failed) is plain(test, square_of_evens)


def test_a_check_that_ends_early_and_well_has_passed_whole() -> None:
    test = "def check(f):\n assert f(2) == 4\n if f(4): return\n assert f(3) == 9\n"
    score = run(test, square_of_evens)
    assert score.end() == (2, 2)


def test_failures_say_which_test_it_was() -> None:
    test = (
        "def check(f):\n    x = 1\n    assert f(2) == 4\n    assert f(3) == 9, 'three'\n    f(13)\n"
    )
    score = run(test, square_of_evens)
    found = [(failure.index, failure.line, failure.source) for failure in score.failures]
    assert found == [(1, 4, "assert f(3) == 9, 'three'"), (2, 5, "f(13)")]


def test_the_first_failure_is_the_verdict() -> None:
    tree = ast.parse(test := "def check(f):\n assert f(2) == 4\n f(13)\n assert f(3) == 9\n")
    score, seen = instrument(tree, test), list[BaseException]()
    score.on_failure = seen.append
    space: dict[str, Any] = {SCORE: score}
    exec(compile(tree, "<tests>", "exec", dont_inherit=True), space)
    space["check"](square_of_evens)
    assert [type(error) for error in seen] == [ValueError]


def test_what_nothing_survives_ends_the_check() -> None:
    def f(value: int) -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        run("def check(f):\n assert f(2) == 4\n assert f(3) == 9\n", f)
