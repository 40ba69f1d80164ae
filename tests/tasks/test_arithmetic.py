from __future__ import annotations

import asyncio
import hashlib
import re

import pytest

from fttt.errors import UsageError
from fttt.tasks.arithmetic import LEVELS, ArithmeticTask
from fttt.tasks.gold_check import check_task
from fttt.tasks.task import TaskOptions


def test_the_questions_of_a_seed_never_change() -> None:
    """Frozen: published runs name these questions."""
    questions = ArithmeticTask().load(TaskOptions())
    assert len(questions) == 200
    assert questions[0].id == "arithmetic/s42/test/1-0"
    assert questions[0].prompt.startswith("Jack has 9 apples and buys 7 more.")
    assert questions[0].gold == "16"
    text = "\n".join(f"{q.id}\t{q.prompt}\t{q.gold}\t{q.solution}" for q in questions)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c999abf4ec8700a4"


def test_seeds_and_splits_differ() -> None:
    task = ArithmeticTask()
    texts = [
        [q.prompt for q in task.load(TaskOptions(seed=seed, split=split))]
        for seed, split in ((42, "test"), (43, "test"), (42, "train"))
    ]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2][:200]
    ids = [q.id for split in task.splits for q in task.load(TaskOptions(split=split))]
    assert len(set(ids)) == len(ids) == 600


def test_levels_take_turns() -> None:
    levels = [re.findall(r"(\d)-\d+$", q.id)[0] for q in ArithmeticTask().load(TaskOptions())]
    assert levels[:6] == ["1", "2", "3", "1", "2", "3"]
    only = ArithmeticTask(levels=(2,)).load(TaskOptions())
    assert all("/2-" in question.id for question in only)
    assert set(LEVELS) == {1, 2, 3}


def test_golds_pass_and_wrong_answers_fail() -> None:
    for split in ArithmeticTask.splits:
        report = asyncio.run(check_task(ArithmeticTask(), TaskOptions(split=split)))
        assert report.as_expected
        assert report.golds.judged == report.solutions.judged == report.questions


def test_every_answer_is_a_positive_or_zero_count() -> None:
    for seed in range(5):
        for question in ArithmeticTask().load(TaskOptions(seed=seed)):
            assert 0 <= int(str(question.gold)) <= 100
            assert question.solution is not None
            left, right = re.findall(r"([\d +*-]+) = (\d+)", question.solution)[-1]
            assert eval(left) == int(right) == int(str(question.gold))


@pytest.mark.parametrize("levels", [(), (0,), (1, 4)])
def test_unknown_levels(levels: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="choose from 1, 2, 3"):
        ArithmeticTask(levels)


def test_an_unknown_split() -> None:
    with pytest.raises(UsageError, match="no split 'dev'; choose from test, train"):
        ArithmeticTask().load(TaskOptions(split="dev"))


def test_a_prompt_of_the_users_own() -> None:
    (first, *_) = ArithmeticTask().load(TaskOptions(prompt="Q: {question} {x}\nA:"))
    assert first.prompt.startswith("Q: Jack has 9 apples")
    assert first.prompt.endswith("{x}\nA:")
    with pytest.raises(UsageError, match=r"no place for the question; write \{question\}"):
        ArithmeticTask().load(TaskOptions(prompt="no place"))
