"""Going on with a folder: by its own settings only, on the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fttt.config import merge, resolve
from fttt.errors import UsageError
from fttt.experiment.plan import prepare
from fttt.experiment.resume import resume_plan
from fttt.store import Run, RunWriter


@pytest.fixture
def run(tmp_path: Path) -> Run:
    cases = tmp_path / "cases.json"
    cases.write_text("[0]")
    flags = {"method": "fttt", "data": {"limit": 3, "skip_cases": str(cases)}}
    plan = prepare(resolve(flags))
    folder = tmp_path / "run"
    RunWriter.create(
        folder, config=plan.config.to_toml(), environment={}, questions=plan.questions
    ).close()
    cases.unlink()  # the folder knows its questions without it
    return Run.open(folder)


def test_the_folders_questions_are_asked_again(run: Run) -> None:
    plan = resume_plan(run, run.config)
    assert [q.id for q in plan.questions] == [q.id for q in run.questions]
    assert plan.config.to_toml() == run.config
    assert plan.questions[0].solution  # which the folder does not hold


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"seed": 43}, r"seed = 42 and cannot go on with 43"),
        ({"budget": {"trials": 5}}, r"budget.trials = 32 and cannot go on with 5"),
        ({"settings": {"lr": 1.0}}, r"settings.lr = 1e-05 and cannot go on with 1.0"),
        ({"method": "greedy"}, r"method = 'fttt' and cannot go on with 'greedy'"),
        ({"budget": {"token_budget": 9}}, r"budget.token_budget = None and cannot go on with 9"),
        ({"engine": {"dtype": "float16"}}, r"engine.dtype"),
    ],
)
def test_a_setting_that_contradicts_the_folder_is_named(
    run: Run, flags: dict[str, Any], name: str
) -> None:
    values = merge(run.config, flags)
    if flags.get("method") == "greedy":
        values["settings"] = {}
    with pytest.raises(UsageError, match=name):
        resume_plan(run, values)


def test_the_same_setting_again_and_another_machine_are_fine(run: Run) -> None:
    flags = {"seed": 42, "engine": {"batch_size": 3, "device": "cpu"}}
    plan = resume_plan(run, merge(run.config, flags))
    assert plan.config.engine.batch_size == 3


def test_changed_questions_are_refused(run: Run) -> None:
    path = run.path / "questions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["prompt"] += " And then?"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = Run.open(run.path)
    with pytest.raises(UsageError, match=f"{lines[1]['id']!r} has changed since"):
        resume_plan(changed, changed.config)
