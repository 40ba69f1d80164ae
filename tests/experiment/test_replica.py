"""Replicas, without a cluster; their exchanges with a driver are in test_driver.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fttt.experiment.replica import Replica


def test_a_replica_takes_no_more_threads_than_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever ``OMP_NUM_THREADS`` gives a process that has the machine to itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", "somewhere"])
    taken: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for threads in (2, 8, None):
        Replica(str(tmp_path), {}, threads=threads)
    assert taken == [2, 4]
