from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from fttt.tasks import TaskOptions, get_task
from fttt.tasks.arithmetic import ArithmeticTask
from fttt.tasks.checking import check_task
from fttt.types import Question
from fttt.verifiers.base import Verifier
from fttt.verifiers.number import NumberVerifier


@pytest.mark.parametrize("task", ["gsm8k", "math500"])
def test_golds_pass_and_wrong_answers_fail(datasets: Path, task: str) -> None:
    report = asyncio.run(check_task(get_task(task), TaskOptions(data_dir=datasets)))
    assert report.as_expected, report
    assert report.golds.judged == report.solutions.judged == report.questions
    assert report.wrong.judged > 5 * report.questions
    assert report.broken == ()


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_reference_programs_pass_the_judge(datasets: Path, task: str) -> None:
    """Some of each here; `fttt check` runs all."""
    made = get_task(task)
    some = made.load(TaskOptions(data_dir=datasets))[::8]
    made.load = lambda options: some  # type: ignore[method-assign]
    report = asyncio.run(check_task(made, TaskOptions()))
    assert report.as_expected, report
    assert report.solutions.judged == report.questions == len(some)
    assert report.wrong.judged == 3 * report.questions


class BrokenTask(ArithmeticTask):
    """One gold answer is wrong, one is known to be, and one solution is."""

    broken: ClassVar[dict[str, str]] = {"arithmetic/s42/test/2-1": "known"}

    def load(self, options: TaskOptions) -> list[Question]:
        questions = super().load(options)[:4]
        questions[0] = replace(questions[0], gold="no number")
        questions[3] = replace(questions[3], solution="The final answer is -1.")
        return questions


def test_what_is_wrong_is_named() -> None:
    report = asyncio.run(check_task(BrokenTask(), TaskOptions()))
    assert not report.as_expected
    assert [mistake.question_id for mistake in report.golds.mistakes] == ["arithmetic/s42/test/1-0"]
    wrong = [mistake.question_id for mistake in report.solutions.mistakes]
    assert wrong == ["arithmetic/s42/test/1-0", "arithmetic/s42/test/1-3"]
    assert report.broken == ("arithmetic/s42/test/2-1",)


class Generous(NumberVerifier):
    """Takes anything."""

    async def verify(self, question: Question, completion: str):  # type: ignore[no-untyped-def]
        return replace(await super().verify(question, completion), outcome="correct")


class GenerousTask(ArithmeticTask):
    def verifier(self) -> Verifier:
        return Generous()


def test_a_verifier_that_takes_anything_is_found_out() -> None:
    report = asyncio.run(check_task(GenerousTask(), TaskOptions()))
    assert not report.as_expected
    assert len(report.wrong.mistakes) == report.wrong.judged > 0
