"""The learned optimizer from nothing to an evaluated checkpoint, each command a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fttt.cli import main
from fttt.store import Run
from fttt.testing import save_tiny_model

TRAIN = [
    "optune", "train", "--from", "attempts", "--window", "2", "--max-steps", "12", "--tracker",
    "none", "--checkpoint-every", "1", "--device", "cpu",
]  # fmt: skip


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fttt", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*words: str) -> str:
    process = start(*words)
    shown, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return shown


def test_from_attempts_to_an_evaluated_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny_model(tmp_path / "tiny"))
    call(
        "optune", "generate", "--model", model, "--task", "arithmetic", "--limit", "4",
        "--attempts", "3", "--max-new-tokens", "8", "--device", "cpu", "--out", "attempts",
    )  # fmt: skip

    killed = start(*TRAIN, "--out", "killed")
    deadline = time.monotonic() + 120
    while not Path("killed/step-00000002").exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not Path("killed/step-00000012").exists()
    shown = call("optune", "train", "--resume", "killed")
    assert "validation loss after 12 steps" in shown

    with pytest.raises(SystemExit) as ended:
        main([*TRAIN, "--out", "whole"])
    assert ended.value.code == 0
    for name in ("network.safetensors", "training.safetensors", "training.json"):
        whole, resumed = (Path(f) / "step-00000012" / name for f in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes()

    call(
        "optune", "evaluate", "--checkpoint", "killed", "--task", "arithmetic", "--limit", "2",
        "--trials", "4", "--max-new-tokens", "8", "--device", "cpu", "--out", "run",
    )  # fmt: skip
    run = Run.open("run")
    assert (run.method, run.model) == ("optune", model)
    assert any(trial.trial % 2 for trial in run.trials)  # there were edited ones
    for trial in run.trials:
        learned_from = trial.trial % 2 == 0 and trial.verdict != "correct"
        assert (trial.loss is not None) == learned_from
