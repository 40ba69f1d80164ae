"""What is shown while a run goes on."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from fttt.experiment.progress import Progress
from fttt.types import Trial, Usage

TRIAL = Trial("q", 0, 0, "", (), "stop", None, "incorrect", "", None, Usage())


@dataclass
class Engine:
    generated_tokens: int = 0


def watch(progress: Progress, questions: int, trials: int, *, seconds: float = 0.0) -> str:
    """Three trials and two of the questions; the line at the end."""

    async def run() -> str:
        engine = Engine()
        async with progress.watching(engine, questions, trials):
            for _ in range(3):
                progress.trial_ended(TRIAL)
                engine.generated_tokens += 100
                await asyncio.sleep(seconds)
            progress.question_ended(solved=True, spared=3)
            progress.question_ended(solved=False, spared=0)
            return progress.line(12.3)

    return asyncio.run(run())


def test_the_line_counts_questions_and_what_their_budget_has_left() -> None:
    progress = Progress("run", Console(file=io.StringIO()))
    line = watch(progress, 4, 16)
    assert line.startswith("2/4 questions · 1 solved · 12 tokens/s · 10 trials left · about 0:0")
    assert (
        watch(progress, 2, 0) == "2/2 questions · 1 solved · 12 tokens/s"
    )  # tokens are the budget


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fttt.experiment.progress._EVERY", {True: 0.01, False: 0.01})
    shown = io.StringIO()
    watch(Progress("run", Console(file=shown, width=20)), 4, 16, seconds=0.05)
    lines = shown.getvalue().splitlines()
    assert lines
    assert all(line.startswith("run: 0/4 questions · 0 solved · ") for line in lines)


def test_a_terminal_gets_a_bar() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    watch(Progress("run", console), 4, 16, seconds=0.1)
    assert "0/4 questions" in shown.getvalue()
    assert "━" in shown.getvalue()
