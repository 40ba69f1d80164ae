"""Fine-tuning over two processes, as ``accelerate launch`` and ``torchrun`` start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fttt.cli import main
from fttt.finetune.checkpoint import read_info
from fttt.testing import save_tiny_model


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    words = [
        "finetune", "train", "lora", "--model", str(save_tiny_model(tmp_path / "tiny")),
        "--limit", "27", "--samples", "4", "--max-steps", "6", "--every", "3", "--lr", "1e-2",
        "--set", "dropout=0.0", "--device", "cpu", "--out",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*words, str(tmp_path / "one")])
    assert ended.value.code == 0
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    done = subprocess.run(
        [sys.executable, *launcher, free_port(), "-m", "fttt", *words, str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 steps") == 1  # only one of them speaks
    one, two = read_info(tmp_path / "one"), read_info(tmp_path / "two")
    assert (one.tokens, one.trained_tokens) == (two.tokens, two.trained_tokens)
    assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-5)
    alone = load_file(tmp_path / "one/adapter_model.safetensors")
    for name, value in load_file(tmp_path / "two/adapter_model.safetensors").items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)
