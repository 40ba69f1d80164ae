"""Closes the box: what its first process gives up before any foreign code runs.

With the system calls for this that Python's ``os`` lacks, through the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Mapping
from typing import Any

__all__ = [
    "NAMESPACES",
    "adopt_orphans",
    "clone",
    "confine",
    "die_with_parent",
    "leave_root",
    "map_ids",
    "trim_memory",
]

NEW_MOUNT = 0x00020000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PID = 0x20000000
NEW_NETWORK = 0x40000000

FILE_READ = 0b1101
"""Landlock's rights to execute and read files, and to list folders."""
FILE_WRITE = 1 << 1
FILE_ALL = FILE_READ | FILE_WRITE | sum(1 << bit for bit in (4, 5, 7, 8, 9, 10, 12, 13, 14))
"""Those, and to make, remove, rename and cut files, folders, sockets, pipes and links."""

CAP_SYS_PTRACE = 19
"""Lets the zygote read what memory a box has mapped."""

_SIGKILL, _SIGCHLD = 9, 17
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = (
    4,
    8,
    22,
    24,
    28,
)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECCOMP_MODE_FILTER = 2
# Root's special powers, kept capabilities and raised ambient ones: all off, and locked.
_SECUREBITS_LOCKED = 0xEF
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK = {"create": 444, "add": 445, "restrict": 446}
# Landlock's rights over files, by the version that brought them.
_FILE_RIGHTS = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15), (9, 1 << 16))
_CLONE_INTO_CGROUP, _CLONE3_NUMBER = 1 << 33, 435
_CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "ppc64le": 120}

_libc = ctypes.CDLL(None, use_errno=True)
# Holds the interpreter's lock over the call, as os.fork does: the child must wake up owning it.
_libc_locked = ctypes.PyDLL(None, use_errno=True)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class _CloneArguments(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size"),
            *("tls", "set_tid", "set_tid_size", "cgroup"),
        )
    )


def clone(flags: int, group: int | None = None) -> int:
    """Fork into new namespaces; 0 in the child, its process id in the parent.

    ``os.fork`` followed by ``unshare`` would need one process more per box, since a new pid
    namespace takes effect for children only. Only for a process with one thread. ``group`` is the
    open folder of a control group of version 2 that the child is born into.
    Raises :class:`OSError` where the kernel refuses one of the namespaces, or the group.
    """
    machine = os.uname().machine
    number = _CLONE_NUMBERS.get(machine)
    if number is None:
        raise OSError(38, f"clone: its number on {machine} is not known")
    call: tuple[Any, ...] = (number, ctypes.c_ulong(flags | _SIGCHLD), None, None, None, None)
    if group is not None:
        arguments = _CloneArguments(
            flags=flags | _CLONE_INTO_CGROUP, exit_signal=_SIGCHLD, cgroup=group
        )
        size = ctypes.c_ulong(ctypes.sizeof(arguments))
        call = (_CLONE3_NUMBER, ctypes.byref(arguments), size)
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid = int(_libc_locked.syscall(*call))
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0
    api.PyOS_AfterFork_Parent()
    return _check(pid, "clone")


def mount_tmpfs(target: str, options: str, *, read_only: bool = False) -> None:
    """Mount an empty file system in memory over ``target``."""
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY | _MS_NOEXEC if read_only else 0)
    kind = b"tmpfs"
    _check(
        _libc.mount(kind, os.fsencode(target), kind, ctypes.c_ulong(flags), options.encode()),
        f"mount {target}",
    )


def _prctl(option: int, first: int, second: int = 0) -> int:
    long = ctypes.c_ulong
    return int(_libc.prctl(option, long(first), long(second), long(0), long(0)))


def drop_capabilities() -> None:
    """Give up every capability for good: bounding, ambient, permitted and effective sets."""
    capability = 0
    # The bounding set ends where the kernel's list of capabilities does.
    while _prctl(_PR_CAPBSET_DROP, capability) == 0:
        capability += 1
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS_LOCKED)
    hold_capabilities(0)


def capabilities() -> int:
    """The permitted capabilities of this process as a bit mask."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(data)), "capget")
    return int(data[0].permitted) | int(data[1].permitted) << 32


def keep_capabilities() -> None:
    """Let the permitted capabilities outlive the next change of the user id."""
    _check(_prctl(_PR_SET_KEEPCAPS, 1), "keepcaps")


def hold_capabilities(mask: int) -> None:
    """Hold these of the permitted capabilities and give up the others."""
    mask &= capabilities()
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)(
        *(_CapabilityData(word, word, 0) for word in (mask & 0xFFFFFFFF, mask >> 32))
    )
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def forbid_new_privileges() -> None:
    """From here on no program file can raise this process's privileges."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")


