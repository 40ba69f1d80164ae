"""``fttt optune`` on a tiny model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from fttt.optune import read_info
from fttt.store import Run
from fttt.testing import call

COMMON = ["--task", "arithmetic", "--limit", "2", "--max-new-tokens", "8", "--device", "cpu"]


pytestmark = pytest.mark.usefixtures("elsewhere")


optune = partial(call, "optune")


def test_attempts_are_a_run_on_the_training_split(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optune("generate", "--model", model, "--attempts", "3", "--out", "r", *COMMON) == 0
    run = Run.open("r")
    assert run.method == "sample"
    assert all("/train/" in question.id for question in run.questions)
    assert [trial.trial for trial in run.trials] == [0, 1, 2] * 2
    assert run.config["sampling"]["temperature"] == 0.6
    shown = capsys.readouterr().out
    assert optune("generate", "--resume", "r") == 0
    assert capsys.readouterr().out == shown


def test_what_cannot_be_trained_on_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert optune("generate", "--task", "humaneval") == 2
    assert "has no training split, only 'test'" in capsys.readouterr().err
    assert optune("generate", "--split", "test") == 2
    assert "choose from train." in capsys.readouterr().err
    assert optune("generate", "--attempts", "0") == 2
    assert "'--attempts': Input should be greater" in capsys.readouterr().err


def test_a_training_is_begun_and_resumed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optune("generate", "--model", model, "--attempts", "3", "--out", "r", *COMMON) == 0
    Path("recipe.toml").write_text('attempts_from = "r"\nattempts = "all"\nwindow = 3\nlr = 1.0\n')
    words = ["train", "--recipe", "recipe.toml", "--lr", "1e-4", "--max-steps", "1"]
    assert optune(*words, "--held-out", "0", "--shuffle-attempts", "--out", "t") == 0
    assert "validation" not in capsys.readouterr().out
    info = read_info("t")
    assert (info.step, info.ablation, info.model) == (1, "shuffle-attempts", model)
    assert info.settings["lr"] == 1e-4
    assert optune("train", "--resume", "t", "--max-steps", "2") == 0
    assert read_info("t").step == 2
    assert optune("train", "--resume", "t", "--lr", "0.1") == 2
    assert "begun with lr = 0.0001" in capsys.readouterr().err
    weights = tmp_path / "t/step-00000002/network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert optune("train", "--resume", "t", "--max-steps", "3") == 2
    assert "is broken: network.safetensors has" in capsys.readouterr().err


def test_bad_input_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([], "name a run folder by --from"),
        (["--from", "nowhere"], "no run folder 'nowhere'"),
        (["--from", "r", "--shuffle-attempts", "--constant-input"], "exclude each other"),
        (["--from", "r", "--window", "0"], "--window cannot be 0"),
        (["--from", "r", "--attempts", "some"], "--attempts cannot be 'some'"),
        (["--resume", "nowhere"], "'nowhere' holds no OpTune training"),
        (["--resume", "t", "--out", "u"], "leave --out away"),
    ):
        assert optune("train", *words) == 2
        assert said in capsys.readouterr().err


def test_a_training_that_made_things_worse_says_so(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optune("generate", "--model", model, "--attempts", "3", "--out", "r", *COMMON) == 0
    words = ["train", "--from", "r", "--window", "3", "--held-out", "0.5", "--attempts", "all"]
    assert optune(*words, "--lr", "1", "--max-steps", "3", "--out", "t") == 0
    assert "note: with its changes the model is no better than unchanged" in capsys.readouterr().out
    assert optune(*words, "--lr", "1e3", "--max-steps", "3", "--out", "u") == 1
    errors = capsys.readouterr().err
    assert "Training diverged" in errors
    assert "Resume with" not in errors  # at that rate it would diverge again
