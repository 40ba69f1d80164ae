from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.gold_check import check_task

ROW = {"id": 60, "problem": "Find $m+n$.", "answer": "073", "solution": "It is $70+3$."}
OTHER = {"ID": "2024-I-2", "Problem": "Find $xy$.", "Answer": 25}


def test_answers_are_integers_however_they_are_written(hub: Any) -> None:
    hub["HuggingFaceH4/aime_2024", None, "train"] = [ROW]
    hub["yentinglin/aime_2025", None, "train"] = [{**ROW, "answer": "588"}]
    (question,) = get_task("AIME-24").load(TaskOptions())
    assert (question.id, question.gold) == ("aime24/0", "73")
    assert question.solution == "It is $70+3$.\n\n\\boxed{73}"
    assert question.prompt.endswith("in \\boxed{} at the end.")
    (question,) = get_task("aime25").load(TaskOptions())
    assert (question.id, question.gold) == ("aime25/0", "588")


def test_other_copies_name_their_fields_in_another_way(tmp_path: Path) -> None:
    (tmp_path / "aime_2024").mkdir()
    file = tmp_path / "aime_2024" / "train.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n{json.dumps(OTHER)}\n")
    for folder in (tmp_path, file.parent):
        questions = get_task("aime24").load(TaskOptions(data_dir=folder))
        assert [question.gold for question in questions] == ["73", "25"]


@pytest.mark.parametrize("answer", ["1000", "-1", "2.5", "\u0663", ""])
def test_another_answer_is_refused(hub: Any, answer: str) -> None:
    hub["HuggingFaceH4/aime_2024", None, "train"] = [ROW, {**ROW, "answer": answer}]
    with pytest.raises(UsageError, match="Row 1 of HuggingFaceH4/aime_2024 has the answer"):
        get_task("aime24").load(TaskOptions())


def test_its_check(hub: Any) -> None:
    hub["HuggingFaceH4/aime_2024", None, "train"] = [
        {**ROW, "problem": f"Find the remainder of {n} after division by 1000.", "answer": str(n)}
        for n in (0, 7, 25, 100, 540, 999)
    ]
    report = asyncio.run(check_task(get_task("aime24"), TaskOptions()))
    assert report.as_expected, report
    assert report.golds.judged == report.solutions.judged == 6
