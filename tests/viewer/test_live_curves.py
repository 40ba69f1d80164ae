"""Curves of runs that go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fttt.viewer import Watcher
from fttt.viewer.live_curves import LiveCurves

Grow = Callable[..., Any]


def settle(watcher: Watcher) -> dict[str, str]:
    """Read all; the keys by name."""
    watcher._next_scan = 0
    with watcher.watching(*watcher.runs):
        while watcher.step():
            pass
    return {run.path.name: key for key, run in watcher.runs.items()}


def test_curves_grow_with_the_run(grow: Grow, tmp_path: Path) -> None:
    mine = grow("mine")
    watcher = Watcher(tmp_path / "runs")
    key = settle(watcher)["mine"]
    curves = LiveCurves(watcher)
    assert curves.draw(key, "")["said"] == "No trial yet."
    mine.trials("q/0", "iic")
    mine.trials("q/1", "i")
    settle(watcher)
    drawn = curves.draw(key, "")
    assert len(drawn["figures"]) == 3
    assert drawn["scores"] == []
    assert drawn["said"] == "Over the 2 of 3 questions that have begun."
    assert [entry["label"] for entry in drawn["legend"]] == ["fttt, seed 1"]
    assert all(text.startswith("<svg") for text in drawn["figures"])
    again = curves.draw(key, "")
    assert again["figures"] == drawn["figures"]  # not drawn twice
    assert again["again"] > 0


def test_two_runs_share_their_questions_or_are_not_drawn(grow: Grow, tmp_path: Path) -> None:
    one, two = grow("one"), grow("two", seed=2, task="other")
    for run in (one, two):
        run.trials("q/0", "ic", score=0.5)
    one.trials("q/1", "i")
    foreign = grow("foreign", "x")
    foreign.trials("x", "c")
    watcher = Watcher(tmp_path / "runs")
    keys = settle(watcher)
    curves = LiveCurves(watcher)
    drawn = curves.draw(keys["one"], keys["two"])
    assert len(drawn["legend"]) == 2
    assert len(drawn["figures"]) == len(drawn["scores"]) == 3
    assert drawn["said"].startswith("Over the 1 of 3 questions that both runs have begun.")
    assert "The lower row is the best score" in drawn["said"]
    assert "Not to be compared" in drawn["said"]
    drawn = curves.draw(keys["one"], keys["foreign"])
    assert drawn["figures"] == []
    assert "no question in common" in drawn["said"]


def test_scores_alone_are_drawn_where_nobody_has_solved_a_question(
    grow: Grow, tmp_path: Path
) -> None:
    run = grow("one")
    run.trials("q/0", "ii", score=0.5)
    watcher = Watcher(tmp_path / "runs")
    drawn = LiveCurves(watcher).draw(settle(watcher)["one"], "")
    assert len(drawn["figures"]) == 3
    assert drawn["scores"] == []
    assert all("best score" in figure for figure in drawn["figures"])
    assert "Each figure is the best score" in drawn["said"]


def test_a_finished_run_that_is_still_to_be_read_is_not_said_to_have_no_trial(
    grow: Grow, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        grow(name).finish()
    watcher = Watcher(tmp_path / "runs")
    watcher.step()  # reads of one of them
    said = [LiveCurves(watcher).draw(key, "")["said"] for key in watcher.runs]
    assert "Reading its trials." in said
    assert "No trial yet." not in said
    settle(watcher)
    said = [LiveCurves(watcher).draw(key, "")["said"] for key in watcher.runs]
    assert said == ["Over the 3 questions."] * 2
