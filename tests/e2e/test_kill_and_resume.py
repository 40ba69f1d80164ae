"""A run that is killed at any moment ends, once resumed, as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fttt.store import Run
from fttt.testing import call, save_tiny_model
from fttt.types import Trial

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTIONS, TRIALS = 4, 6
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Threads of a tiny model only wait for one another where others use the machine too."""


def run_here(*words: str) -> None:
    """Run to the end within this process, which has loaded torch already."""
    assert call("run", *words) == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


def flags(model: Path, out: Path) -> list[str]:
    """A run of questions whose answers no random model hits upon."""
    data = model / "questions.jsonl"
    line = '{"question": "Question %d?", "answer": "123456789"}\n'
    data.write_text("".join(line % n for n in range(QUESTIONS)))
    return [
        *("fttt", "--model", str(model), "--device", "cpu"),
        *("--task", "jsonl", "--data-dir", str(data), "--verifier", "number"),
        *("--trials", str(TRIALS), "--max-new-tokens", "40"),
        *("--set", "lr=1e-3", "--out", str(out)),
    ]


def facts(run: Run) -> list[tuple[str, int, tuple[int, ...], str, float]]:
    def fact(trial: Trial) -> tuple[str, int, tuple[int, ...], str, float]:
        loss = trial.loss or 0.0
        assert (loss == 0.0) == (trial.trial == TRIALS - 1)  # nothing follows the last one
        return (trial.question_id, trial.trial, trial.token_ids, trial.verdict, round(loss, 3))

    return [fact(trial) for trial in run.trials]


@pytest.mark.slow
def test_killed_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, model: Path, stop_run: Callable[..., tuple[int, str]]
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run_here(*flags(model, whole))
    total = (whole / "events.jsonl").read_bytes().count(b"\n")
    assert total == QUESTIONS * (2 * TRIALS + 1)

    code, errors = stop_run(["run", *flags(model, torn)], 5, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    assert not (torn / "summary.json").exists()
    trials = torn / "trials.jsonl"
    with trials.open("ab") as file:
        file.write(b'{"question_id": "torn')  # as a kill within a write leaves it

    code, errors = stop_run(["run", "--resume", str(torn)], total // 2, signal.SIGINT)
    assert code == 130, errors
    assert f"Resume with `fttt run --resume {torn}`" in errors
    assert "stopped: The run was stopped" in (torn / "run.log").read_text()
    before = len(Run.open(torn).trials)
    assert 0 < before < QUESTIONS * TRIALS

    run_here("--resume", str(torn))
    assert facts(Run.open(torn)) == facts(Run.open(whole))
    # every generation was made once
    assert (torn / "events.jsonl").read_bytes().count(b"\n") == total
    assert Run.open(torn).summary["solved"] == Run.open(whole).summary["solved"]


@pytest.mark.slow
def test_a_full_disk_says_so_and_the_run_resumes_later(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import resource, sys\n"
        "from fttt.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))\n"
        "main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", script, "run", *flags(model, out)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=ONE_THREAD, timeout=300
    )
    assert done.returncode == 1
    assert "Cannot write" in done.stderr
    assert f"fttt run --resume {out}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "events.jsonl").read_bytes().endswith(b"\n")
    run_here("--resume", str(out))
    assert len(Run.open(out).trials) == QUESTIONS * TRIALS
