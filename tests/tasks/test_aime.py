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


def write(folder: Path, **answers: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, answer in answers.items():
        row = json.dumps({**ROW, "answer": answer})
        (folder / f"{name.replace('_', '-')}.jsonl").write_text(row + "\n")


def test_an_angle_is_its_number(tmp_path: Path) -> None:
    write(tmp_path / "a", aime2025=r"336^\circ")
    write(tmp_path / "b", aime2025=r"$336^{\circ}$")
    for folder in ("a", "b"):
        (question,) = get_task("aime25").load(TaskOptions(data_dir=tmp_path / folder))
        assert question.gold == "336"


def test_both_examinations_of_a_year_are_read_and_no_other_year(tmp_path: Path) -> None:
    """As OpenCompass's copy has them; the first file alone would be half of the year."""
    write(tmp_path, aime2024="24", aime2025_II="2", aime2025_I="1")
    (tmp_path / "aime2024.jsonl").rename(tmp_path / "aime24.jsonl")
    for task, golds in (("aime25", ["1", "2"]), ("aime24", ["24"])):
        questions = get_task(task).load(TaskOptions(data_dir=tmp_path))
        assert [question.gold for question in questions] == golds
    write(tmp_path / "other", aime2024="24")
    write(tmp_path / "some", one="1", two="2")
    for folder in ("other", "some"):
        with pytest.raises(UsageError, match="Which file has the problems of 'aime25' is not kno"):
            get_task("aime25").load(TaskOptions(data_dir=tmp_path / folder))


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