def restrict_files(allowed: Mapping[str, int]) -> None:
    """Keep to these rights (``FILE_*``) beneath these paths, by Landlock.

    Sockets with abstract names and processes outside of this restriction are out of reach too,
    and so is the network, as far as the kernel's version of Landlock knows them. Only where
    :func:`forbid_new_privileges` was called. Raises :class:`OSError` where there is no Landlock.
    """
    version = _landlock("create", None, 0, 1)
    files = sum(rights for first, rights in _FILE_RIGHTS if version >= first)
    network = (3 if version >= 4 else 0) | (12 if version >= 10 else 0)
    rules = struct.pack("=QQQ", files, network, 3 if version >= 6 else 0)
    ruleset = _landlock("create", rules, len(rules), 0)
    try:
        for path, rights in allowed.items():
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                _landlock("add", ruleset, 1, struct.pack("=Qi", rights & files, place), 0)
            finally:
                os.close(place)
        _landlock("restrict", ruleset, 0)
    finally:
        os.close(ruleset)


def _landlock(call: str, *arguments: Any) -> int:
    long = ctypes.c_long
    given = (long(item) if isinstance(item, int) else item for item in arguments)
    return _check(_libc.syscall(long(_LANDLOCK[call]), *given), f"landlock ({call})")


def trim_memory() -> None:
    """Give back what the C library's allocator holds unused, where it can."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)


def forbid_dumps(forbidden: bool = True) -> None:
    """Keep other processes of the same user from reading or tracing this one's memory."""
    _check(_prctl(_PR_SET_DUMPABLE, 0 if forbidden else 1), "dumpable")


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "subreaper")


def die_with_parent() -> None:
    """Be killed when the process that made this one ends, however it ends."""
    _check(_prctl(_PR_SET_PDEATHSIG, _SIGKILL), "parent death signal")


def load_filter(program: bytes) -> None:
    """Load a seccomp filter (8 bytes an instruction) for this process and its children."""
    compiled = _FilterProgram(len(program) // 8, program)
    _check(
        int(
            _libc.prctl(
                _PR_SET_SECCOMP,
                ctypes.c_ulong(_SECCOMP_MODE_FILTER),
                ctypes.byref(compiled),
                ctypes.c_ulong(0),
                ctypes.c_ulong(0),
            )
        ),
        "seccomp",
    )


NAMESPACES = {
    "user": NEW_USER,
    "pid": NEW_PID,
    "mount": NEW_MOUNT,
    "network": NEW_NETWORK,
    "ipc": NEW_IPC,
    "uts": NEW_UTS,
}
INSIDE = 1000
"""The user and group id inside a box."""

SCRATCH = "/tmp"
"""The one writable folder of a box."""

_FILES = {
    "/": FILE_READ,
    SCRATCH: FILE_ALL,
    "/dev/null": FILE_WRITE,
}
"""What may be done with files: Landlock's layer, beneath that of the mounts."""


def leave_root(uid: int) -> None:
    """Become an ordinary user where this is root: the kernel counts no processes of root.

    Of root's capabilities only the right to look at processes is kept, and only where the starter
    left it; a box gives it up as it gives up all others.
    """
    if os.getuid() == 0:
        keep_capabilities()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        hold_capabilities(1 << CAP_SYS_PTRACE)
        # The change made /proc/self root's own, but a box has to write its id maps there.
        forbid_dumps(False)


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
        mount_tmpfs(SCRATCH, f"size={limits['scratch_bytes']},nr_inodes=4096,mode=0700")
        mount_tmpfs("/proc", "size=4k,mode=0555", read_only=True)
        os.chdir(SCRATCH)
    os.umask(0o077)
    # The first process of a pid namespace is deaf to its children's signals, but for those that
    # it handles; Python handles this one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "limits" in layers:
        _limit(limits)
    forbid_new_privileges()
    if "landlock" in layers:
        restrict_files(_FILES)
    if "capabilities" in layers:
        drop_capabilities()
    forbid_dumps()
    if "seccomp" in layers:
        load_filter(program)


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
        (resource.RLIMIT_CPU, limits["cpu_seconds"] * limits["slowest"] + 1),
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
