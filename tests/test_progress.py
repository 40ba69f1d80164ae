"""What a training shows."""

from __future__ import annotations

from contextlib import closing

import pytest

from fttt import progress as module
from fttt.progress import StepProgress, clock


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
