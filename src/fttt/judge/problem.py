"""What the judge is asked and what it answers: the published protocol as types."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

__all__ = [
    "MAX_SUBMISSION",
    "BadRequest",
    "Border",
    "Judgement",
    "Problem",
    "Status",
    "StdinProblem",
    "Submission",
    "TestFailure",
    "read_problem",
]

MAX_SUBMISSION = 1_000_000
"""The most characters that a submission may have; compiling more would only waste its memory."""

Status = Literal["passed", "failed", "timeout", "memory", "error"]
"""``failed``: it ran or did not compile, and is wrong; ``error``: it could not be judged."""

Border = Literal["data", "shared"]
"""``data``: tests and submission in two processes; ``shared``: in one, where a problem needs it."""


class BadRequest(ValueError):  # noqa: N818
    """A request that cannot be judged as it was made; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to be written, and its tests.

    ``test`` defines ``check(candidate)``; ``entry_point`` is what is passed to it. Where it is
    empty, as in problems of the published code, ``check()`` takes nothing and calls the
    submission's functions by their names. ``border`` may be set by a problem whose tests compare
    objects of the submission's own classes: then both run in one process (still sandboxed), where a
    hostile submission can forge its verdict.
    """

    prompt: str
    test: str
    entry_point: str
    border: Border = "data"

    @classmethod
    def from_json(cls, value: object) -> Problem:
        """Check a problem object; raises :class:`BadRequest` for what is missing or of no use."""
        if not isinstance(value, Mapping):
            raise BadRequest(
                'the problem is no object; it has the fields "prompt", "test" and "entry_point", '
                'or "inputs" and "outputs"'
            )
        for field in ("prompt", "test", "entry_point"):
            if not isinstance(value.get(field), str):
                what = "has no" if field not in value else "has no text in"
                raise BadRequest(
                    f'the problem {what} field "{field}"; '
                    '"prompt", "test" and "entry_point" are needed, each a text'
                )
        border = value.get("border", "data")
        if border not in get_args(Border):
            raise BadRequest(
                f'the problem\'s border is {border!r}; allowed are "data" and "shared"'
            )
        if not value["entry_point"].strip() and _check_takes_something(value["test"]):
            raise BadRequest(
                "the problem's entry_point is empty, and its check() takes an argument; "
                "name what it is to be given"
            )
        return cls(value["prompt"], value["test"], value["entry_point"], border)

    def to_json(self) -> dict[str, str]:
        """The problem object of the protocol."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StdinProblem:
    """A program to be written that reads standard input and prints, and what it should print.

    It is run once for each of ``inputs``, behind ``prompt`` (imports, or nothing), and prints the
    text of the same place in ``outputs``. Where a function is asked for, ``entry_point`` names it,
    and ``ending``, behind the program, reads the input, calls it and prints.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    prompt: str = ""
    entry_point: str = ""
    ending: str = ""

    @classmethod
    def from_json(cls, value: object) -> StdinProblem:
        """Check a problem object; raises :class:`BadRequest` for what is missing or of no use."""
        if not isinstance(value, Mapping):
            raise BadRequest('the problem is no object; it has the fields "inputs" and "outputs"')
        for field in ("inputs", "outputs"):
            texts = value.get(field)
            if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
                raise BadRequest(f'the problem has no list of texts in field "{field}"')
        inputs, outputs = value["inputs"], value["outputs"]
        if not inputs or len(inputs) != len(outputs):
            raise BadRequest(
                f"the problem has {len(inputs)} inputs and {len(outputs)} outputs; "
                "give as many of each, and at least one"
            )
        texts = {field: value.get(field, "") for field in ("prompt", "entry_point", "ending")}
        for field, text in texts.items():
            if not isinstance(text, str):
                raise BadRequest(f'the problem has no text in field "{field}"')
        return cls(tuple(inputs), tuple(outputs), **texts)

    def to_json(self) -> dict[str, object]:
        """The problem object of the protocol."""
        return asdict(self)


def read_problem(value: object) -> Problem | StdinProblem:
    """The problem of either kind that an object describes; raises :class:`BadRequest`.

    One with ``inputs`` or ``outputs`` and without ``test`` is a program's.
    """
    if isinstance(value, Mapping) and "test" not in value and {"inputs", "outputs"} & set(value):
        return StdinProblem.from_json(value)
    return Problem.from_json(value)


def _check_takes_something(test: str) -> bool:
    """Whether the tests define a ``check`` that cannot be called without an argument."""
    try:
        body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # the box will say so
    for node in reversed(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "check":
            taken = node.args
            return len(taken.posonlyargs) + len(taken.args) > len(taken.defaults)
    return False


@dataclass(frozen=True, slots=True)
class Submission:
    """A completion, and the problem that it wants to solve."""

    problem: Problem | StdinProblem
    completion: str

    @classmethod
    def from_json(cls, value: object) -> Submission:
        """Check a request's body; raises :class:`BadRequest`."""
        if not isinstance(value, Mapping):
            raise BadRequest('the request is no object; it has the fields "problem", "completion"')
        for field in ("problem", "completion"):
            if field not in value:
                raise BadRequest(
                    f'the request has no field "{field}"; "problem", "completion" are needed'
                )
        if not isinstance(value["completion"], str):
            raise BadRequest("the completion is no text")
        return cls(read_problem(value["problem"]), value["completion"])

    @property
    def fault(self) -> str | None:
        """Why this need not even be run, or nothing."""
        if len(self.completion) > MAX_SUBMISSION:
            return (
                f"the submission has {len(self.completion)} characters; "
                f"at most {MAX_SUBMISSION} are judged"
            )
        if "\0" in self.completion:
            return "the submission holds a NUL character, which no Python source may"
        if any("\ud800" <= character <= "\udfff" for character in self.completion):
            return "the submission holds a lone surrogate, which no Python source may"
        return None

    @property
    def source(self) -> str:
        """The program that is judged."""
        ending = self.problem.ending if isinstance(self.problem, StdinProblem) else ""
        behind = f"\n{ending}" if ending else ""
        return f"{self.problem.prompt}{self.completion}{behind}"


