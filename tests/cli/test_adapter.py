"""Runs that start from a fine-tuned checkpoint, from the command line to the comparison."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import fttt
from fttt.errors import UsageError
from fttt.progress import Quiet
from fttt.store import Run
from fttt.testing import call, save_tiny_model

COMMON = ["--task", "arithmetic", "--limit", "2", "--max-new-tokens", "8", "--device", "cpu"]
Make = Any


pytestmark = pytest.mark.usefixtures("elsewhere")


def completions(folder: str) -> list[tuple[int, ...]]:
    return [trial.token_ids for trial in Run.open(folder).trials]


def test_fttt_starts_from_a_checkpoint_and_says_so(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = make_checkpoint("prefix")
    adapter = ["--adapter", str(tuned.folder)]
    assert call("run", "fttt", "--trials", "2", *adapter, *COMMON) == 0
    (folder,) = Path("outputs").iterdir()
    assert folder.name.startswith("fttt-arithmetic-tiny-llama+tuned-prefix-s42-")
    run = Run.open(folder)
    assert run.summary["adapter"] == run.adapter == str(tuned.folder)
    assert run.summary["model"] == str(tuned.base)  # as the checkpoint names it
    assert run.environment["adapter"]["method"] == "prefix"
    assert run.environment["adapter"]["trained_tokens"] == 1234
    for trial in run.trials:  # nothing is learned from the last trial, or from a right one
        assert (trial.loss is None) == (trial.trial == 1 or trial.verdict == "correct")
    base = ["--model", str(tuned.base)]
    assert call("run", "fttt", "--trials", "2", *base, *COMMON, "--out", "base") == 0
    assert completions("base") != completions(str(folder))
    assert call("compare", str(folder), "base") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The sides start from different weights" in shown
    assert "'base' from the model itself" in shown


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_run_resumes_with_the_same_weights_only(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tuned = make_checkpoint(kind)
    words = ["run", "fttt", "--adapter", str(tuned.folder), "--trials", "3", *COMMON]
    assert call(*words, "--out", "whole") == 0
    assert call(*words, "--out", "cut") == 0
    for name, kept in (("trials.jsonl", 2), ("events.jsonl", 6)):  # as a kill leaves it
        lines = Path("cut", name).read_text().splitlines(keepends=True)
        Path("cut", name).write_text("".join(lines[:kept]))
    Path("cut/summary.json").unlink()
    assert call("run", "--resume", "cut") == 0
    assert completions("cut") == completions("whole")
    info = json.loads((tuned.folder / "finetune.json").read_text())
    (tuned.folder / "finetune.json").write_text(json.dumps({**info, "step": 8}))
    assert call("run", "--resume", "cut") == 2
    assert "has changed since the run in 'cut' began" in capsys.readouterr().err


def test_finetuned_is_best_of_n_from_the_checkpoint(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_checkpoint("ia3").folder)
    rest = ["--trials", "2", *COMMON]
    assert call("run", "finetuned", "--checkpoint", folder, *rest, "--out", "f") == 0
    assert call("run", "best-of-n", "--adapter", folder, *rest, "--out", "b") == 0
    assert completions("f") == completions("b")
    assert Run.open("f").adapter == folder
    assert call("run", "--resume", "f") == 0
    capsys.readouterr()
    assert call("run", "finetuned", *rest) == 2
    assert "needs --checkpoint DIR" in capsys.readouterr().err
    other = ["--adapter", "elsewhere"]
    assert call("run", "finetuned", "--checkpoint", folder, *other, *rest) == 2
    assert "give one of them" in capsys.readouterr().err


def test_greedy_keeps_its_cases_by_the_weights(make_checkpoint: Make) -> None:
    tuned = make_checkpoint("full")
    shutil.rmtree(tuned.base)  # after full fine-tuning the folder itself is the model
    assert call("run", "greedy", "--adapter", str(tuned.folder), *COMMON) == 0
    assert [path.name for path in Path("metadata").iterdir()] == [
        "tiny-llama+tuned-full_arithmetic_correct_cases.json"
    ]


def test_what_does_not_belong_together_is_refused_before_weights_are_loaded(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = make_checkpoint("lora")
    other = save_tiny_model(Path("tiny-qwen"), "qwen")
    monkeypatch.setattr("fttt.models.loader._read_weights", lambda *_: pytest.fail("loaded"))
    adapter = ["--adapter", str(tuned.folder)]
    assert call("run", "greedy", "--model", str(other), *adapter, *COMMON) == 2
    error = capsys.readouterr().err
    assert "tiny-llama' with model_type llama" in error
    assert "tiny-qwen'" in error
    assert call("run", "greedy", "--adapter", "nowhere", *COMMON) == 2
    assert "no checkpoint folder 'nowhere'" in capsys.readouterr().err
    assert call("run", "greedy", "--model", str(tuned.base), "--adapter", str(other), *COMMON) == 2
    assert "finetune.json" in capsys.readouterr().err


def test_solve_starts_from_a_checkpoint(make_checkpoint: Make) -> None:
    tuned = make_checkpoint("adapter")
    settings = {"method": "best-of-n", "trials": 2, "max_new_tokens": 8, "device": "cpu"}

    def ask(**more: Any) -> list[tuple[int, ...]]:
        result = fttt.solve("Hi", verify=_never, **{**settings, **more})
        return [trial.token_ids for trial in result.trials]

    own = ask(adapter=tuned.folder)
    assert own == ask(adapter=str(tuned.folder), model=str(tuned.base))
    assert own != ask(model=str(tuned.base))
    with pytest.raises(UsageError, match="loaded already"):
        ask(adapter=tuned.folder, model=tuned.loaded)


def _never(completion: str) -> bool:
    return False


def test_a_sweep_loads_each_checkpoint_once(make_checkpoint: Make, tmp_path: Path) -> None:
    from fttt.config import RunConfig, build
    from fttt.experiment.executor import LocalExecutor
    from fttt.experiment.plan import load
    from fttt.experiment.sweep import SweepConfig, run_sweep

    folders = {method: str(make_checkpoint(method).folder) for method in ("lora", "full")}
    sweep = build(
        SweepConfig,
        {
            "methods": ["greedy", "best-of-n"],
            "hard_only": True,
            "vary": [{"label": m, "adapter": folder} for m, folder in folders.items()],
            "base": {
                "save_correct_cases": False,
                "data": {"limit": 2},
                "budget": {"trials": 2},
                "sampling": {"max_new_tokens": 8},
                "engine": {"device": "cpu"},
            },
        },
        "the test",
    )
    loads: list[str] = []

    def loading(config: RunConfig) -> Any:
        loads.append(str(config.adapter))
        return LocalExecutor(load(config))

    runs = run_sweep(sweep, tmp_path / "sweep", loading, Quiet())
    assert loads == list(folders.values())
    assert [run.adapter for run in runs] == [f for f in folders.values() for _ in range(2)]
    assert os.path.commonpath([run.path for run in runs]) == str(tmp_path / "sweep")


def test_a_sweep_asks_checkpoints_what_the_model_itself_fails(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = make_checkpoint("lora")
    Path("grid.toml").write_text(f"""
        methods = [
            {{ method = "finetuned", label = "lora", settings.checkpoint = "{tuned.folder}" }},
            "best-of-n",
        ]
        hard_only = true
        [base]
        model = "{tuned.base}"
        save_correct_cases = false
        data.limit = 3
        budget.trials = 2
        sampling.max_new_tokens = 8
        engine.device = "cpu"
    """)
    assert call("sweep", "grid.toml", "--out", "s") == 0
    runs = {name: Run.open(f"s/{name}") for name in ("greedy-arithmetic", "lora-arithmetic-s42")}
    greedy, lora = runs.values()
    assert (greedy.adapter, lora.adapter) == (None, str(tuned.folder))
    hard = [r.question.id for r in greedy.records if r.trials[0].verdict != "correct"]
    assert [question.id for question in lora.questions] == hard
    capsys.readouterr()
    assert call("compare", "s/lora-arithmetic-s42", "s/best-of-n-arithmetic-s42") == 0
    assert "different weights" in " ".join(capsys.readouterr().out.split())
