"""What a box uses: its control group's counts where it has one, else what ``/proc`` shows.

From ``/proc``, processor time is exact because nothing in a box can leave its children unawaited
(the system call filter sees to that): what a process used stays visible until its parent has
taken it over. Memory is the sum of the processes' proportional shares, so that pages which they
share count once, and of the most that anonymous shared mappings and sockets can hold, whoever
looks at them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SHARED_MAPPING", "ControlGroup", "Processes", "slowness"]

SHARED_MAPPING = 16 << 20
"""The most that one shared mapping may hold; the system call filter refuses larger ones."""
# What unread messages of one socket can hold, by its type as /proc/net/unix has it. A stream's
# sender is bounded by its own buffer; a datagram socket keeps eleven messages of such a size.
_STREAM = 1 << 18
_DATAGRAM = 11 * _STREAM
_ANONYMOUS = b" /dev/zero (deleted)"  # the name of every anonymous shared mapping
_MAPPING = 256  # bytes that the kernel keeps a mapping
_MAPS = 1 << 19  # bytes of /proc/PID/maps, some 5,000 mappings; nobody honest has as many
_PAGE, _TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")

_ROUNDS, _USUAL = 50_000, 0.0035
"""Of a piece of Python, and its seconds on a machine of usual speed."""


def slowness() -> float:
    """How many times as long as usual a program takes on this machine now.

    The most of three looks, of some 5 ms each, since a program meets slow moments too.
    """
    return max(_look() for _ in range(3)) / _USUAL


def _look() -> float:
    start, total = time.process_time(), 0
    for n in range(_ROUNDS):
        total += n * n % 7
    return time.process_time() - start


class ControlGroup:
    """The control group of a place, by descriptors that the service opened."""

    def __init__(self, plan: Mapping[str, Any], fds: list[int]) -> None:
        self._join = [fds[index] for index in plan.get("join", ())]
        self.into = fds[plan["into"]] if "into" in plan else None
        """A folder to clone into, for groups of version 2."""
        self._nanoseconds = fds[plan["nanoseconds"]] if "nanoseconds" in plan else None
        self._microseconds = fds[plan["microseconds"]] if "microseconds" in plan else None
        self._overruns = fds[plan["overruns"]] if "overruns" in plan else None
        self._cpu_before = self._overruns_before = 0.0

    @property
    def counts_cpu(self) -> bool:
        return self._nanoseconds is not None or self._microseconds is not None

    @property
    def bounds_memory(self) -> bool:
        return self._overruns is not None

    def begin(self) -> None:
        """Count from here on: the next box takes the place."""
        self._cpu_before, self._overruns_before = self._cpu(), self._kills()

    def join(self) -> None:
        """Move this process, which has one thread, into the groups of version 1."""
        for fd in self._join:
            os.write(fd, b"0")

    def cpu(self) -> float:
        """Seconds since :meth:`begin`."""
        return self._cpu() - self._cpu_before

    def overrun(self) -> bool:
        """Whether the kernel has killed since :meth:`begin`, for want of memory in the group."""
        return self._kills() > self._overruns_before

    def _cpu(self) -> float:
        if self._nanoseconds is not None:
            return int(os.pread(self._nanoseconds, 64, 0)) / 1e9
        if self._microseconds is not None:
            return _field(self._microseconds, b"usage_usec") / 1e6
        return 0.0

    def _kills(self) -> float:
        return 0.0 if self._overruns is None else _field(self._overruns, b"oom_kill")


def _field(fd: int, name: bytes) -> int:
    for line in os.pread(fd, 4096, 0).splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


@dataclass(slots=True)
class Process:
    """A living process or a zombie."""

    pid: int
    parent: int
    start: int
    """When it began; with the id, this names it for good."""
    cpu: float
    """Seconds of its own and of the children that it awaited."""
    space: int
    resident: int


class Processes:
    """All processes that this one can see, each with the box that it belongs to."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int], int] = {}
        self._namespaces: dict[int, str | None] = {}
        self._own_namespace = _namespace(os.getpid())
        self._shares: dict[int, _Shares] = {}
        self._waits: dict[int, dict[tuple[int, int], float]] = {}
        self.families: dict[int, list[Process]] = {}
        """The members of each box, by the id of its first process."""

    def look(self, roots: Iterable[int]) -> None:
        """Read ``/proc`` once more; ``roots`` are the first processes of the boxes."""
        found = _processes()
        roots = set(roots)
        self._shares = {root: self._shares[root] for root in roots & self._shares.keys()}
        self._namespaces = {pid: self._namespaces.get(pid) or _namespace(pid) for pid in roots}
        known = {None, self._own_namespace}
        by_namespace = {name: pid for pid, name in self._namespaces.items() if name not in known}
        owners = {}
        self.families = {root: [] for root in roots}
        self._waits = {root: self._waits.get(root, {}) for root in roots}
        for process in found.values():
            key = process.pid, process.start
            root = self._owners.get(key)
            if root is None:
                root = self._owner(process, roots, found, by_namespace)
            if root in self.families:
                owners[key] = root
                self.families[root].append(process)
                self._waits[root][key] = _waited(process.pid)
        self._owners = owners

    def _owner(
        self,
        process: Process,
        roots: set[int],
        found: dict[int, Process],
        by_namespace: dict[str | None, int],
    ) -> int:
        """The first process of a process's box, or 0.

        The namespace says it whoever the parents were. Where it may not be read, their chain does:
        an orphan's parent becomes the box's first process.
        """
        if process.pid in roots:
            return process.pid
        if by_namespace and (name := _namespace(process.pid)) is not None:
            return by_namespace.get(name, 0)
        root = process.pid
        while root not in roots and root in found:
            root = found[root].parent
        return root if root in roots else 0

    def members(self, root: int) -> set[tuple[int, int]]:
        """The processes of a box, named for good."""
        return {(member.pid, member.start) for member in self.families[root]}

    def cpu(self, root: int) -> float:
        """Seconds of processor time that a box has used."""
        return sum(member.cpu for member in self.families[root])

    def memory(self, root: int, bound: int) -> int:
        """Bytes that a box uses, or a little more; looked at closely only where that may matter.

        To read what a process shares takes the kernel a walk over all of its pages, so it is read
        only where the address spaces of a box together are beyond ``bound``, and once more only
        when its processes have grown by what then was left.
        """
        members = self.families[root]
        mappings: set[bytes] = set()
        memory = _sockets(root)
        for member in members:
            count = _shared_mappings(member.pid, mappings)
            if count is None:
                return bound + 1
            memory += _MAPPING * count
        memory += SHARED_MAPPING * len(mappings)
        if memory + sum(member.space for member in members) <= bound:
            return memory
        shares = self._shares.get(root)
        if shares is None or memory + shares.now(members) > bound:
            shares = self._shares[root] = _Shares(members)
        return memory + shares.now(members)

    def waited(self, root: int) -> float:
        """Seconds for which the processes of a box were ready to run and had no processor, in sum.

        They wait for each other by turns, so that of all of them counts, and of those that have
        ended as far as it was seen.
        """
        return sum(self._waits[root].values())


