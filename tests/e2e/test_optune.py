"""The learned optimizer from nothing to an evaluated checkpoint, killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fttt.optune import read_info
from fttt.store import Run
from fttt.testing import call, save_tiny_model

TRAIN = [
    "optune", "train", "--from", "attempts", "--window", "2", "--epochs", "9999", "--tracker",
    "none", "--checkpoint-every", "1", "--device", "cpu",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def done(*words: str) -> None:
    assert call(*words) == 0


@pytest.mark.slow
def test_from_attempts_to_an_evaluated_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny_model(tmp_path / "tiny"))
    done(
        "optune", "generate", "--model", model, "--task", "arithmetic", "--limit", "4",
        "--attempts", "3", "--max-new-tokens", "8", "--device", "cpu", "--out", "attempts",
    )  # fmt: skip

    killed = subprocess.Popen(
        [sys.executable, "-m", "fttt", *TRAIN, "--out", "killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    written: list[Path] = []
    while not written and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        written = [path for path in Path("killed").glob("step-*") if path.name > "step-00000001"]
    killed.send_signal(signal.SIGKILL)
    said = killed.communicate(timeout=120)
    assert written, said
    end = read_info("killed").step + 3
    done(*TRAIN, "--max-steps", str(end), "--out", "whole")
    capsys.readouterr()
    done("optune", "train", "--resume", "killed", "--max-steps", str(end))
    assert f"validation loss after {end} steps" in capsys.readouterr().out
    for name in ("network.safetensors", "training.safetensors", "training.json"):
        first, second = (Path(f) / f"step-{end:08d}" / name for f in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()

    done(
        "optune", "evaluate", "--checkpoint", "killed", "--task", "arithmetic", "--limit", "2",
        "--trials", "4", "--max-new-tokens", "8", "--device", "cpu", "--out", "run",
    )  # fmt: skip
    run = Run.open("run")
    assert (run.method, run.model) == ("optune", model)
    assert any(trial.trial % 2 for trial in run.trials)  # there were edited ones
    for trial in run.trials:
        learned_from = trial.trial % 2 == 0 and trial.verdict != "correct"
        assert (trial.loss is not None) == learned_from
