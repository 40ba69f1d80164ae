from __future__ import annotations

import pytest

from fttt.judge.outputs import OutputTally, difference
from fttt.judge.problem import Judgement, StdinProblem


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("3", "3\n"),
        ("\n 3 \r\n", "3"),
        ("1 2 3\n4 \n", "1 2 3\n  4"),
        ("0.50 1e3", "0.5 1000"),
        ("7.0", "7"),
        ("-0", "0"),
        ("1  2", "1 2"),
        ("Yes\n\nNo", "Yes\n\nNo"),
        ("", "\n"),
        ("12345678901234567890123.0", "12345678901234567890123"),
    ],
)
def test_the_same_output(printed: str, expected: str) -> None:
    assert difference(printed, expected) == ""


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("", "3"),
        ("3\n3", "3"),
        ("3 3", "3"),
        ("1\n2", "1 2"),
        ("0.333", "0.3333"),
        ("50000000000000001", "50000000000000000"),
        ("yes", "Yes"),
        ("a  b", "a b"),  # space within a line counts, but between numbers
        ("nan", "NaN"),
        ("sNaN", "1"),
        ("1e9999999999999999999", "1"),
        ("1_000", "1000"),
        ("\u0663", "3"),  # an Arabic digit
        ("Yes\nNo", "Yes\n\nNo"),
        ("3\x00", "3"),
    ],
)
def test_another_output(printed: str, expected: str) -> None:
    assert difference(printed, expected)


def test_a_difference_is_told_for_people() -> None:
    assert difference("1\n3", "1\n2") == "line 2 is '3', expected '2'"
    assert difference("1\n3", "1") == "printed 2 lines, expected '1'"
    assert difference(" ", "1\n2") == "printed nothing, expected 2 lines"


def test_the_first_failure_decides_and_all_are_counted() -> None:
    tally = OutputTally(StdinProblem(("a", "b", "c"), ("1", "2", "3")))
    tally.add(Judgement("passed", seconds=0.5), b"1\n")
    tally.add(Judgement("failed", "ValueError: no", seconds=0.25), b"2\n")
    tally.add(Judgement("passed", seconds=0.25), b"4")
    found = tally.judgement()
    assert (found.status, found.detail) == ("failed", "test 2 of 3: ValueError: no")
    assert (found.tests_passed, found.tests_total, found.seconds) == (1, 3, 1.0)
    assert [(f.index, f.source) for f in found.failures] == [(1, "b"), (2, "c")]


def test_after_three_runs_that_end_at_a_limit_no_more_are_needed() -> None:
    tally = OutputTally(StdinProblem(tuple("abcde"), tuple("12345")))
    tally.add(Judgement("passed"), b"1")
    for status in ("timeout", "memory"):
        tally.add(Judgement(status), b"")  # type: ignore[arg-type]
        assert not tally.decided
    tally.add(Judgement("timeout"), b"")
    assert tally.decided
    found = tally.judgement()
    assert (found.status, found.tests_passed, found.tests_total) == ("timeout", 1, 5)
