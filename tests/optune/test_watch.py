"""What a training shows."""

from __future__ import annotations

import pytest

from fttt.optune import watch as module
from fttt.optune.watch import Watch


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Watch("optune").begin(10, 110) as watch:
        for step in range(11, 31):
            now[0] += 1.0
            watch.stepped(step, 2.5, 20.0)
            if step == 12:
                watch.validated(step, 1.25)
    assert capsys.readouterr().err.splitlines() == [
        "optune: step 12/110 · validation loss 1.2500",
        "optune: step 25/110 · loss 2.5000 · validation 1.2500 · 20.0 examples/s · about 1:25 left",
    ]


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Watch("optune", shown=False).begin(0, 1) as watch:
        watch.say("something")
        watch.validated(1, 1.0)
    assert capsys.readouterr().err == ""
