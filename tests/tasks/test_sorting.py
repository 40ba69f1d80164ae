"""Words to sort, scored by place."""

from __future__ import annotations

import asyncio

import pytest

from fttt.errors import UsageError
from fttt.tasks import get_task
from fttt.tasks.gold_check import check_task
from fttt.tasks.sorting import WORDS, SortingTask
from fttt.tasks.task import TaskOptions
from fttt.types import Question, Verdict

QUESTION = Question("q", "Sort these words alphabetically: pear, fig, kale.", "fig, kale, pear")


def judge(text: str) -> Verdict:
    return asyncio.run(SortingTask().verifier().verify(QUESTION, text))


def test_golds_pass_and_repeated_questions_fail() -> None:
    report = asyncio.run(check_task(SortingTask(), TaskOptions()))
    assert report.as_expected
    assert report.solutions.judged == report.wrong.judged == 200


def test_questions_are_a_seeds_and_never_in_order_already() -> None:
    questions = SortingTask(3).load(TaskOptions())
    assert questions == SortingTask(3).load(TaskOptions())
    assert questions[0].prompt != SortingTask(3).load(TaskOptions(seed=43))[0].prompt
    assert questions[0].prompt != SortingTask(3).load(TaskOptions(split="train"))[0].prompt
    for question in questions:
        listed = question.prompt.split(": ")[1].split(".")[0].split(", ")
        assert len(set(listed)) == 3
        assert ", ".join(sorted(listed)) == question.gold != ", ".join(listed)
    assert tuple(sorted(WORDS)) == WORDS
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("fig, kale, pear", 1),
        (" Fig, **kale**, 'pear'.\nThat is all.", 1),
        ("fig, pear, kale", 1 / 3),
        ("fig", 1 / 3),
        ("fig, kale, pear, pear, pear, pear", 3 / 6),  # a longer list is no better
        ("The words are fig, kale, pear", 2 / 3),
        ("pear, fig, kale", 0),
        ("", 0),
        ("<think>fig, kale, pear", 0),
    ],
)
def test_the_score_is_the_share_of_places(answer: str, score: float) -> None:
    verdict = judge(answer)
    assert verdict.score == pytest.approx(score)
    assert verdict.correct == (score == 1)
    assert "fig, kale, pear" not in verdict.feedback or verdict.correct or "pear" in answer


def test_faults_are_named() -> None:
    with pytest.raises(UsageError, match="words of sorting cannot be 1; give 2 to 10"):
        get_task("sorting", words=1)
