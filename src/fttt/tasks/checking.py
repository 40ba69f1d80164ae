"""Runs a task's own gold answers, and wrong ones, through the task's verifier."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fttt.errors import UsageError
from fttt.tasks.base import Task, TaskOptions
from fttt.tasks.perturb import (
    echoes,
    number_lists,
    rewritten_answers,
    wrong_answers,
    wrong_programs,
)
from fttt.tasks.prompts import fenced
from fttt.types import Question
from fttt.verifiers.base import Verifier, verify_completion
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
class _Case:
    """A completion to judge."""

    question: Question
    completion: str
    cut: bool = False
    """Whether it is said to have ended at its length limit."""


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
    """Wrong answers made from the gold ones, and what is no answer at all (the question repeated,
    lists of numbers, the gold answer cut off), of which none may be correct."""
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
        golds = [_Case(q, text) for q in sound for text in _golds(q, verifier)]
        rewritten = [_Case(q, text) for q in sound for text in _rewritten(q, verifier)]
        solutions = [_Case(q, q.solution) for q in sound if q.solution is not None]
        wrong = [case for q in sound for case in _wrong(q, verifier)]
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


def _wrong(question: Question, verifier: Verifier) -> Iterator[_Case]:
    if isinstance(question.gold, str):
        for answer in _stated(verifier, wrong_answers(question.gold)):
            yield _Case(question, answer)
    program = _FENCED.search(question.solution or "")
    if isinstance(question.gold, Mapping) and program is not None:
        for code in wrong_programs(program[1]):
            yield _Case(question, fenced(code))
    if isinstance(question.gold, str) and isinstance(verifier, NumberVerifier | MathVerifier):
        yield from _unanswered(question, verifier)
        yield from (_Case(question, text) for text in echoes(question.prompt))
    elif program is not None:
        yield _Case(question, question.prompt)


def _unanswered(question: Question, verifier: Verifier) -> Iterator[_Case]:
    """The gold answer in a thought, broken off, or where nothing says that it is the answer."""
    gold = str(question.gold)
    for stated in _stated(verifier, [gold]):
        yield _Case(question, f"<think>\n{stated}")
        yield _Case(question, f"<think>\n{stated}\n</think>\n")
        yield _Case(question, stated.removesuffix("}"), cut=True)
    if isinstance(verifier, NumberVerifier):
        yield _Case(question, f"So there are {gold} of them.", cut=True)
        yield from (_Case(question, text) for text in number_lists(gold))


async def _judge(verifier: Verifier, cases: Sequence[_Case], *, correct: bool) -> Tally:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(case: _Case) -> Mistake | None:
        async with gate:
            verdict = await verify_completion(
                verifier, case.question, case.completion, cut=case.cut
            )
        if verdict.correct == correct:
            return None
        return Mistake(case.question.id, case.completion, verdict.outcome, verdict.detail)

    found = await asyncio.gather(*map(one, cases))
    return Tally(len(cases), tuple(mistake for mistake in found if mistake is not None))
