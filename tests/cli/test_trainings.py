"""``fttt finetune`` and ``fttt optune`` from the command line, on a tiny model."""

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
from typing import Any

import pytest

from fttt.finetune.metadata import read_info
from fttt.finetune.solution_trainer import checkpoints
from fttt.optune import read_info as read_optune
from fttt.store import Run
from fttt.testing import call, save_tiny_model

pytestmark = pytest.mark.usefixtures("elsewhere")

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
        (["lora", "--resume", "nowhere"], "leave everything else out"),
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
        (["full", "--set", "optimizer=adamw-8bit"], {}, "cannot shard 8-bit moments"),
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


@pytest.mark.slow
def test_a_killed_process_is_resumed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        sys.executable, "-m", "fttt", "finetune", "train", "lora", "--model", model, "--limit",
        "20", "--samples", "4", "--max-steps", "9999", "--every", "4", "--lr", "1e-2",
        "--device", "cpu", "--out",
    ]  # fmt: skip
    folder = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, str(folder)], env=environment, stderr=subprocess.PIPE)
    begun = time.monotonic()
    kept = folder / "checkpoints"
    while not checkpoints(kept) and process.poll() is None and time.monotonic() - begun < 240:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert checkpoints(kept), said
    first, *later = said.decode().splitlines()
    assert first == f"finetune lora: 1,792 trained parameters, learning rate 0.01, into {folder}"
    assert all(line.startswith("finetune lora: step ") for line in later)  # one every 15 s
    step = read_info(checkpoints(folder / "checkpoints")[-1]).step
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("max_steps = 9999", f"max_steps = {step + 2}"))
    assert train("--resume", str(folder)) == 0
    shown = capsys.readouterr()
    assert {line.partition(":")[0] for line in shown.err.splitlines()} == {"finetune lora"}
    assert read_info(folder).step == step + 2
    assert f"lora: {step + 2} steps, validation loss" in shown.out
    assert "1,792 trained parameters" in shown.out
    facts = json.loads((folder / "finetune.json").read_text())
    assert facts["trained_parameters"] == 1792
    assert facts["seconds"] > 0
    assert (folder / "adapter_model.safetensors").is_file()
    assert train("--resume", str(folder)) == 0  # nothing is left to do
    assert json.loads((folder / "finetune.json").read_text()) == facts


def test_a_training_is_tracked_where_that_is_asked_for(model: str) -> None:
    words = ["lora", "--model", model, "--limit", "8", "--samples", "4", "--max-steps", "2"]
    more = ["--device", "cpu", "--tracker", "tensorboard", "--out", "t"]
    assert train(*words, *more) == 0
    assert any(Path("t/tensorboard").iterdir())


COMMON = ["--limit", "3", "--trials", "2", "--max-new-tokens", "8", "--device", "cpu"]
Make = Any


def test_two_checkpoints_end_in_one_table(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(make_checkpoint(kind).folder) for kind in ("ln-tuning", "prefix")]
    words = ["finetune", "evaluate", *folders, *COMMON, "--out", "e"]
    assert call(*words) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in Path("e").iterdir()) == [
        "finetuned-arithmetic-tuned-ln-tuning-s42",
        "finetuned-arithmetic-tuned-prefix-s42",
        "greedy-arithmetic-tuned-ln-tuning",
        "greedy-arithmetic-tuned-prefix",
        "sweep.toml",
    ]
    for name, folder in zip(("ln-tuning", "prefix"), folders, strict=True):
        greedy = Run.open(f"e/greedy-arithmetic-tuned-{name}")
        samples = Run.open(f"e/finetuned-arithmetic-tuned-{name}-s42")
        assert greedy.adapter == samples.adapter == folder
        unsolved = [r.question.id for r in greedy.records if r.trials[0].verdict != "correct"]
        assert [q.id for q in samples.questions] == unsolved
        for record in samples.records:
            assert len(record.trials) == 2 or record.trials[-1].verdict == "correct"
        facts = json.loads((Path(folder) / "finetune.json").read_text())
        row = next(line for line in shown.splitlines() if line.startswith(f"tuned-{name}"))
        for figure in (f"{facts['trained_parameters']:,}", "1,234", "5.5"):
            assert figure in row
    assert "note: --max-new-tokens 8 cut off" in shown
    before = {path: path.read_bytes() for path in Path("e").rglob("*.jsonl")}
    capsys.readouterr()
    assert call(*words, "--json") == 0  # nothing is left to do
    facts = json.loads(capsys.readouterr().out)
    assert [row["checkpoint"]["folder"] for row in facts] == folders
    assert [row["greedy"]["questions"] for row in facts] == [3, 3]
    assert {path: path.read_bytes() for path in Path("e").rglob("*.jsonl")} == before


def test_the_hard_questions_can_be_the_base_models(make_checkpoint: Make) -> None:
    folder = str(make_checkpoint("full").folder)
    Path("cases.json").write_text("[1]")
    words = ["finetune", "evaluate", folder, *COMMON, "--skip-cases", "cases.json", "--out", "e"]
    assert call(*words) == 0
    greedy = Run.open("e/greedy-arithmetic-tuned-full")
    samples = Run.open("e/finetuned-arithmetic-tuned-full-s42")
    ids = [q.id for q in greedy.questions]
    assert len(ids) == 3
    assert ids[1] not in [q.id for q in samples.questions]


