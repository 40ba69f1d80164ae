"""Control groups for boxes: the kernel's own count of what a box uses, where it can be had.

A box's first process joins its group before any foreign code runs, and whatever it starts is born
there: time of children that nobody awaits, memory that no process maps and buffers of sockets are
all counted, and pages that processes share are counted once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fttt.judge.confinement import Limits

__all__ = ["COUNTED", "Groups"]

COUNTED = ("processor time", "memory")

_PREFIX = "fttt-judge"
_REMOVAL_SECONDS = 5.0  # a group can be removed once the last of its processes is gone
_number = itertools.count()


@dataclass
class Groups:
    """A group a place under this process's own, or why there is none.

    Version 1 and version 2 of control groups serve, also side by side. Processor time and memory
    are looked for separately, since a machine may offer only one of them.
    """

    faults: dict[str, str] = field(default_factory=dict)
    """Why one of :data:`COUNTED` is not counted by groups."""
    versions: dict[str, str] = field(default_factory=dict)
    """The version of the groups that count it, where they do."""
    _folders: list[Path] = field(default_factory=list)
    _fds: list[int] = field(default_factory=list)
    _places: list[dict[str, Any]] = field(default_factory=list)
    _zygote: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def without(cls, fault: str) -> Groups:
        """No groups, and why."""
        return cls(faults=dict.fromkeys(COUNTED, fault))

    @classmethod
    def make(cls, places: int, limits: Limits, owner: int | None) -> Groups:
        """Make ``places`` groups where this machine and user allow it; raises nothing.

        ``owner`` is the user id that starts the boxes, where that is not this process's.
        """
        groups = cls()
        groups._places = [{"join": []} for _ in range(places)]
        name = f"{_PREFIX}-{os.getpid()}-{next(_number)}"
        try:
            own, mounts = _own(), _mounts()
        except OSError as error:
            return cls.without(str(error))
        for what, controller in zip(COUNTED, ("cpuacct", "memory"), strict=True):
            try:
                groups._make_first(controller, name, own, mounts, limits)
                groups.versions[what] = "1"
            except OSError as error:
                groups.faults[what] = _why(error)
        if groups.faults:
            groups._make_second(name, own, mounts, limits, owner)
        return groups

    @property
    def complete(self) -> bool:
        """Whether groups count all that is to be counted."""
        return not self.faults

    @property
    def counting(self) -> dict[str, str]:
        """What counts each of :data:`COUNTED`, for people."""
        by = {what: f"a control group (version {n})" for what, n in self.versions.items()}
        for what, fault in self.faults.items():
            by[what] = f"a look at /proc every 20 ms (no control group: {fault})"
        return {what: by[what] for what in COUNTED}

    @property
    def plan(self) -> dict[str, Any]:
        """What the zygote is told: indices of :attr:`descriptors`, by their use."""
        return {"places": self._places, "zygote": self._zygote} if self.versions else {}

    @property
    def descriptors(self) -> list[int]:
        """The open files of all groups."""
        return list(self._fds)

    def _make_first(
        self, controller: str, name: str, own: dict[str, str], mounts: list[_Mount], limits: Limits
    ) -> None:
        """Version 1: a hierarchy a controller, each with its own files."""
        mount = next((m for m in mounts if controller in m.controllers), None)
        if mount is None or controller not in own:
            raise OSError(f"no control group has the controller {controller}")
        parent = mount.place(own[controller])
        _clean(parent)
        base = self._folder(parent / name)
        made: list[tuple[int, str, int]] = []
        for number in range(len(self._places)):
            folder = self._folder(base / str(number))
            if controller == "memory":
                _write(folder / "memory.limit_in_bytes", limits.memory_bytes)
                with contextlib.suppress(OSError):  # where the kernel counts swap
                    _write(folder / "memory.memsw.limit_in_bytes", limits.memory_bytes)
                count = "overruns", self._open(folder / "memory.oom_control")
            else:
                count = "nanoseconds", self._open(folder / "cpuacct.usage")
            # By this file a process moves without the lock that all processes share.
            made.append((self._open(folder / "tasks", os.O_WRONLY), *count))
        for place, (join, use, index) in zip(self._places, made, strict=True):
            place["join"].append(join)
            place[use] = index

    def _make_second(
        self,
        name: str,
        own: dict[str, str],
        mounts: list[_Mount],
        limits: Limits,
        owner: int | None,
    ) -> None:
        """Version 2, for what version 1 does not count: one hierarchy."""
        try:
            mount = next((m for m in mounts if m.kind == "cgroup2"), None)
            if mount is None or "" not in own:
                raise OSError("there are no control groups of version 2")
            parent = _parent(mount.place(own[""]), "memory" in self.faults)
            _clean(parent)
            base = self._folder(parent / name)
            memory = "memory" in self.faults and _delegate(base)
            join = self._open(self._folder(base / "zygote") / "cgroup.procs", os.O_WRONLY)
            made: list[dict[str, int]] = []
            for number in range(len(self._places)):
                folder = self._folder(base / str(number))
                uses = {"into": self._open(folder, os.O_RDONLY | os.O_DIRECTORY)}
                if memory:
                    _write(folder / "memory.max", limits.memory_bytes)
                    with contextlib.suppress(OSError):  # where the kernel counts swap
                        _write(folder / "memory.swap.max", 0)
                    uses["overruns"] = self._open(folder / "memory.events")
                if "processor time" in self.faults:
                    uses["microseconds"] = self._open(folder / "cpu.stat")
                made.append(uses)
            if owner is not None:  # whoever clones into a group must be allowed to write these
                for folder in (base, *(base / str(number) for number in range(len(made)))):
                    os.chown(folder / "cgroup.procs", owner, owner)
        except OSError as error:
            self.faults = {what: f"{why}; {_why(error)}" for what, why in self.faults.items()}
            return
        self._zygote["join"] = join
        for place, uses in zip(self._places, made, strict=True):
            place |= uses
        if self.faults.pop("processor time", None):
            self.versions["processor time"] = "2"
        if memory:
            self.versions["memory"] = "2"
            del self.faults["memory"]
        elif "memory" in self.faults:
            self.faults["memory"] += "; version 2 has no memory controller for this process"

    def _folder(self, path: Path) -> Path:
        path.mkdir()
        self._folders.append(path)
        return path

    def _open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        self._fds.append(os.open(path, flags | os.O_CLOEXEC))
        return len(self._fds) - 1

    def close(self) -> None:
        """Remove the groups, whose processes have been killed. Calling it twice is harmless."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while self._folders:
            try:
                self._folders[-1].rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
            self._folders.pop()


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy of control groups."""

    kind: str
    root: str
    """The group that is seen at the mount point."""
    point: str
    controllers: frozenset[str]

    def place(self, group: str) -> Path:
        """The folder of a group that ``/proc/self/cgroup`` names."""
        if self.root != "/" and (group + "/").startswith(self.root + "/"):
            group = group[len(self.root) :]
        return Path(self.point + group.rstrip("/"))


def _mounts() -> list[_Mount]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, system = line.partition(" - ")
        fields, kind = place.split(), system.split()[0]
        if kind in ("cgroup", "cgroup2"):
            options = system.split()[-1].split(",") if kind == "cgroup" else ()
            mounts.append(_Mount(kind, fields[3], fields[4], frozenset(options)))
    return mounts


def _own() -> dict[str, str]:
    """This process's group by controller; version 2's by the empty name."""
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    return own


def _parent(own: Path, memory: bool) -> Path:
    """The folder under which version 2 lets groups be made, with a memory controller if it can.

    A group that has processes cannot hand controllers on to groups below it, but for the root. So
    boxes come under this process's own group where it hands memory on already, else beside it.
    """
    if not memory or "memory" in _words(own / "cgroup.subtree_control"):
        return own
    beside = own.parent
    handed_on = "memory" in _words(beside / "cgroup.subtree_control")
    return beside if handed_on and os.access(beside, os.W_OK) else own


def _delegate(base: Path) -> bool:
    """Have the groups below ``base`` count memory; false where it has none to count with."""
    if "memory" not in _words(base / "cgroup.controllers"):
        return False
    _write(base / "cgroup.subtree_control", "+memory")
    return True


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _write(path: Path, value: object) -> None:
    path.write_text(str(value))


def _clean(parent: Path) -> None:
    """Remove what services that were killed left here: empty groups of ended processes."""
    for folder in parent.glob(f"{_PREFIX}-*-*"):
        pid = folder.name.split("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            for part in (*(p for p in folder.iterdir() if p.is_dir()), folder):
                with contextlib.suppress(OSError):
                    part.rmdir()


def _why(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else str(error)
