"""Training the learned optimizer on a GPU, and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fttt.engine.sequences import prepared
from fttt.optune.attempts import AttemptExample
from fttt.optune.checkpoint import edited_layers
from fttt.optune.gradient import GradientRunner, Sums
from fttt.optune.network import OpTuneNetwork
from fttt.testing import save_tiny_model, tiny_model
from fttt.training import GoldExample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def examples() -> list[AttemptExample]:
    generator = torch.Generator().manual_seed(0)

    def ids(least: int) -> tuple[int, ...]:
        length = least + int(torch.randint(0, 40, (), generator=generator))
        return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())

    made = []
    for n in range(6):
        gold = GoldExample(f"q{n}", ids(5), ids(5))
        made.append(AttemptExample(f"q{n}#0", gold.prompt_ids + ids(5), gold))
    return made


def window(device: str, reuse_bytes: int = 0) -> Sums:
    model: Any = tiny_model("llama", layers=3).model.to(device)
    network = OpTuneNetwork(edited_layers(model), rank=4, alpha=3e-3, dropout=0.2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    network.to(device)
    with prepared(model):
        runner = GradientRunner(model, network, 200, reuse_bytes)
        parts = runner.record(examples())
        network.observe(network.summarize(part.factors for part in parts))
        return runner.gradient(parts, 1, 0)


@pytest.mark.parametrize("reuse_bytes", [0, 2**20])
def test_a_window_is_that_of_the_cpu(reuse_bytes: int) -> None:
    here, there = window("cpu"), window("cuda", reuse_bytes)
    assert here.examples == there.examples == 6
    torch.testing.assert_close(there.loss.cpu(), here.loss, rtol=1e-3, atol=0.0)
    scale = float(here.gradient_P.abs().max())
    torch.testing.assert_close(
        there.gradient_P.cpu(), here.gradient_P, rtol=2e-2, atol=2e-3 * scale
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_learn_what_one_does(tmp_path: Path) -> None:
    model = str(save_tiny_model(tmp_path / "tiny", layers=3))

    def call(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    call(
        "-m", "fttt", "optune", "generate", "--model", model, "--limit", "8", "--attempts", "2",
        "--max-new-tokens", "12", "--dtype", "float32", "--out", "attempts",
    )  # fmt: skip
    train = [
        "-m", "fttt", "optune", "train", "--from", "attempts", "--window", "3", "--max-steps", "4",
        "--lr", "1e-3", "--dtype", "float32", "--tracker", "none", "--out",
    ]  # fmt: skip
    call(*train, "one")
    call("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *train, "two")
    one, two = (
        load_file(tmp_path / name / "step-00000004" / "network.safetensors")
        for name in ("one", "two")
    )
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-5)
