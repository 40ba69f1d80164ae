"""What a long job shows."""

from __future__ import annotations

import asyncio
import io
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from fttt import progress as module
from fttt.forecast import Forecast, TimeLeft
from fttt.progress import LOG, Progress, StepProgress, clock, silenced, span
from fttt.types import Trial, Usage

TRIAL = Trial("q", 0, 0, "", (), "stop", None, "incorrect", "", None, Usage())


@dataclass
class Engine:
    generated_tokens: int = 0


def watch(progress: Progress, questions: int, trials: int, *, seconds: float = 0.0) -> str:
    """Four trials and two of the questions; the line at the end."""

    async def run() -> str:
        engine = Engine()
        async with progress.watching(engine, Forecast(questions, 4), trials):
            for _ in range(4):
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
    assert line.startswith("2/4 questions · 1 solved · 12 tokens/s · 9 trials left · about 0:0")
    assert " · 1 trial left · " in watch(progress, 2, 8)
    assert (
        watch(progress, 2, 0) == "2/2 questions · 1 solved · 12 tokens/s"
    )  # tokens are the budget


def test_of_scores_the_best_of_a_question_is_shown_for_each_run() -> None:
    progress = Progress("run", Console(file=io.StringIO()))

    def trial(question: str, score: float) -> Trial:
        return replace(TRIAL, question_id=question, score=score, usage=Usage(generated_tokens=600))

    async def run() -> str:
        past = [[trial("a", 0.75)], []]
        watching = progress.watching(Engine(), Forecast(4, 4), 8, names=["one", "two"], past=past)
        async with watching:
            progress.trial_ended(trial("a", 0.25))
            for score in (0.25, 0.5, 0.0):
                progress.trial_ended(trial("a", score), 1)
            progress.trial_ended(trial("b", 1.0), 1)
            return progress.line(0.0)

    line = asyncio.run(run())
    assert " · best score one 0.750 (1,200 tokens), two 0.750 (2,400 tokens) · " in line


def test_of_many_runs_the_range_of_their_best_scores_is_shown() -> None:
    progress = Progress("sweep", Console(file=io.StringIO()))

    async def run() -> str:
        names = [f"run-{n}" for n in range(6)]
        async with progress.watching(Engine(), Forecast(4, 6), 8, names=names, past=[[]] * 6):
            for n in range(5):
                progress.trial_ended(replace(TRIAL, question_id="a", score=n / 8), n)
            return progress.line(0.0)

    assert " · best score 0.000 to 0.500 in 5 runs · " in asyncio.run(run())


def test_a_long_run_is_told_once_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown = io.StringIO()
    progress = Progress("run", Console(file=shown, width=200))

    async def run() -> None:
        async with progress.watching(Engine(), Forecast(10, 1, lanes=2), 10):
            for _ in range(5):
                now[0] += 30.0
                progress.trial_ended(TRIAL)

    asyncio.run(run())
    told = shown.getvalue().strip()
    assert told.endswith("left, as the first trials went")
    assert told.count("left") == 1
    assert span(TimeLeft(100.0, 110.0)) == "about 1:45"
    assert span(TimeLeft(60.0, 130.0)) == "1:00 to 2:10"


def test_a_run_keeps_a_log_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fttt.progress._LOG_EVERY", 0.01)
    progress = Progress("run", Console(file=io.StringIO()))

    async def run(fails: bool) -> None:
        async with progress.watching(Engine(), Forecast(2, 4), 4, folders=[tmp_path]):
            progress.note("a note")
            await asyncio.sleep(0.05)
            if fails:
                raise ValueError("no room")

    asyncio.run(run(False))
    with pytest.raises(ValueError, match="no room"):
        asyncio.run(run(True))
    lines = [line.partition(" ")[2] for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines[:2] == ["began: 2 questions, at most 4 trials", "a note"]
    assert any(line.startswith("0/2 questions · 0 solved") for line in lines)
    assert sum(line.startswith("ended: 0/2 questions") for line in lines) == 1
    assert lines[-2] == "stopped: no room"


def test_what_is_silenced_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with silenced():
        quiet, steps = Progress("run"), StepProgress("train")
    quiet.note("a note")
    steps.say("a step")
    Progress("run").note("another")
    assert capsys.readouterr().err == "another\n"


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fttt.progress._EVERY", {True: 0.01, False: 0.01})
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


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with closing(StepProgress("optune").begin(10, 1110)) as progress:
        for step in range(11, 31):
            now[0] += 1.0
            progress.stepped(step, 2.5, "20.0 examples/s")
            if step == 12:
                progress.validation = 1.25
                progress.say("validated")
    assert capsys.readouterr().err.splitlines() == [
        "optune: validated",
        "optune: step 25/1,110 · loss 2.5000 · validation 1.2500 · 20.0 examples/s · about 18:05 "
        "left",
    ]


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(StepProgress("optune", shown=False).begin(0, 1)) as progress:
        progress.say("something")
    assert capsys.readouterr().err == ""


def test_a_clock_has_hours_where_there_are_some() -> None:
    assert [clock(seconds) for seconds in (0.4, 65, 3599.6)] == ["0:00", "1:05", "1:00:00"]
