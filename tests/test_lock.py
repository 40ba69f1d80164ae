"""Folders that one process at a time may write to."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.lock import hold
from fttt.store.lines import LineFile, read_lines
from fttt.training.folder import held_folder


def test_a_folder_is_held_until_its_handle_is_closed(tmp_path: Path) -> None:
    one, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    hold(one, tmp_path)
    with pytest.raises(UsageError, match=rf"{tmp_path}.* is in use by another process"):
        hold(other, tmp_path)
    os.close(one)
    hold(other, tmp_path)
    os.close(other)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held_folder(tmp_path):
        file = LineFile(tmp_path / "lines.jsonl")
        file.append({"n": 0})
        file.close()
    assert list(read_lines(tmp_path / "lines.jsonl")) == [{"n": 0}]
