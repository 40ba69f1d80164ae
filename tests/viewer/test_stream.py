"""What a page is told: all at first, then what has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fttt.viewer import Watcher
from fttt.viewer.stream import RunStream, told_apart

Grow = Callable[..., Any]


def settle(watcher: Watcher) -> None:
    watcher._next_scan = 0
    while watcher.step():
        pass


def news(stream: RunStream) -> dict[str, Any]:
    return dict(stream.news())


def test_trials_are_told_once(grow: Grow, tmp_path: Path) -> None:
    mine = grow("mine")
    mine.trials("q/0", "iu", score=0.5)
    watcher = Watcher(tmp_path / "runs")
    settle(watcher)
    (key,) = watcher.runs
    stream = RunStream(watcher, key, "no such run")
    first = news(stream)
    assert first["runs"]["order"] == [key]
    entry = first["run"]
    assert (entry["label"], entry["ids"]) == ("fttt, seed 1", ["q/0", "q/1", "q/2"])
    assert (entry["verdicts"], entry["solved"]) == (["iu", "", ""], [0, 0, 0])
    assert (entry["tokens"], entry["scores"][0]) == ([4, 0, 0], [0.5, 0.5])
    assert entry["done"] == [False] * 3
    assert news(stream) == {}
    mine.trials("q/0", "c")
    mine.trials("q/2", "i")
    settle(watcher)
    told = news(stream)
    assert told["trials"] == {
        "key": key,
        "questions": [[0, "iuc", 3, 6, [0.5, 0.5, None], True], [2, "i", 0, 2, None, False]],
    }
    assert told["runs"]["rows"][0]["solved"] == 1
    assert "run" not in told


def test_a_free_trial_is_not_counted_where_unanswered_ones_are_retried(
    grow: Grow, tmp_path: Path
) -> None:
    mine = grow("mine", budget={"trials": 4, "unanswered": "retry"})
    mine.trials("q/0", "uic")
    watcher = Watcher(tmp_path / "runs")
    settle(watcher)
    assert news(RunStream(watcher, *watcher.runs))["run"]["solved"] == [2, 0, 0]


def test_a_run_in_anothers_place_is_told_whole(grow: Grow, tmp_path: Path) -> None:
    mine = grow("mine")
    mine.trials("q/0", "i")
    watcher = Watcher(tmp_path / "runs")
    settle(watcher)
    (key,) = watcher.runs
    stream = RunStream(watcher, key)
    news(stream)
    mine.writer.close()
    mine.path.rename(tmp_path / "old")
    grow("mine", "new")
    settle(watcher)
    settle(watcher)
    assert news(stream)["run"]["ids"] == ["new"]


def test_runs_are_named_by_what_tells_them_apart(grow: Grow, tmp_path: Path) -> None:
    grow("a")
    grow("b", seed=2)
    grow("c", settings={"lr": 1e-3})
    watcher = Watcher(tmp_path / "runs")
    runs = {run.path.name: run.run for run in watcher.runs.values()}
    assert told_apart([runs["a"]]) == ["fttt, seed 1"]
    assert told_apart([runs["a"], runs["b"]]) == ["fttt, seed 1", "fttt, seed 2"]
    assert told_apart([runs["a"], runs["a"]]) == ["a", "a"]
    assert told_apart([runs["c"], runs["a"]])[0] == "fttt (lr 0.001), seed 1"
