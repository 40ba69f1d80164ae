"""Trackers through accelerate: what is refused, what is logged, what fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.trackers import RunTracker, check_tracker, plain_values


def test_what_does_not_exist_or_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("none")
    with pytest.raises(UsageError, match="no tracker 'paper'; choose from none, tensorboard"):
        check_tracker("paper")
    monkeypatch.setattr("fttt.trackers.find_spec", lambda name: name != "wandb" or None)
    check_tracker("tensorboard")
    with pytest.raises(UsageError, match=r"needs the package 'wandb'.* pip install wandb"):
        check_tracker("wandb")


def test_settings_are_plain_values() -> None:
    assert plain_values({"a": {"b": 1, "c": [2]}, "d": None}) == {
        "a.b": 1,
        "a.c": "[2]",
        "d": "None",
    }


def test_a_tracker_that_fails_is_said_once_and_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "logs").touch()  # where its folder would be
    tracker = RunTracker("tensorboard", tmp_path, {"lr": 0.1}, said.append)
    tracker.log({"loss": 1.0}, 1)
    tracker.log({"loss": 1.0}, 2)
    tracker.close()
    assert len(said) == 1
    assert "The tracker 'tensorboard' failed" in said[0]
