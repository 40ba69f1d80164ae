"""What memory is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fttt.engine import free_memory
from fttt.engine.free_memory import FILES, _groups, free_bytes, held_here, total_bytes


def test_a_container_may_take_what_its_groups_leave(tmp_path: Path) -> None:
    def group(path: Path, names: tuple[str, str, str], limit: str, used: int, cache: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / names[0]).write_text(f"{limit}\n")
        (path / names[1]).write_text(f"{used}\n")
        (path / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")

    member = tmp_path / "cgroup"
    member.write_text("12:cpuset:/a\n4:memory:/job/one\n0::/user/shell\n")
    assert list(_groups(member, tmp_path)) == []
    group(tmp_path / "user" / "shell", FILES["v2"], "max", 50, 10)
    group(tmp_path / "user", FILES["v2"], "1000", 700, 100)
    assert list(_groups(member, tmp_path)) == [(1000, 400)]
    group(tmp_path / "memory", FILES["v1"], "90", 100, 0)  # as a container sees its own
    assert sorted(_groups(member, tmp_path)) == [(90, 0), (1000, 400)]
    assert list(_groups(tmp_path / "none", tmp_path)) == []


def test_a_cpus_memory_is_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert 0 < held_here(cpu) < total_bytes(cpu)
    monkeypatch.setattr(free_memory, "_groups", lambda *_: iter([(5000, 70), (6000, 60)]))
    assert (total_bytes(cpu), free_bytes(cpu)) == (5000, 60)
