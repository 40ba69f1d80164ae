"""What programs print, compared with what they should, and counted over a problem's inputs.

The rule is LiveCodeBench's (Jain et al. 2024, arXiv 2403.07974): space around the text and around
its lines does not count, and a line of numbers may write them in another way.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from fttt.judge.problem import Judgement, StdinProblem, TestFailure

__all__ = ["OutputTally", "difference"]

_ENDED_AT_LIMITS = 3
"""Runs that end at a limit, after which the inputs that are left count as failed."""
_FAILURES = 20
_SOURCE = 2000
"""Characters of an input that a failure shows."""
_SHOWN = 200
"""Characters of a line that a failure shows."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)


def difference(printed: str, expected: str) -> str:
    """How a text differs from the expected one, for people; empty where it is the same.

    Lines are compared without the space around them. Two lines of numbers are the same where the
    numbers are equal, exactly: ``0.50 1e3`` is ``0.5 1000``, and ``0.333`` is not ``0.3333``.
    """
    got, want = _lines(printed), _lines(expected)
    if len(got) != len(want) or (got == [""] and want != got):
        return f"printed {_counted(got)}, expected {_counted(want)}"
    for number, (one, other) in enumerate(zip(got, want, strict=True), 1):
        if one != other and (_numbers(one) is None or _numbers(one) != _numbers(other)):
            return f"line {number} is {one[:_SHOWN]!r}, expected {other[:_SHOWN]!r}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _counted(lines: list[str]) -> str:
    if len(lines) == 1:
        return repr(lines[0][:_SHOWN]) if lines[0] else "nothing"
    return f"{len(lines)} lines"


def _numbers(line: str) -> list[Decimal] | None:
    words = line.split()
    if not all(_NUMBER.fullmatch(word) for word in words):
        return None
    try:
        return [Decimal(word) for word in words]
    except InvalidOperation:  # of more digits or a larger exponent than a number may have
        return None


class OutputTally:
    """The runs of one submission on a problem's inputs, in their order.

    Every input is a test. The verdict is that of the first that failed.
    """

    def __init__(self, problem: StdinProblem) -> None:
        self._problem = problem
        self._seen = self._passed = self._at_limits = 0
        self._seconds = 0.0
        self._first: Judgement | None = None
        self._failures: list[TestFailure] = []

    @property
    def decided(self) -> bool:
        """Whether the inputs that are left need not be run: too many runs ended at a limit."""
        return self._at_limits >= _ENDED_AT_LIMITS

    def add(self, ran: Judgement, printed: bytes) -> None:
        """Count the next run: how it ended, and what it printed."""
        index = self._seen
        self._seen += 1
        self._seconds += ran.seconds
        status, error = ran.status, ran.detail
        if status == "passed":
            text = printed.decode("utf-8", "replace")
            error = difference(text, self._problem.outputs[index])
            if not error:
                self._passed += 1
                return
            status = "failed"
        self._at_limits += status in ("timeout", "memory")
        if self._first is None:
            total = len(self._problem.inputs)
            self._first = Judgement(status, f"test {index + 1} of {total}: {error}")
        if len(self._failures) < _FAILURES:
            given = self._problem.inputs[index][:_SOURCE]
            self._failures.append(TestFailure(index, 0, given, error))

    def judgement(self) -> Judgement:
        """The judge's answer, with the seconds of all runs."""
        first = self._first or Judgement("passed")
        return Judgement(
            first.status,
            first.detail,
            self._seconds,
            self._passed,
            len(self._problem.inputs),
            tuple(self._failures),
        )
