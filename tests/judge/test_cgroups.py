from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fttt.judge import cgroups as module
from fttt.judge.cgroups import COUNTED, Groups
from fttt.judge.confinement import Limits
from fttt.judge.problem import Problem, Submission
from fttt.judge.sandbox import Sandbox

ADD = Problem("", "def check(f):\n    assert f(1, 2) == 3\n", "add")
LIMITS = Limits(memory_bytes=64 << 20)


def second(root: Path, *, controllers: str, handed_on: str) -> None:
    """A folder that looks like a group of version 2."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text(handed_on)
    (root / "cgroup.procs").write_text("")


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of version 2 in ordinary files, in which this process is in ``/user/own``."""
    mount = module._Mount("cgroup2", "/", str(tmp_path), frozenset())
    monkeypatch.setattr(module, "_mounts", lambda: [mount])
    monkeypatch.setattr(module, "_own", lambda: {"": "/user/own"})
    made = Path.mkdir

    def make(path: Path, *args: object, **options: object) -> None:
        """As the kernel does: a new group has its files at once."""
        made(path, *args, **options)  # type: ignore[arg-type]
        parent = module._words(path.parent / "cgroup.subtree_control")
        names = " ".join(word.lstrip("+") for word in parent)
        (path / "cgroup.controllers").write_text(names)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cpu.stat"):
            (path / name).write_text("")
        if "memory" in names:
            (path / "memory.events").write_text("oom_kill 0\n")

    remove = Path.rmdir

    def unmake(path: Path) -> None:
        for file in path.iterdir():
            file.unlink()
        remove(path)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", unmake)
    second(tmp_path / "user", controllers="memory", handed_on="memory")
    second(tmp_path / "user" / "own", controllers="memory", handed_on="")
    return tmp_path


def folders(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())


def test_groups_of_version_2_stand_beside_a_group_that_has_processes(pretend: Path) -> None:
    groups = Groups.make(2, LIMITS, None)
    assert groups.complete
    assert groups.versions == {"processor time": "2", "memory": "2"}
    (base,) = (pretend / "user").glob("fttt-judge-*")
    assert (base / "cgroup.subtree_control").read_text() == "+memory"
    assert (base / "1" / "memory.max").read_text() == str(64 << 20)
    assert {"into", "overruns", "microseconds"} <= set(groups.plan["places"][1])
    assert "join" in groups.plan["zygote"]
    groups.close()
    assert folders(pretend) == ["user", "user/own"]


def test_without_a_memory_controller_processor_time_is_counted_all_the_same(pretend: Path) -> None:
    second(pretend / "user", controllers="", handed_on="")
    second(pretend / "user" / "own", controllers="", handed_on="")
    groups = Groups.make(1, LIMITS, None)
    assert not groups.complete
    assert groups.versions == {"processor time": "2"}
    assert "no memory controller" in groups.counting["memory"]
    groups.close()


def test_what_a_killed_service_left_is_removed_and_nothing_of_one_that_lives(pretend: Path) -> None:
    old, lives = 99999999, os.getpid()
    for name in (f"fttt-judge-{old}-0", f"fttt-judge-{lives}-77", "other"):
        (pretend / "user" / name).mkdir()
    Groups.make(1, LIMITS, None).close()
    assert folders(pretend) == ["user", f"user/fttt-judge-{lives}-77", "user/other", "user/own"]


def test_a_machine_without_control_groups_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mounts", list)
    groups = Groups.make(1, LIMITS, None)
    assert not groups.versions
    assert groups.plan == {}
    assert all("no control group" in groups.counting[what] for what in COUNTED)
    groups.close()


def test_a_mount_of_part_of_a_hierarchy_shows_the_group_at_its_place() -> None:
    whole = module._Mount("cgroup", "/", "/sys/fs/cgroup/memory", frozenset())
    part = module._Mount("cgroup", "/docker/7", "/sys/fs/cgroup/memory", frozenset())
    assert whole.place("/a/b") == Path("/sys/fs/cgroup/memory/a/b")
    assert part.place("/docker/7") == part.place("/") == Path("/sys/fs/cgroup/memory")
    assert part.place("/docker/7/c") == Path("/sys/fs/cgroup/memory/c")
    assert part.place("/docker/77") == Path("/sys/fs/cgroup/memory/docker/77")


def test_the_groups_of_this_machine_hold_a_box_to_its_memory_and_are_gone_afterwards() -> None:
    async def judge() -> tuple[str, list[Path]]:
        sandbox = Sandbox(workers=1, limits=LIMITS)
        try:
            await sandbox.start()
            assert sandbox._running is not None
            if "memory" not in sandbox._running.groups.versions:
                pytest.skip("this machine and user have no control group for memory")
            places = list(sandbox._running.groups._folders)
            assert all(place.is_dir() for place in places)
            hoard = "hoard = bytearray(b'x') * (200 << 20)\ndef add(a, b): return a + b\n"
            return (await sandbox.judge(Submission(ADD, hoard))).status, places
        finally:
            await sandbox.close()

    status, places = asyncio.run(judge())
    assert status == "memory"
    assert not any(place.exists() for place in places)