@dataclass(frozen=True, slots=True)
class TestFailure:
    """A test that failed, for whoever knows which tests may be shown.

    ``index`` counts the tests of the problem from 0 in their order, ``line`` the lines of their
    text from 1 (0 where there is none); ``source`` is the test's own text, or what the program was
    given to read (at most 2,000 characters), ``error`` how it failed.
    """

    __test__ = False  # no class of tests, whatever pytest makes of its name

    index: int
    line: int
    source: str
    error: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judge's answer."""

    status: Status
    detail: str = ""
    seconds: float = 0.0
    """Wall time in the sandbox, waiting for a place excluded."""
    tests_passed: int = 0
    tests_total: int = 0
    """The problem's tests, counted as ``docs/judge-safety.md`` says; 0 where that is not known."""
    failures: tuple[TestFailure, ...] = ()
    """The tests that failed, in their order; at most 20, and none that never ran."""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def to_json(self) -> dict[str, object]:
        """The answer of the protocol, in characters that any encoding can carry."""
        return {
            "passed": self.passed,
            "result": _RESULTS.get(self.status, _FAILED),
            "status": self.status,
            "detail": _encodable(self.detail),
            "seconds": round(self.seconds, 6),
            "tests_passed": self.tests_passed,
            "tests_total": self.tests_total,
            "failures": [
                {
                    "index": failure.index,
                    "line": failure.line,
                    "source": _encodable(failure.source),
                    "error": _encodable(failure.error),
                }
                for failure in self.failures
            ],
        }

    @classmethod
    def from_json(cls, value: object) -> Judgement:
        """Read an answer; raises :class:`BadRequest` where it is none of this protocol.

        What answers of version 0.1 lack may be missing: the tests' numbers and the failures. So
        may all but ``passed`` and ``result``, which is what the published judge answers.
        """
        if isinstance(value, Mapping) and "status" not in value and "result" in value:
            value = {**value, "status": _status(value["result"])}
        if not isinstance(value, Mapping) or value.get("status") not in get_args(Status):
            raise BadRequest(f"an answer that is not this judge's: {str(value)[:200]}")
        if value.get("passed") is not (value["status"] == "passed"):
            raise BadRequest(f"an answer that contradicts itself: {str(value)[:200]}")
        seconds = value.get("seconds", 0.0)
        seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
        passed, total = (value.get(name, 0) for name in ("tests_passed", "tests_total"))
        try:
            failures = tuple(TestFailure(**failure) for failure in value.get("failures", ()))
        except TypeError:
            raise BadRequest(f"an answer with odd failures: {str(value)[:200]}") from None
        if not (isinstance(passed, int) and isinstance(total, int) and 0 <= passed <= total):
            raise BadRequest(f"an answer with {passed!r} of {total!r} tests passed")
        return cls(value["status"], str(value.get("detail", "")), seconds, passed, total, failures)


_PASSED, _TIMED_OUT, _FAILED = 1, 2, 3
_RESULTS: Mapping[str, int] = {"passed": _PASSED, "timeout": _TIMED_OUT}
"""The published judge's numbers; what is neither of these has failed."""


def _status(result: object) -> Status | None:
    """What a published judge's result means: a number, or a text in older versions of it."""
    if result in (_PASSED, "passed"):
        return "passed"
    if result in (_TIMED_OUT, "timed out"):
        return "timeout"
    known = result == _FAILED or (isinstance(result, str) and result.startswith("failed"))
    return "failed" if known else None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
