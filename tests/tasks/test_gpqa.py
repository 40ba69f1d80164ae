from __future__ import annotations

import asyncio
import csv
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.gold_check import check_task
from fttt.verifiers.choice import read_options


def row(number: int = 0) -> dict[str, str]:
    return {
        "Record ID": f"rec{number}",
        "Question": f"Which is right, {number}?\n",
        "Correct Answer": "right \n",
        "Incorrect Answer 1": "wrong",
        "Incorrect Answer 2": "worse\nstill",
        "Incorrect Answer 3": "worst",
        "Explanation": "It just is.",
    }


def write(folder: Path, *rows: dict[str, str]) -> Path:
    with (folder / "gpqa_diamond.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_options_are_shuffled_by_the_seed_and_the_record(tmp_path: Path) -> None:
    write(tmp_path, *map(row, range(200)))
    first, again, other = (
        get_task("gpqa").load(TaskOptions(data_dir=tmp_path, seed=seed)) for seed in (42, 42, 43)
    )
    assert first == again
    assert [q.id for q in first] == [q.id for q in other]
    assert sum(a.gold != b.gold for a, b in zip(first, other, strict=True)) > 100
    counts = Counter(question.gold for question in first)
    assert set(counts) == set("ABCD")
    assert min(counts.values()) > 30
    for question in first:
        options = read_options(question.prompt)
        assert options[str(question.gold)] == "right"
        assert sorted(options.values()) == ["right", "worse still", "worst", "wrong"]
    assert first[0].id == "gpqa/rec0"
    assert first[0].solution == f"It just is.\n\nThe answer is ({first[0].gold})"


def test_its_check(tmp_path: Path) -> None:
    write(tmp_path, *map(row, range(8)))
    report = asyncio.run(check_task(get_task("gpqa"), TaskOptions(data_dir=tmp_path)))
    assert report.as_expected, report
    assert (report.golds.judged, report.solutions.judged) == (8, 8)


def test_a_gated_data_set_without_a_token_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise RuntimeError(
            "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub. You must be authenticated to "
            "access it.\nmore"
        )

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    said = r"'Idavidrein/gpqa' is gated .* set HF_TOKEN, or give a local copy with --data-dir\.$"
    with pytest.raises(UsageError, match=said):
        get_task("gpqa").load(TaskOptions())


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no subset 'gold'; choose from diamond, main, extended"):
        get_task("gpqa", subset="gold")
    lacking = {key: value for key, value in row().items() if key != "Incorrect Answer 3"}
    write(tmp_path, lacking)
    with pytest.raises(UsageError, match="has no field 'Incorrect Answer 3'"):
        get_task("gpqa").load(TaskOptions(data_dir=tmp_path))
