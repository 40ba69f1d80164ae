"""Fine-tuning over two processes, as ``accelerate launch`` and ``torchrun`` start them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest
import torch
from safetensors.torch import load_file

from fttt.finetune.metadata import read_info
from fttt.models import load_model
from fttt.testing import call, save_tiny_model

pytestmark = pytest.mark.slow

SETTINGS = (
    "--limit", "39", "--held-out", "0.13", "--samples", "4", "--max-steps", "10", "--every", "5",
    "--device", "cpu",
)  # fmt: skip
"""34 to learn and 5 to validate on: the 9th step has two samples, one process none of them."""
TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2", "--master_port")
FSDP = (
    "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2",
    "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
    "--fsdp_state_dict_type", "FULL_STATE_DICT", "--main_process_port",
)  # fmt: skip
ON_CPUS = """
import os, sys
from torch.distributed import init_process_group
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from fttt.cli import main
from fttt.finetune.solution_trainer import SolutionTrainer

# accelerate leaves FSDP out on CPUs, where torch itself can run it
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
init_process_group("gloo")
step = SolutionTrainer.training_step

def stopping(self, model, *inputs):
    assert type(model).__name__.startswith("FSDP")  # and not plain data parallel
    if self.state.global_step == int(os.environ.get("STOPPED_AFTER", -1)):
        os._exit(9)
    return step(self, model, *inputs)

SolutionTrainer.training_step = stopping
main()
"""


def alone(*words: str) -> None:
    assert call("finetune", "train", *words) == 0


def together(
    launcher: Sequence[str], port: int, *words: str, stop: int = -1
) -> CompletedProcess[str]:
    """Two processes; ``launcher`` ends in its option for a port."""
    program, *rest = words
    return run(
        [sys.executable, "-m", *launcher, str(port), *program.split(), "finetune", "train", *rest],
        env={**os.environ, "OMP_NUM_THREADS": "1", "STOPPED_AFTER": str(stop)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def assert_same(one: Path, two: Path, weights: str) -> None:
    """They ended alike but for rounding."""
    left, right = read_info(one), read_info(two)
    assert (left.tokens, left.trained_tokens) == (right.tokens, right.trained_tokens)
    assert left.trained_parameters == right.trained_parameters
    assert right.validation_loss == pytest.approx(left.validation_loss, abs=1e-5)
    ours, theirs = load_file(one / weights), load_file(two / weights)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(value, ours[name], rtol=1e-4, atol=1e-5)


def test_two_processes_end_where_one_does(tmp_path: Path, free_port: int) -> None:
    # with so few tokens at once, they run unequal passes
    words = [
        "lora", "--model", str(save_tiny_model(tmp_path / "tiny")), *SETTINGS, "--lr", "1e-2",
        "--set", "dropout=0.0", "--batch-tokens", "250", "--out",
    ]  # fmt: skip
    alone(*words, str(tmp_path / "one"))
    done = together(TORCHRUN, free_port, "-m fttt", *words, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 steps") == 1  # only one of them speaks
    assert_same(tmp_path / "one", tmp_path / "two", "adapter_model.safetensors")


def test_weights_that_are_shared_out_are_trained_saved_and_resumed(
    tmp_path: Path, free_port: int
) -> None:
    # gemma's embeddings are tied; with so few tokens at once, processes would run unequal passes
    model = save_tiny_model(tmp_path / "tiny", "gemma")
    words = [
        "full", "--model", str(model), *SETTINGS, "--lr", "1e-3", "--clip", "0.5",
        "--batch-tokens", "250", "--out",
    ]  # fmt: skip
    alone(*words, str(tmp_path / "one"))
    program, folder = tmp_path / "on_cpus.py", tmp_path / "two"
    program.write_text(ON_CPUS, encoding="utf-8")
    stopped = together(FSDP, free_port, str(program), *words, str(folder), stop=6)
    assert stopped.returncode != 0
    assert (folder / "checkpoints/checkpoint-5/finetune.json").is_file(), stopped.stderr
    assert call("finetune", "train", "--resume", str(folder)) == 2
    done = together(FSDP, free_port, str(program), "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 steps") == 1
    assert_same(tmp_path / "one", folder, "model.safetensors")
    assert not (folder / "pytorch_model_fsdp.bin").exists()
    assert load_model(str(folder), dtype="float32", device="cpu").model is not None
