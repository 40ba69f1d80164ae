"""What memory is free."""

from __future__ import annotations

from pathlib import Path

from fttt.engine.free_memory import FILES, _left


def test_a_container_may_take_what_its_groups_leave(tmp_path: Path) -> None:
    def group(path: Path, names: tuple[str, str, str], limit: str, used: int, cache: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / names[0]).write_text(f"{limit}\n")
        (path / names[1]).write_text(f"{used}\n")
        (path / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")

    member = tmp_path / "cgroup"
    member.write_text("12:cpuset:/a\n4:memory:/job/one\n0::/user/shell\n")
    assert list(_left(member, tmp_path)) == []
    group(tmp_path / "user" / "shell", FILES["v2"], "max", 50, 10)
    group(tmp_path / "user", FILES["v2"], "1000", 700, 100)
    assert list(_left(member, tmp_path)) == [400]
    group(tmp_path / "memory", FILES["v1"], "90", 100, 0)  # as a container sees its own
    assert sorted(_left(member, tmp_path)) == [0, 400]
    assert list(_left(tmp_path / "none", tmp_path)) == []
