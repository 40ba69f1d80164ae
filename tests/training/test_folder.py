"""A training begins in an empty folder, and only one process trains in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.errors import RunError, UsageError
from fttt.training.folder import begin_folder, held_folder


def test_a_training_begins_in_an_empty_folder(tmp_path: Path) -> None:
    begin_folder(tmp_path / "a" / "b", "go on by")
    begin_folder(tmp_path / "a" / "b", "go on by")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"is not empty; name another with --out\.$"):
        begin_folder(tmp_path, "go on by")
    (tmp_path / "config.toml").touch()
    with pytest.raises(UsageError, match=r"is not empty; .* by `go on by .*`"):
        begin_folder(tmp_path, "go on by")
    with pytest.raises(UsageError, match=r"file' is a file; name a folder"):
        begin_folder(tmp_path / "file", "go on by")
    with pytest.raises(RunError, match=r"Cannot write the output folder .*: Not a directory"):
        begin_folder(tmp_path / "file" / "below", "go on by")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    used = pytest.raises(UsageError, match="in use by another process")
    with held_folder(tmp_path), used, held_folder(tmp_path):
        pass
    with held_folder(tmp_path):
        pass  # the first one has let go
