"""``fttt finetune train`` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest

from fttt.finetune.metadata import read_info
from fttt.finetune.solution_trainer import checkpoints
from fttt.testing import call, save_tiny_model

train = partial(call, "finetune", "train")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No method was given"),
        (
            ["lorra"],
            "no fine-tuning method 'lorra'; did you mean 'lora'? The fine-tuning methods are full",
        ),
        (["lora", "--task", "humaneval"], "'humaneval' has no training split, only 'test'"),
        (["lora", "--split", "test"], "'arithmetic' is not trained on its split 'test'"),
        (["lora", "--task", "gsm9k"], "no task 'gsm9k'"),
        (["lora", "--set", "rang=4"], "Unknown key 'rang' in the settings of 'lora'"),
        (["lora", "--lr", "-1"], "--lr cannot be -1.0"),
        (["lora", "--set", "targets=['q']"], "cannot take the method 'lora' on 'q'"),
        (["adapter", "--set", "reduction=64"], "reduction must be from 1 to 32, not 64"),
        (["full", "--set", "weights=bfloat16"], "weights=bfloat16 needs optimizer=adamw-8bit"),
        (["prefix", "--set", "length=99999"], "leaves nothing of the model's"),
        (["prefix", "--gradient-checkpointing"], "'prefix' cannot take --gradient-checkpointing"),
        (["lora", "--epochs", "1", "--max-steps", "1"], "--epochs and --max-steps both say"),
        (["lora", "--early-stop", "1", "--held-out", "0"], "--early-stop needs a validation loss"),
        (["lora", "--dtype", "float16"], "Training in float16 needs its losses scaled"),
        (["lora", "--device", "cuda:1"], "--device cannot be 'cuda:1' here"),
        (["lora", "--resume", "nowhere"], "leave everything else away"),
        (["--resume", "nowhere"], "'nowhere' holds no fine-tuning to resume"),
    ],
)
def test_bad_input_is_one_sentence_before_a_model_is_loaded(
    words: list[str], sentence: str, model: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("fttt.models.loader._read_weights", lambda *_: pytest.fail("loaded"))
    more = [] if "--resume" in words else ["--model", model]
    assert train(*words, *more) == 2
    shown = capsys.readouterr().err.strip()
    assert sentence in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "launch", "sentence"),
    [
        (["lora"], {}, "FSDP is for the method 'full'; launch 'lora' with --multi_gpu"),
        (["full", "--set", "optimizer=adamw-8bit"], {}, "cannot share out moments in 8 bits"),
        (["full"], {"FSDP_VERSION": "1"}, "add --fsdp_version 2"),
        (["full"], {"FSDP_STATE_DICT_TYPE": ""}, "add --fsdp_state_dict_type FULL_STATE_DICT"),
        (["full"], {"WORLD_SIZE": "3"}, "20 samples of a step cannot be shared evenly by 3"),
    ],
)
def test_a_launch_that_cannot_serve_is_one_sentence_too(
    words: list[str], launch: dict[str, str], sentence: str, model: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("fttt.models.loader._read_weights", lambda *_: pytest.fail("loaded"))
    fsdp = {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    for key, value in {"ACCELERATE_USE_FSDP": "true", **fsdp, **launch}.items():
        monkeypatch.setenv(key, value)
    assert train(*words, "--model", model) == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_package_is_named(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fttt.finetune.finetune_plan.find_spec", lambda name: None)
    assert train("lora", "--model", model) == 2
    assert "'accelerate', which is not installed; run: pip install 'fttt[train]'" in (
        capsys.readouterr().err
    )
    assert train("full", "--set", "optimizer=adamw-8bit", "--model", model) == 2
    assert "pip install torchao" in capsys.readouterr().err


def test_the_published_settings_are_filled_in_and_run_again_as_a_recipe(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistral = str(save_tiny_model(tmp_path / "mistral", "mistral"))
    rates = {}
    for method in ("full", "lora", "adapter", "ia3", "ln-tuning", "prefix"):
        for name in (model, mistral):
            assert train(method, "--model", name, "--dry-run") == 0
            shown = tomllib.loads(capsys.readouterr().out)
            rates[method, name] = shown["training"]["lr"]
    assert [rates[m, model] for m in ("full", "lora", "adapter")] == [1e-5, 2e-5, 1e-4]
    assert [rates[m, model] for m in ("ia3", "ln-tuning", "prefix")] == [5e-5, 4e-4, 2e-4]
    assert rates["prefix", mistral] == 5e-5
    assert {m for m in ("full", "lora", "ia3") if rates[m, mistral] != rates[m, model]} == set()

    assert train("lora", "--model", model, "--max-steps", "7", "--set", "rank=3", "--dry-run") == 0
    text = capsys.readouterr().out
    (tmp_path / "recipe.toml").write_text(text)
    assert train("--recipe", str(tmp_path / "recipe.toml"), "--dry-run") == 0
    assert capsys.readouterr().out == text
    assert train("--recipe", str(tmp_path / "recipe.toml"), "--epochs", "2", "--dry-run") == 0
    other = tomllib.loads(capsys.readouterr().out)
    assert other["training"]["epochs"] == 2
    assert "max_steps" not in other["training"]
    assert other["settings"]["rank"] == 3


def test_a_killed_training_is_resumed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        sys.executable, "-m", "fttt", "finetune", "train", "lora", "--model", model, "--limit",
        "20", "--samples", "4", "--max-steps", "400", "--every", "4", "--lr", "1e-2",
        "--device", "cpu", "--out",
    ]  # fmt: skip
    folder = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, str(folder)], env=environment, stderr=subprocess.PIPE)
    begun = time.monotonic()
    while not checkpoints(folder / "checkpoints"):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() - begun < 120
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert said == b""
    step = read_info(checkpoints(folder / "checkpoints")[-1]).step
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("max_steps = 400", f"max_steps = {step + 2}"))
    assert train("--resume", str(folder)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert read_info(folder).step == step + 2
    assert f"lora: {step + 2} steps, validation loss" in shown.out
    assert "1,792 trained parameters" in shown.out
    facts = json.loads((folder / "finetune.json").read_text())
    assert facts["trained_parameters"] == 1792
    assert facts["seconds"] > 0
    assert (folder / "adapter_model.safetensors").is_file()
    assert train("--resume", str(folder)) == 0  # nothing is left to do
    assert json.loads((folder / "finetune.json").read_text()) == facts
