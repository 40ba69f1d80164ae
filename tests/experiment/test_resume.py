"""Resuming a folder: by its own settings only, on the same questions."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fttt.config import merge, resolve
from fttt.errors import UsageError
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.plan import plan_resume, plan_run, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.models import ChatFormat
from fttt.progress import Quiet
from fttt.store import Run, RunWriter
from fttt.testing import FakeEngine, fake_model


@pytest.fixture
def run(tmp_path: Path) -> Run:
    cases = tmp_path / "cases.json"
    cases.write_text("[0]")
    flags = {"method": "fttt", "data": {"limit": 3, "skip_cases": str(cases)}}
    plan = plan_run(settle(resolve(flags)))
    folder = tmp_path / "run"
    RunWriter.create(
        folder, config=plan.config.to_toml(), environment={}, questions=plan.questions
    ).close()
    cases.unlink()  # the folder knows its questions without it
    return Run.open(folder)


def test_the_folders_questions_are_asked_again(run: Run) -> None:
    plan = plan_resume(run, run.config)
    assert [q.id for q in plan.questions] == [q.id for q in run.questions]
    assert plan.config.to_toml() == run.config
    assert plan.questions[0].solution  # which the folder does not hold


def test_a_setting_that_the_folders_version_did_not_know_has_its_default(run: Run) -> None:
    path = run.path / "config.toml"
    path.write_text(path.read_text().replace("eps = 1e-08\n", ""))
    old = Run.open(run.path)
    assert "eps" not in old.config["settings"]
    assert plan_resume(old, old.config).config.settings["eps"] == 1e-8
    with pytest.raises(UsageError, match=r"settings.eps = None and cannot be resumed with 0.1"):
        plan_resume(old, merge(old.config, {"settings": {"eps": 0.1}}))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"seed": 43}, r"seed = 42 and cannot be resumed with 43"),
        ({"budget": {"trials": 5}}, r"budget.trials = 32 and cannot be resumed with 5"),
        ({"settings": {"lr": 1.0}}, r"settings.lr = 1e-05 and cannot be resumed with 1.0"),
        ({"method": "greedy"}, r"method = 'fttt' and cannot be resumed with 'greedy'"),
        (
            {"budget": {"token_budget": 9}},
            r"budget.token_budget = None and cannot be resumed with 9",
        ),
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
        plan_resume(run, values)


def test_the_same_setting_again_and_another_machine_are_fine(run: Run) -> None:
    flags = {"seed": 42, "engine": {"batch_size": 3, "memory_share": 0.4, "device": "cpu"}}
    plan = plan_resume(run, merge(run.config, flags))
    assert plan.config.engine.batch_size == 3
    assert plan.config.engine.memory_share == 0.4


def test_changed_questions_are_refused(run: Run) -> None:
    path = run.path / "questions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["prompt"] += " And then?"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = Run.open(run.path)
    with pytest.raises(UsageError, match=f"{lines[1]['id']!r} has changed since"):
        plan_resume(changed, changed.config)


DATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ strftime_now('%S%f') }} {{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Another text each time that it is rendered, as dates are on another day."""


def dated_model() -> Any:
    fake = fake_model(100_000)
    tokenizer = copy.deepcopy(fake.tokenizer)
    tokenizer.chat_template = DATED
    return replace(fake, tokenizer=tokenizer, chat=ChatFormat(tokenizer))


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_a_resume_asks_what_the_template_wrote_when_the_run_began(
    plan: Any, tmp_path: Path, version: str
) -> None:
    """Of version 0.1 nothing is known of it, so that the template is asked again."""
    asked: list[list[str]] = []

    def play(cell: Cell) -> Run:
        engine = FakeEngine(lambda *_: "It is 5")
        executor = LocalExecutor(dated_model(), lambda *_: engine)
        run = run_cells([cell], executor, Quiet())[0]
        asked.append(engine.conversations)
        return run

    first = play(Cell(plan("best-of-n", trials=2, count=2), tmp_path / "run"))
    questions = [json.loads(x) for x in (first.path / "questions.jsonl").read_text().splitlines()]
    assert {q["rendered"] for q in questions} == set(asked[0])
    for name in ("summary.json", "trials.jsonl", "events.jsonl"):
        (first.path / name).unlink()
    if version == "0.1":
        lines = [json.dumps({k: v for k, v in q.items() if k != "rendered"}) for q in questions]
        (first.path / "questions.jsonl").write_text("".join(line + "\n" for line in lines))
    old = Run.open(first.path)
    again = plan("best-of-n", trials=2, count=2)
    stored = zip(again.questions, old.questions, strict=True)
    kept = tuple(replace(new, rendered=then.rendered) for new, then in stored)
    play(Cell(replace(again, questions=kept), first.path, resume=True))
    assert (sorted(asked[0]) == sorted(asked[1])) is (version == "now")


def test_a_resumed_plan_has_what_the_folder_holds_of_each_question(run: Run) -> None:
    path = run.path / "questions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["rendered"] = "as it was"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = plan_resume(Run.open(run.path), run.config)
    assert [q.rendered for q in found.questions] == [None, "as it was", None]


def test_thoughts_and_arguments_of_the_template_outlive_the_process(
    plan: Any, tmp_path: Path
) -> None:
    """A run of a thinking model ends as it would have ended, from the middle of its journal."""
    asked = plan(
        "revision",
        trials=3,
        count=2,
        sampling={"think_tokens": 40, "max_new_tokens": 120},
        template_args={"reasoning_effort": "low"},
    )
    loaded = fake_model(100_000, "harmony")

    def write(conversation: str, request: Any) -> str:
        assert "Reasoning: low" in conversation
        thought = f"Is it {len(conversation)}? " * 3
        return (
            f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
            f"<|channel|>final<|message|>{request.noise_key % 100}"
        )

    def run(folder: Path, *, resume: bool = False) -> Run:
        def engine(*_: Any) -> FakeEngine:
            return FakeEngine(write, 100_000, template="harmony")

        cell = Cell(asked, folder, resume=resume)
        return run_cells([cell], LocalExecutor(loaded, engine), Quiet())[0]

    whole = run(tmp_path / "whole")
    assert all(trial.thought and trial.thought_tokens for trial in whole.trials)
    assert all("analysis" not in trial.completion for trial in whole.trials)
    events = (whole.path / "events.jsonl").read_text().splitlines(keepends=True)
    trials = (whole.path / "trials.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut"
    RunWriter.create(
        cut, config=whole.config, environment=whole.environment, questions=whole.questions
    ).close()
    (cut / "events.jsonl").write_text("".join(events[:3]))
    (cut / "trials.jsonl").write_text(trials[0])
    again = run(cut, resume=True)
    assert whole.config["template_args"] == {"reasoning_effort": "low"}
    pairs = list(zip(again.trials, whole.trials, strict=True))
    assert [replace(one, usage=two.usage) for one, two in pairs] == list(whole.trials)
