"""Closes the box: what its first process gives up before any foreign code runs."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from . import system

__all__ = ["INSIDE", "NAMESPACES", "SCRATCH", "confine", "leave_root", "map_ids"]

NAMESPACES = {
    "user": system.NEW_USER,
    "pid": system.NEW_PID,
    "mount": system.NEW_MOUNT,
    "network": system.NEW_NETWORK,
    "ipc": system.NEW_IPC,
    "uts": system.NEW_UTS,
}
INSIDE = 1000
"""The user and group id inside a box."""

SCRATCH = "/tmp"
"""The one writable folder of a box."""

_FILES = {
    "/": system.FILE_READ,
    SCRATCH: system.FILE_ALL,
    "/dev/null": system.FILE_WRITE,
}
"""What may be done with files: Landlock's layer, beneath that of the mounts."""


def leave_root(uid: int) -> None:
    """Become an ordinary user where this is root: the kernel counts no processes of root.

    Of root's capabilities only the right to look at processes is kept, and only where the starter
    left it; a box gives it up as it gives up all others.
    """
    if os.getuid() == 0:
        system.keep_capabilities()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        system.hold_capabilities(1 << system.CAP_SYS_PTRACE)
        # The change made /proc/self root's own, but a box has to write its id maps there.
        system.forbid_dumps(False)


def confine(
    layers: frozenset[str], limits: dict[str, Any], program: bytes, ids: tuple[int, int]
) -> None:
    """Apply every one of ``layers``, in the order that each still allows the next.

    ``ids`` are the user and group outside, which a process in a new user namespace cannot know.
    Raises :class:`OSError` where one does not hold: a box is closed as announced or not at all.
    """
    if "user" in layers:
        map_ids(*ids)
    if "mount" in layers:
        system.mount_tmpfs(SCRATCH, f"size={limits['scratch_bytes']},nr_inodes=4096,mode=0700")
        system.mount_tmpfs("/proc", "size=4k,mode=0555", read_only=True)
        os.chdir(SCRATCH)
    os.umask(0o077)
    # The first process of a pid namespace is deaf to its children's signals, but for those that
    # it handles; Python handles this one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "limits" in layers:
        _limit(limits)
    system.forbid_new_privileges()
    if "landlock" in layers:
        system.restrict_files(_FILES)
    if "capabilities" in layers:
        system.drop_capabilities()
    system.forbid_dumps()
    if "seccomp" in layers:
        system.load_filter(program)


def map_ids(uid: int, gid: int) -> None:
    """Be user and group :data:`INSIDE` in this process's new user namespace, and nobody else."""
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE} {uid} 1"),
        ("gid_map", f"{INSIDE} {gid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, line.encode())
        os.close(fd)


def _limit(limits: dict[str, Any]) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, limits["address_space_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"] + 1),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_FSIZE, limits["scratch_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_SIGPENDING, limits["signals"]),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
        # The soft limit on processor time comes first, as a signal that names the reason.
        soft = bound - 1 if kind == resource.RLIMIT_CPU else bound
        resource.setrlimit(kind, (soft, bound))
