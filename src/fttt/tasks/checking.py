"""Runs a task's own gold answers, and wrong ones, through the task's verifier."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fttt.errors import UsageError
from fttt.tasks.base import Task, TaskOptions
from fttt.tasks.perturb import rewritten_answers, wrong_answers, wrong_programs
from fttt.tasks.prompts import fenced
from fttt.types import Question
from fttt.verifiers.base import Verifier
from fttt.verifiers.math import MathVerifier
from fttt.verifiers.number import NumberVerifier

__all__ = ["CheckReport", "Mistake", "Tally", "check_task"]

_AT_ONCE = 64
_FENCED = re.compile(r"```python\n(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One verdict that was not the expected one."""

    question_id: str
    completion: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tally:
    """How many completions of one sort were judged, and which wrongly."""

    judged: int
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :func:`check_task` found."""

    task: str
    split: str
    questions: int
    golds: Tally
    """Gold answers, which must be correct."""
    rewritten: Tally
    """Gold answers of mathematics written in other ways, which must be correct."""
    solutions: Tally
    """Gold solutions, which must be correct."""
    wrong: Tally
    """Wrong answers made from the gold ones, of which none may be correct."""
    broken: tuple[str, ...]
    """Questions left out, since their gold is known to be missing or wrong in the benchmark."""

    @property
    def as_expected(self) -> bool:
        tallies = (self.golds, self.rewritten, self.solutions, self.wrong)
        return not any(tally.mistakes for tally in tallies)


async def check_task(task: Task, options: TaskOptions) -> CheckReport:
    """Judge every gold answer, gold solution and deliberately wrong answer of a split.

    Raises:
        UsageError: the questions cannot be read, or nothing in them can be judged.
        RunError: judging is impossible (the judge is down).
    """
    questions = task.load(options)
    known = getattr(task, "broken", {})
    sound = [question for question in questions if question.id not in known]
    verifier = task.verifier()
    try:
        golds = [(q, text) for q in sound for text in _golds(q, verifier)]
        rewritten = [(q, text) for q in sound for text in _rewritten(q, verifier)]
        solutions = [(q, q.solution) for q in sound if q.solution is not None]
        wrong = [(q, text) for q in sound for text in _wrong(q, verifier)]
        if not (golds or rewritten or solutions or wrong):
            raise UsageError(
                f"There is nothing to judge in the {len(questions)} questions of {task.name!r}: "
                "none has a worked solution, and how an answer is stated is known for numbers, "
                "mathematics and programs only; give them solutions."
            )
        return CheckReport(
            task=task.name,
            split=options.split,
            questions=len(questions),
            golds=await _judge(verifier, golds, correct=True),
            rewritten=await _judge(verifier, rewritten, correct=True),
            solutions=await _judge(verifier, solutions, correct=True),
            wrong=await _judge(verifier, wrong, correct=False),
            broken=tuple(question.id for question in questions if question.id in known),
        )
    finally:
        await verifier.close()


def _stated(verifier: Verifier, answers: Iterable[str]) -> list[str]:
    """Completions that state answers as the verifier reads them; none where it reads none."""
    if isinstance(verifier, NumberVerifier):
        return [f"The final answer is {answer}" for answer in answers]
    if isinstance(verifier, MathVerifier):
        return [f"\\boxed{{{answer}}}" for answer in answers]
    return []


def _golds(question: Question, verifier: Verifier) -> list[str]:
    return _stated(verifier, [str(question.gold)])


def _rewritten(question: Question, verifier: Verifier) -> list[str]:
    if not isinstance(verifier, MathVerifier) or verifier.rule == "strict":
        return []
    return _stated(verifier, rewritten_answers(str(question.gold)))


def _wrong(question: Question, verifier: Verifier) -> list[str]:
    if isinstance(question.gold, str):
        return _stated(verifier, wrong_answers(question.gold))
    program = _FENCED.search(question.solution or "")
    if isinstance(question.gold, Mapping) and program is not None:
        return [fenced(code) for code in wrong_programs(program[1])]
    return []


async def _judge(
    verifier: Verifier, cases: Sequence[tuple[Question, str]], *, correct: bool
) -> Tally:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(question: Question, completion: str) -> Mistake | None:
        async with gate:
            verdict = await verifier.verify(question, completion)
        if verdict.correct == correct:
            return None
        return Mistake(question.id, completion, verdict.outcome, verdict.detail)

    found = await asyncio.gather(*(one(question, text) for question, text in cases))
    return Tally(len(cases), tuple(mistake for mistake in found if mistake is not None))
