"""Programs judged by unit tests, or by what they print, in the sandboxed judge."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.program_extraction import Program, find_program
from fttt.verifiers.verifier import feedback_on

if TYPE_CHECKING:
    from fttt.judge.client import Judge
    from fttt.judge.problem import Judgement, Problem, StdinProblem

__all__ = ["CodeVerifier"]

_NO_TESTS = "def check(*candidates):\n    pass\n"
_FAILURES = 3
"""Failed tests that feedback shows."""
_SHOWN = 1000
"""Characters of each of them, and of its error."""
_LIMITS = {
    "timeout": "the program takes too long",
    "memory": "the program needs too much memory",
}


_PASSES_KNOWN = "Your answer is incorrect: the program passes the tests that you know, not all."
_FAILS_HIDDEN = "Your answer is incorrect: the program fails a test."


class CodeVerifier:
    """A client of the code judge; a question's gold is the judge's problem object.

    The object may also have ``visible``: tests in the form of ``test`` that the model may be shown.
    A failed program is run once more with these alone, and feedback is made from that run only, so
    that no hidden test leaks into it. Where the program reads standard input, ``visible`` is the
    number of tests, from the first, that may be shown; each is a run of its own anyway.

    ``judge_url`` (else the variable ``OJ_API``) is the address of a served judge; without either,
    an embedded judge starts with the first program, in this process tree.
    """

    def __init__(self, judge_url: str | None = None, *, judge: Judge | None = None) -> None:
        """Prepare the client.

        Raises:
            UsageError: a package that asks a judge is not installed.
        """
        missing = [name for name in ("httpx", "tenacity") if find_spec(name) is None]
        if missing:
            raise UsageError(
                f"Judging programs needs the package {missing[0]!r}, which is not installed; "
                "run: pip install 'fttt[judge]'"
            )
        self._judge_url = judge_url
        self._judge = judge

    def extract(self, question: Question, completion: str) -> str | None:
        """The program in ``completion`` without comments and layout; ``None`` without one.

        Programs that differ only in these vote together.
        """
        # Here, since the sandbox's libraries are Linux's own and only programs need them.
        from fttt.judge.problem import BadRequest, read_problem

        try:
            found = _find(read_problem(question.gold), completion)
        except BadRequest:
            return None
        if found is None:
            return None
        try:
            return ast.unparse(ast.parse(found.code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return found.code

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Run the program in ``completion`` against the tests of ``question.gold``.

        The score is the share of the tests that passed. Where the judge cannot judge, the verdict
        is incorrect with a detail that says so, and has no score.

        Raises :class:`fttt.errors.RunError` where the judge is down.
        """
        from fttt.judge.client import find_judge
        from fttt.judge.problem import BadRequest, Problem, Submission, read_problem

        try:
            problem = read_problem(question.gold)
        except BadRequest as error:
            return _unjudged(None, str(error))
        program = _find(problem, completion)
        if program is None:
            said = feedback_on("unanswered", None)
            detail = "no Python program was found"
            return Verdict("unanswered", detail=detail, feedback=said, score=0.0)
        if self._judge is None:
            self._judge = find_judge(self._judge_url)
        if program.before:
            problem = replace(problem, prompt=program.before + problem.prompt)
        judgement = await self._judge.judge(Submission(problem, program.behind))
        if judgement.status == "error":
            return _unjudged(program.code, judgement.detail, judgement.seconds)
        if judgement.passed:
            said = feedback_on("correct", None)
            return _judged(judgement, program.code, "", judgement.seconds, said)
        detail = f"{judgement.status}: {judgement.detail}" if judgement.detail else judgement.status
        if not isinstance(problem, Problem):
            feedback = _feedback_on_output(judgement, _shown_count(question))
            return _judged(judgement, program.code, detail, judgement.seconds, feedback)
        seen, seconds = judgement, judgement.seconds
        visible = _visible(question)
        if judgement.status == "failed" and visible != problem.test:
            shown = replace(problem, test=visible or _NO_TESTS)
            seen = await self._judge.judge(Submission(shown, program.behind))
            seconds += seen.seconds
        feedback = _feedback(seen, told=bool(visible))
        return _judged(judgement, program.code, detail, seconds, feedback)

    async def close(self) -> None:
        """End the embedded judge or close the connections to a served one."""
        judge, self._judge = self._judge, None
        if judge is not None:
            await judge.close()


def _find(problem: Problem | StdinProblem, completion: str) -> Program | None:
    from fttt.judge.problem import StdinProblem

    if isinstance(problem, StdinProblem):
        entry, stdin = problem.entry_point, not problem.entry_point
        return find_program(completion, prompt=problem.prompt, entry_point=entry, stdin=stdin)
    return find_program(
        completion, prompt=problem.prompt, entry_point=problem.entry_point, test=problem.test
    )


def _visible(question: Question) -> str:
    """The tests that the model may be shown, in the form of ``test``; empty without any."""
    visible = question.gold.get("visible") if isinstance(question.gold, Mapping) else None
    return visible if isinstance(visible, str) else ""


def _shown_count(question: Question) -> int:
    """How many tests of a program that prints may be shown, from the first."""
    shown = question.gold.get("visible") if isinstance(question.gold, Mapping) else None
    return shown if isinstance(shown, int) else 0


def _judged(judgement: Judgement, code: str, detail: str, seconds: float, feedback: str) -> Verdict:
    passed, total = judgement.tests_passed, judgement.tests_total
    share = passed / total if passed < total else 0.0  # it may fail outside of its tests
    return Verdict(
        "correct" if judgement.passed else "incorrect",
        code,
        detail,
        seconds,
        feedback,
        score=1.0 if judgement.passed else share,
        tests_passed=passed if total else None,
        tests_total=total or None,
    )


def _unjudged(code: str | None, why: str, seconds: float = 0.0) -> Verdict:
    detail = f"the judge could not judge it: {why}"
    said = "Your answer could not be checked."
    return Verdict("incorrect", code, detail, seconds, said, failed=True)


def _feedback(seen: Judgement, *, told: bool) -> str:
    """Feedback from a run without hidden tests; ``told``: whether the model knows any test."""
    if seen.passed and told:
        return _PASSES_KNOWN
    if seen.passed or seen.status == "error":
        return _FAILS_HIDDEN
    if seen.status in _LIMITS:
        return f"Your answer is incorrect: {_LIMITS[seen.status]}."
    if not seen.failures:
        return f"Your answer is incorrect: {seen.detail[:_SHOWN]}"
    tests = [
        f"```python\n{failure.source[:_SHOWN]}\n```\n{failure.error[:_SHOWN]}"
        for failure in seen.failures[:_FAILURES]
    ]
    return "\n".join(["Your answer is incorrect. The program fails", *tests])


def _feedback_on_output(judgement: Judgement, shown: int) -> str:
    """Feedback on a program that prints, from the tests that may be shown."""
    known = [failure for failure in judgement.failures if failure.index < shown]
    if known:
        tests = [
            f"Input:\n```\n{failure.source[:_SHOWN].rstrip()}\n```\n{failure.error[:_SHOWN]}"
            for failure in known[:_FAILURES]
        ]
        return "\n".join(["Your answer is incorrect. The program fails", *tests])
    if judgement.status in _LIMITS:
        return f"Your answer is incorrect: {_LIMITS[judgement.status]}."
    return _PASSES_KNOWN if shown else _FAILS_HIDDEN
