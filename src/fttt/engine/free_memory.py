"""How much memory a device has, and how much of it is free; on a CPU within the container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

__all__ = ["free_bytes", "held_here", "total_bytes"]

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a control group: its limit, what it has taken, and which line of ``memory.stat`` says how much
of that is a cache of files, which is given back when it is wanted."""


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor could take on ``device`` now; on a CPU, within the container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    left = (left for _, left in _groups(MEMBERSHIP, MOUNT))
    return min(int(psutil.virtual_memory().available), *left)


def total_bytes(device: torch.device) -> int:
    """All memory of ``device``; on a CPU, of the container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = (limit for limit, _ in _groups(MEMBERSHIP, MOUNT))
    return min(int(psutil.virtual_memory().total), *limits)


def held_here(device: torch.device) -> int:
    """What this process has taken of it: on a GPU its tensors."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _groups(membership: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """The limit of each control group that this process is in and that has one; what it leaves.

    A container's processes may see their own group at the mount itself, and not where its name
    says; whatever is not there has no say.
    """
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in {"", "memory"}:
                continue
            files = FILES["v1" if controllers else "v2"]
            root = mount / controllers
            for group in (root / name.lstrip("/") / "x").parents:
                if not group.is_relative_to(root):
                    break
                with suppress(OSError, ValueError):
                    yield _limit_and_left(group, *files)


def _limit_and_left(group: Path, limit: str, used: str, cache: str) -> tuple[int, int]:
    """Raises ValueError where the group has no limit (``max``)."""
    stat = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
    taken = int((group / used).read_text()) - int(stat.get(cache, 0))
    most = int((group / limit).read_text())
    return most, max(0, most - taken)