def test_faults_are_named_before_any_model_is_loaded(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fttt.models.loader._read_weights", lambda *_: pytest.fail("loaded"))
    good = str(make_checkpoint("lora").folder)
    other = make_checkpoint("ia3", "qwen", task="gsm8k").folder
    for words, message in (
        ([good, "nowhere"], "no checkpoint folder 'nowhere'"),
        ([good, good], "named twice"),
        ([good, str(other)], "say with --task"),
        ([good, str(other), "--task", "arithmetic"], "evaluate those of each model on their own"),
        ([good, "--task", "nothing"], "nothing"),
        ([good, "--hard-limit", "2", "--skip-cases", "c.json"], "cannot be combined"),
    ):
        assert call("finetune", "evaluate", *words, *COMMON) == 2
        assert message in capsys.readouterr().err
    (Path(good) / "adapter_model.safetensors").unlink()
    assert call("finetune", "evaluate", good, *COMMON) == 2
    assert "no adapter_model.safetensors" in capsys.readouterr().err
    assert not Path("outputs").exists()


SMALL = ["--task", "arithmetic", "--limit", "2", "--max-new-tokens", "8", "--device", "cpu"]


optune = partial(call, "optune")


def test_attempts_are_a_run_on_the_training_split(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optune("generate", "--model", model, "--attempts", "3", "--out", "r", *SMALL) == 0
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
    assert "Invalid value for '--attempts': " in capsys.readouterr().err


def test_a_training_is_begun_and_gone_on_with(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optune("generate", "--model", model, "--attempts", "3", "--out", "r", *SMALL) == 0
    Path("recipe.toml").write_text('attempts_from = "r"\nattempts = "all"\nwindow = 3\nlr = 1.0\n')
    words = ["train", "--recipe", "recipe.toml", "--lr", "1e-4", "--max-steps", "1"]
    assert optune(*words, "--held-out", "0", "--shuffle-attempts", "--out", "t") == 0
    assert "validation" not in capsys.readouterr().out
    info = read_optune("t")
    assert (info.step, info.ablation, info.model) == (1, "shuffle-attempts", model)
    assert info.settings["lr"] == 1e-4
    assert optune("train", "--resume", "t", "--max-steps", "2") == 0
    assert read_optune("t").step == 2
    assert optune("train", "--resume", "t", "--lr", "0.1") == 2
    assert "started with lr = 0.0001" in capsys.readouterr().err
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
        (["--resume", "t", "--out", "u"], "leave out --out"),
    ):
        assert optune("train", *words) == 2
        assert said in capsys.readouterr().err


def test_a_training_that_gained_nothing_or_diverged_says_so(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optune("generate", "--model", model, "--attempts", "3", "--out", "r", *SMALL) == 0
    words = ["train", "--from", "r", "--window", "3", "--held-out", "0.5", "--attempts", "all"]
    capsys.readouterr()
    assert optune(*words, "--max-steps", "3", "--out", "t", "--dry-run") == 0
    assert tomllib.loads(capsys.readouterr().out)["max_steps"] == 3
    assert not Path("t").exists()
    assert optune(*words, "--lr", "1e-12", "--max-steps", "3", "--out", "t") == 0
    assert "note: with its changes the model is no better than unchanged" in capsys.readouterr().out
    assert optune(*words, "--lr", "1e3", "--max-steps", "3", "--out", "u") == 1
    errors = capsys.readouterr().err
    assert "Training diverged" in errors
    assert "Resume with" not in errors  # at that rate it would diverge again


def _texts(folder: str | Path) -> dict[str, set[str]]:
    """The completions of each question."""
    return {r.question.id: {t.completion for t in r.trials} for r in Run.open(folder).records}


def test_evaluations_and_sweeps_sample_by_the_flags_of_the_sampler(
    make_checkpoint: Make, make_network: Make
) -> None:
    """Among the one most probable token there is nothing to draw, at any temperature."""
    small = ["--limit", "2", "--trials", "2", "--max-new-tokens", "8", "--device", "cpu"]
    sampler = ["--top-k", "1", "--min-p", "0.1", "--repetition-penalty", "1.5"]
    words = [*small, *sampler, "--temperature", "1.5"]
    tuned = make_checkpoint("lora")
    assert call("finetune", "evaluate", str(tuned.folder), *words, "--out", "e") == 0
    greedy = _texts("e/greedy-arithmetic-tuned-lora")
    assert _texts("e/finetuned-arithmetic-tuned-lora-s42") == greedy
    # without the penalty the answers are others
    plain = ["--adapter", str(tuned.folder), "--model", str(tuned.base), *small]
    assert call("run", "greedy", *plain, "--out", "p") == 0
    assert _texts("p") != greedy

    base = ["--model", str(tuned.base)]
    assert call("run", "greedy", *base, *small, *sampler, "--out", "b") == 0
    network = ["--checkpoint", str(make_network())]
    assert call("optune", "evaluate", *base, *network, *words, "--trials", "1", "--out", "o") == 0
    assert _texts("o") == _texts("b")

    Path("grid.toml").write_text(
        'methods = ["greedy", "best-of-n"]\n[base]\nmodel = ' + f"{str(tuned.base)!r}\n"
        "[base.data]\nlimit = 2\n[base.budget]\ntrials = 2\n[base.engine]\ndevice = 'cpu'\n"
        "[base.sampling]\ntemperature = 1.5\ntop_k = 1\nmin_p = 0.1\nrepetition_penalty = 1.5\n"
        "max_new_tokens = 8\n"
    )
    assert call("sweep", "grid.toml", "--out", "s") == 0
    assert _texts("s/greedy-arithmetic") == _texts("s/best-of-n-arithmetic-s42") == _texts("b")
