from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.gold_check import check_task
from fttt.verifiers.choice import read_options

HUB = "TIGER-Lab/MMLU-Pro"


def row(number: int, category: str = "physics", **others: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "question": f"How heavy is {number}?",
        "options": [f"{n} kg" for n in range(10)],
        "answer": "ABCDEFGHIJ"[number % 10],
        "answer_index": number % 10,
        "cot_content": "",
        "category": category,
        "src": "test",
        **others,
    }


def shown(number: int, category: str = "physics") -> dict[str, Any]:
    working = f"A: Let's think step by step. We weigh it. The answer is ({'ABCDE'[number]})."
    return row(number, category, cot_content=working)


def test_an_option_without_a_text_hides_none_behind_it(hub: Any) -> None:
    hub[HUB, None, "test"] = [row(19, options=[*"abc", " ", *"efghij"])]
    (question,) = get_task("mmlupro").load(TaskOptions())
    assert list(read_options(question.prompt)) == list("ABCDEFGHIJ")
    report = asyncio.run(check_task(get_task("mmlupro"), TaskOptions()))
    assert report.as_expected, report


def test_an_answer_that_is_no_option_is_refused(hub: Any) -> None:
    hub[HUB, None, "test"] = [row(19, options=["a", "b", "c"])]
    with pytest.raises(UsageError, match="has the answer 'J', which is none of its options"):
        get_task("mmlupro").load(TaskOptions())


def test_ten_options_and_their_letters(hub: Any) -> None:
    hub[HUB, None, "test"] = [row(19), row(3, options=["a", "b", "c", "d", "N/A", "N/A"])]
    first, second = get_task("MMLU-Pro").load(TaskOptions())
    assert (first.id, first.gold) == ("mmlupro/19", "J")
    assert read_options(first.prompt)["J"] == "9 kg"
    assert list(read_options(second.prompt)) == list("ABCD")
    assert first.solution is None


def test_worked_questions_of_the_same_subject_come_first(hub: Any) -> None:
    hub[HUB, None, "test"] = [row(7), row(8, "law")]
    hub[HUB, None, "validation"] = [shown(0), shown(1), shown(2, "law"), shown(3)]
    physics, law = get_task("mmlupro", shots=2).load(TaskOptions())
    assert physics.prompt.count("We weigh it.") == 2
    assert law.prompt.count("We weigh it.") == 1
    assert physics.prompt.index("How heavy is 1?") < physics.prompt.index("How heavy is 7?")
    assert read_options(law.prompt)["J"] == "9 kg"
    (worked, *_) = get_task("mmlupro").load(TaskOptions(split="validation"))
    assert worked.solution == "Let's think step by step. We weigh it. The answer is (A)."


def test_its_check(hub: Any) -> None:
    hub[HUB, None, "validation"] = [shown(n) for n in range(5)]
    report = asyncio.run(check_task(get_task("mmlupro"), TaskOptions(split="validation")))
    assert report.as_expected, report
    assert (report.golds.judged, report.solutions.judged) == (5, 5)


def test_bad_input_is_named(hub: Any) -> None:
    hub[HUB, None, "test"] = [row(1), row(2, "law")]
    with pytest.raises(UsageError, match="shots of mmlupro cannot be 6; give 0 to 5"):
        get_task("mmlupro", shots=6)
    with pytest.raises(UsageError, match="no category 'lore'; choose from law, physics"):
        get_task("mmlupro", category="lore").load(TaskOptions())
    hub[HUB, None, "test"] = [row(1), row(2, options="a, b")]
    with pytest.raises(UsageError, match="Row 1 of TIGER-Lab/MMLU-Pro has 'options' that are no"):
        get_task("mmlupro").load(TaskOptions())