class _Shares:
    """What the processes of a box had in memory at one time, pages that they share counted once."""

    def __init__(self, members: list[Process]) -> None:
        self._sum = sum(_share(member) for member in members)
        self._resident = {(member.pid, member.start): member.resident for member in members}

    def now(self, members: list[Process]) -> int:
        """The most that they can have by now: no less than then, and all growth unshared."""
        growth = (m.resident - self._resident.get((m.pid, m.start), 0) for m in members)
        return self._sum + sum(bytes_ for bytes_ in growth if bytes_ > 0)


def _processes() -> dict[int, Process]:
    processes: dict[int, Process] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  (50 times a second, so the cheap way)
        if not name.isdigit():
            continue
        # From the third field of proc(5) on: parent, four sums of processor time, start, memory.
        fields = _read(f"/proc/{name}/stat", 1024).rpartition(b") ")[2].split()
        if not fields:  # it has ended
            continue
        processes[int(name)] = Process(
            pid=int(name),
            parent=int(fields[1]),
            start=int(fields[19]),
            cpu=sum(map(int, fields[11:15])) / _TICK,
            space=int(fields[20]),
            resident=int(fields[21]) * _PAGE,
        )
    return processes


def _waited(pid: int) -> float:
    fields = _read(f"/proc/{pid}/schedstat", 256).split()
    return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0


def _namespace(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115  (the cheap way)
    return None


def _share(process: Process) -> int:
    """A process's own pages, and its part of those that it shares with others by fork.

    What it has in shared mappings is left out: they are counted by what they can hold. One that has
    ended since it was seen has nothing any more.
    """
    place = f"/proc/{process.pid}/smaps_rollup"
    sizes = dict.fromkeys((b"Pss", b"Pss_Shmem", b"SwapPss"), 0)
    for line in _read(place, 4096).splitlines():
        name, _, value = line.partition(b":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) << 10
    if not sizes[b"Pss"] and _is_closed(place):
        return process.resident
    return sizes[b"Pss"] - sizes[b"Pss_Shmem"] + sizes[b"SwapPss"]


def _is_closed(path: str) -> bool:
    """Whether a file is there, and not ours to read."""
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    return False


def _shared_mappings(pid: int, shared: set[bytes]) -> int | None:
    """Add a process's anonymous shared mappings to ``shared``; how many mappings it has at all.

    Nothing is answered where there are so many that only to read them would take long.
    """
    maps = _read(f"/proc/{pid}/maps", _MAPS)
    if len(maps) >= _MAPS:
        return None
    if _ANONYMOUS in maps:
        # Address, rights, offset, device, file number, name.
        shared |= {line.split()[4] for line in maps.splitlines() if line.endswith(_ANONYMOUS)}
    return maps.count(b"\n")


def _sockets(pid: int) -> int:
    """The most that the sockets of a process's network namespace can hold."""
    lines = _read(f"/proc/{pid}/net/unix").splitlines()[1:]
    return sum(_DATAGRAM if line.split()[4] == b"0002" else _STREAM for line in lines)


def _read(path: str, most: int = 1 << 20) -> bytes:
    """A file's content; nothing where the process has ended or is not ours to look at."""
    parts = []
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while most > 0 and (part := file.read(most)):
            parts.append(part)
            most -= len(part)
    return b"".join(parts)
