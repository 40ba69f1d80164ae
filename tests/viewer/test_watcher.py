"""The list of runs: what it says, and that it goes on when they do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.viewer import Watcher

Grow = Callable[..., Any]


def settle(watcher: Watcher) -> None:
    """Let it look for new runs and read all that is there."""
    watcher._next_scan = 0
    while watcher.step():
        pass


def test_each_run_is_listed_with_what_it_has_reached(grow: Grow, tmp_path: Path) -> None:
    mine = grow("sweep/mine")
    mine.trials("q/0", "iuc")
    mine.trials("q/1", "i")
    watcher = Watcher(tmp_path / "runs")
    settle(watcher)
    (row,) = watcher.rows()
    assert row["name"] == "sweep/mine"
    assert (row["method"], row["task"], row["model"], row["seed"]) == ("fttt", "toy", "tiny", 1)
    assert (row["done"], row["total"], row["solved"], row["trials"]) == (1, 3, 1, "4")
    assert row["state"] == "running"
    assert row["left"].startswith("at most")
    assert row["resume"] == f"fttt run --resume {tmp_path}/runs/sweep/mine"
    other = grow("other")
    mine.finish()
    other.trials("q/0", "c")
    settle(watcher)
    rows = {row["name"]: row for row in watcher.rows()}
    assert list(rows) == ["other", "sweep/mine"]  # the latest first
    done = rows["sweep/mine"]
    assert (done["state"], done["done"], done["solved"]) == ("finished", 3, 1)
    assert (done["share"], done["resume"], done["left"]) == ("33.3 %", "", "")
    other.writer.close()
    settle(watcher)
    assert watcher.rows()[0]["state"] == "stopped"


def test_a_finished_run_is_read_only_when_a_page_looks_at_it(grow: Grow, tmp_path: Path) -> None:
    grow("mine").finish()
    watcher = Watcher(tmp_path / "runs")
    settle(watcher)
    ((key, run),) = watcher.runs.items()
    assert watcher.rows()[0]["trials"] == "12"
    assert run.trials == 0
    with watcher.watching(key):
        settle(watcher)
        assert run.trials == 12


def test_broken_and_removed_folders_are_no_obstacle(grow: Grow, tmp_path: Path) -> None:
    grow("mine").finish()
    grow("gone").trials("q/0", "i")
    broken = tmp_path / "runs" / "broken"
    shutil.copytree(tmp_path / "runs" / "mine", broken)
    (broken / "config.toml").write_text("method = ")
    watcher = Watcher(tmp_path / "runs")
    settle(watcher)
    (sentence,) = watcher.broken
    assert "is broken" in sentence
    shutil.rmtree(tmp_path / "runs" / "gone")
    shutil.rmtree(broken)
    settle(watcher)
    assert [row["name"] for row in watcher.rows()] == ["mine"]
    assert watcher.broken == []


def test_a_folder_that_is_one_run_is_a_list_of_one(grow: Grow, tmp_path: Path) -> None:
    grow("mine").finish()
    watcher = Watcher(tmp_path / "runs" / "mine")
    assert [row["name"] for row in watcher.rows()] == ["."]


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there; name a folder"):
        Watcher(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; name a folder"):
        Watcher(tmp_path / "file")


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("10240, 81559", "10.0 of 79.6 GiB"),
        ("1024, 2048\n0, 2048", "GPU 0: 1.0 of 2.0 GiB, GPU 1: 0.0 of 2.0 GiB"),
        ("[N/A], [N/A]", ""),
        ("", ""),
    ],
)
def test_memory_of_gpus_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, said: str
) -> None:
    from fttt.viewer.watcher import _gpu_memory

    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{printed}\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert _gpu_memory() == said
    monkeypatch.setenv("PATH", "/nowhere")
    assert _gpu_memory() == ""
