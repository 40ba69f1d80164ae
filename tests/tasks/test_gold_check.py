"""The check of a task, and the answers that it judges."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.tasks import TaskOptions, get_task
from fttt.tasks.arithmetic import ArithmeticTask
from fttt.tasks.gold_check import (
    check_task,
    echoes,
    number_lists,
    rewritten_answers,
    wrong_answers,
    wrong_programs,
)
from fttt.types import Question
from fttt.verifiers.choice import ChoiceVerifier
from fttt.verifiers.code import CodeVerifier
from fttt.verifiers.number import NumberVerifier
from fttt.verifiers.verifier import Verifier


@pytest.mark.parametrize(("task", "step"), [("gsm8k", 4), ("math500", 1)])
def test_golds_pass_and_wrong_answers_fail(datasets: Path, task: str, step: int) -> None:
    made = get_task(task)
    some = made.load(TaskOptions(data_dir=datasets))[::step]
    made.load = lambda options: some  # type: ignore[method-assign]
    report = asyncio.run(check_task(made, TaskOptions()))
    assert report.as_expected, report
    assert report.golds.judged == report.solutions.judged == report.questions
    assert report.wrong.judged > 5 * report.questions
    assert report.broken == ()


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_reference_programs_pass_the_judge(datasets: Path, task: str) -> None:
    """A sample of each; `fttt check` judges all of them."""
    made = get_task(task)
    some = made.load(TaskOptions(data_dir=datasets))[::25]
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


class Doubles(ArithmeticTask):
    """One question for a program that prints."""

    def load(self, options: TaskOptions) -> list[Question]:
        outputs = [str(2 * n) for n in range(30)]
        gold = {"inputs": [f"{n}\n" for n in range(30)], "outputs": [*outputs]}
        solution = "```python\nprint(2 * int(input()))\n```"
        return [Question("d", "Double a number that you read.", gold, solution)]  # type: ignore[arg-type]

    def verifier(self) -> Verifier:
        return CodeVerifier()


def test_a_program_that_prints_is_checked_by_a_table_of_its_outputs() -> None:
    report = asyncio.run(check_task(Doubles(), TaskOptions()))
    assert report.as_expected, report
    assert (report.golds.judged, report.solutions.judged, report.wrong.judged) == (1, 1, 5)


class Choices(ArithmeticTask):
    """One question with options."""

    def load(self, options: TaskOptions) -> list[Question]:
        return [Question("c", "Which is 6?\n\n(A) 5\n(B) 2 * 3\n(C) none of these", "B")]

    def verifier(self) -> Verifier:
        return ChoiceVerifier()


def test_a_choice_is_checked_in_every_way_to_state_it() -> None:
    report = asyncio.run(check_task(Choices(), TaskOptions()))
    assert report.as_expected, report
    assert report.rewritten.judged == 8
    assert report.wrong.judged > 10


def test_wrong_answers() -> None:
    assert wrong_answers("18") == ["19", "-18", "180"]
    assert wrong_answers("-18") == ["-19", "18", "-180"]
    assert wrong_answers("0") == ["1"]
    assert wrong_answers("(3,4]") == ["(4,4]", "(3,5]", "(4,3]", "[3,4]"]
    assert wrong_answers(r"\text{east}") == [r"\text{something else}"]
    assert wrong_answers("p - q") == ["p - q+1"]


@given(st.integers(-(10**9), 10**9))
def test_wrong_numbers_are_wrong(number: int) -> None:
    wrong = wrong_answers(str(number))
    assert wrong
    assert all(Fraction(answer) != number for answer in wrong)


@pytest.mark.parametrize(
    "gold", ["18", "1,2", r"\frac{1}{2}", "x+1", "(1,2)", r"\text{east}", "10,\\!080"]
)
def test_rewritten_answers_differ_in_writing_only(gold: str) -> None:
    rewritten = rewritten_answers(gold)
    assert rewritten
    assert len(set(rewritten)) == len(rewritten)


def test_echoes() -> None:
    prompt = "Think.\n\nTom has 5 pens. He buys 7. How many?\n\nAnswer at the end."
    assert echoes(prompt) == [
        prompt,
        "Tom has 5 pens. He buys 7. How many?",
        "Tom has 5 pens. He buys 7.",
        "Tom has 5 pens.",
    ]
    assert echoes("What is it?") == ["What is it?"]


def test_number_lists_end_with_the_number() -> None:
    lists = number_lists("12")
    assert lists[0] == "10, 11, 12"
    assert all(text.rstrip(".:").endswith("12") for text in lists)
    assert len(number_lists("-0.5")) < len(lists)
    assert number_lists("x") == []


def test_wrong_programs() -> None:
    nothing, raising = wrong_programs("LIMIT = 3\ndef f(a):\n    return a\nclass C:\n    pass\n")
    space: dict[str, object] = {}
    exec(nothing, space)
    function = space["f"]
    assert callable(function)
    assert function(1) is None
    exec(raising, space)
    function = space["f"]
    assert callable(function)
    with pytest.raises(NotImplementedError):
        function(1)
