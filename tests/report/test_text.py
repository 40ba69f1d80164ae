"""What stands under a run's figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fttt.report.text import show_runs
from fttt.store import RunWriter
from fttt.types import Question, Trial, Usage


@pytest.mark.parametrize("failed", [True, False])
def test_verdicts_that_are_no_fault_of_an_answer_are_noted(tmp_path: Path, failed: bool) -> None:
    settings = {"method": "best-of-n", "task": "jsonl", "model": "tiny", "seed": 42}
    writer = RunWriter.create(
        tmp_path / "run", config=settings, environment={}, questions=[Question("q", "?", "4")]
    )
    trial = Trial("q", 0, 0, "", (), "stop", None, "incorrect", "no such key", None, Usage())
    writer.trial(replace(trial, failed=failed))
    writer.done("q")
    console = Console(record=True, width=200)
    show_runs([writer.finish()], console)
    assert ("the verifier itself failed in 1 of 1 trials" in console.export_text()) == failed


@pytest.mark.parametrize(
    ("asked", "noted"),
    [
        ({"temperature": 0.6, "top_p": 0.8}, "top_k 20, repetition_penalty 1.1"),
        ({"temperature": 0.6, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}, None),
        ({"temperature": 0.0, "top_p": 0.8}, None),
    ],
)
def test_how_the_models_authors_sample_is_noted_where_the_run_does_otherwise(
    tmp_path: Path, asked: dict[str, float], noted: str | None
) -> None:
    settings = {"method": "best-of-n", "task": "jsonl", "model": "tiny", "seed": 42}
    theirs = {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}
    writer = RunWriter.create(
        tmp_path / "run",
        config={**settings, "sampling": asked},
        environment={"model_sampling": theirs},
        questions=[Question("q", "?", "4")],
    )
    writer.done("q")
    console = Console(record=True, width=200)
    show_runs([writer.finish()], console)
    said = console.export_text()
    assert "not applied" in said if noted else "not applied" not in said
    assert noted is None or f"not applied: {noted}\n" in said
