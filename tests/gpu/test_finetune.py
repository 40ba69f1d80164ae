"""Fine-tuning on a GPU: bfloat16 beside float32 weights, and as good as on a CPU."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from fttt.config import FinetuneConfig, build
from fttt.finetune import captured_step, solution_trainer
from fttt.finetune import train as train_module
from fttt.finetune.captured_step import CapturedSteps
from fttt.finetune.finetune_plan import plan_finetune
from fttt.finetune.metadata import METHODS, FinetuneInfo, read_info
from fttt.finetune.train import train
from fttt.progress import StepProgress
from fttt.testing import save_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(method: str, folder: Path, model: Path, device: str, dtype: str) -> FinetuneInfo:
    values = {
        "method": method,
        "model": str(model),
        "data": {"limit": 24, "held_out": 0.2},
        "training": {"samples": 5, "max_steps": 6, "every": 3, "lr": 1e-2},
        "engine": {"device": device, "dtype": dtype},
        "settings": {"dropout": 0.0} if method == "lora" else {},
    }
    return train(plan_finetune(build(FinetuneConfig, values, "the test")), folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_learns_what_a_cpu_learns(method: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tiny", layers=4)
    losses = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        folder = tmp_path / f"{device}-{dtype}"
        losses[device, dtype] = run(method, folder, model, device, dtype).validation_loss
        (weights,) = folder.glob("*.safetensors")
        assert {value.dtype for value in load_file(weights).values()} == {torch.float32}
    assert losses["cuda", "float32"] == pytest.approx(losses["cpu", "float32"], rel=1e-2)
    assert losses["cuda", "bfloat16"] == pytest.approx(losses["cpu", "float32"], rel=5e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "prefix"])
def test_replayed_steps_learn_what_plain_ones_do(
    method: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA's dropout included; with evaluation in between, in several passes a step."""
    model = save_tiny_model(tmp_path / "tiny", layers=4)
    values = {
        "method": method,
        "model": str(model),
        "data": {"limit": 24, "held_out": 0.2},
        "training": {"samples": 5, "max_steps": 12, "every": 4, "lr": 1e-3, "batch_tokens": 400},
        "engine": {"device": "cuda", "dtype": dtype},
    }
    plan = plan_finetune(build(FinetuneConfig, values, "the test"))
    made: list[CapturedSteps] = []
    init = CapturedSteps.__init__

    def noted(self: CapturedSteps, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(CapturedSteps, "__init__", noted)
    losses: dict[str, list[float]] = {"replayed": [], "padded": [], "plain": []}
    for name, own in losses.items():
        monkeypatch.setattr(
            StepProgress, "stepped", lambda _, step, loss, rate, own=own: own.append(loss)
        )
        if name == "padded":
            monkeypatch.setattr(captured_step, "AFTER", 10**6)
        if name == "plain":
            monkeypatch.setattr(solution_trainer, "captures_steps", lambda *_: False)
        own.append(train(plan, tmp_path / name).validation_loss)
    assert [len(steps._passes) > 0 for steps in made] == [True, False]
    # in half precision, attention's gradient is added up in another order in each run
    rounding = 1e-5 if dtype == "float32" else 2e-3
    assert losses["replayed"] == pytest.approx(losses["padded"], rel=rounding)
    states = {name: load_file(next((tmp_path / name).glob("*.safetensors"))) for name in losses}
    for key, value in states["padded"].items():
        # the optimizer makes a step of a whole learning rate of a gradient that is all rounding
        near = 2e-5 if dtype == "float32" else 5e-3
        torch.testing.assert_close(states["replayed"][key], value, rtol=1e-3, atol=near)
    if method != "lora":  # whose dropout falls otherwise where there is padding
        near = 1e-4 if dtype == "float32" else 2e-2
        assert losses["plain"] == pytest.approx(losses["padded"], rel=near)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_nothing_waits_for_the_gpu_between_replayed_steps(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the figures of the step before, which come by an event."""

    class Refuse(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                torch.cuda.set_sync_debug_mode("error")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                torch.cuda.set_sync_debug_mode("default")
                steps.append(state.global_step)

    model = save_tiny_model(tmp_path / "tiny", layers=4)
    values = {
        "method": method,
        "model": str(model),
        "data": {"limit": 24, "held_out": 0.0},
        # each step has all samples, so that its shape has been captured
        "training": {"samples": 24, "max_steps": 10, "every": 10, "lr": 1e-3},
        "engine": {"device": "cuda"},
    }
    callbacks, steps = train_module._callbacks, []
    monkeypatch.setattr(train_module, "_callbacks", lambda *a: [*callbacks(*a), Refuse()])
    try:
        train(plan_finetune(build(FinetuneConfig, values, "the test")), tmp_path / "out")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == [9]


def test_bfloat16_weights_learn_about_the_same_by_replayed_steps(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="the 8-bit optimizer: pip install torchao")
    model = save_tiny_model(tmp_path / "tiny", layers=4)
    found = []
    for eight_bit in ({}, {"weights": "bfloat16", "optimizer": "adamw-8bit"}):
        values = {
            "method": "full",
            "model": str(model),
            "data": {"limit": 24, "held_out": 0.2},
            "training": {"samples": 5, "max_steps": 12, "every": 4, "lr": 1e-3},
            "engine": {"device": "cuda", "dtype": "bfloat16"},
            "settings": eight_bit,
        }
        plan = plan_finetune(build(FinetuneConfig, values, "the test"))
        found.append(train(plan, tmp_path / f"{len(found)}").validation_loss)
    assert found[1] == pytest.approx(found[0], rel=5e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("launch", ["--multi_gpu", "--use_fsdp"])
def test_two_gpus_end_where_one_does(launch: str, dtype: str, tmp_path: Path) -> None:
    # gemma's embeddings are tied; some of its layers see a window, which takes masks
    model = save_tiny_model(tmp_path / "tiny", "gemma3", layers=4)
    values = {
        "method": "full",
        "model": str(model),
        "data": {"limit": 39, "held_out": 0.13},
        "training": {"samples": 4, "max_steps": 10, "every": 5, "lr": 1e-3, "batch_tokens": 250},
        "engine": {"device": "cuda", "dtype": dtype},
    }
    config = build(FinetuneConfig, values, "the test")
    one = train(plan_finetune(config), tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fsdp = [
        "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
        "--fsdp_state_dict_type", "FULL_STATE_DICT",
    ]  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", launch,
            *(fsdp if launch == "--use_fsdp" else []), "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", port, "-m", "fttt", "finetune", "train",
            "--recipe", str(tmp_path / "one/config.toml"), "--out", str(tmp_path / "two"),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = read_info(tmp_path / "two")
    assert (one.tokens, one.trained_tokens) == (two.tokens, two.trained_tokens)
    near = 1e-4 if dtype == "float32" else 2e-2
    assert two.validation_loss == pytest.approx(one.validation_loss, rel=near)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    if dtype == "float32":
        for name, value in theirs.items():
            torch.testing.assert_close(value, ours[name], rtol=1e-3, atol=1e-4)
