"""How a box is confined: layers and which of them hold here, limits, and allowed system calls."""

from __future__ import annotations

import errno
import fcntl
import signal
import socket
import tempfile
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field

from fttt.judge.box.usage import SHARED_MAPPING

__all__ = ["LAYERS", "LayerReport", "Limits", "SandboxLayer", "compile_filter"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SandboxLayer:
    """One kind of confinement."""

    name: str
    stops: str
    """What a submission could do without it."""
    needed: bool = True
    """Whether the stated minimum includes it."""


LAYERS = (
    SandboxLayer("bubblewrap", "reading files of the host, and host processes through /proc"),
    SandboxLayer("user", "keeping the rights of the user who started the judge"),
    SandboxLayer("pid", "signalling other processes, and leaving a process behind that lives on"),
    SandboxLayer("mount", "writing where the next submission can read"),
    SandboxLayer("network", "connecting to the network or to services of this machine"),
    SandboxLayer("ipc", "leaving shared memory and message queues behind"),
    SandboxLayer("uts", "changing the host's name", needed=False),
    SandboxLayer("limits", "exhausting processes, descriptors, file space or processor time"),
    SandboxLayer("capabilities", "using what is left of root's powers inside the box"),
    SandboxLayer("seccomp", "attacking the kernel through rarely used system calls"),
    SandboxLayer(
        "landlock", "writing outside the scratch folder, were a mount forgotten", needed=False
    ),
    SandboxLayer("library", "failing honest programs for modules that they cannot import"),
)
"""Every layer; those with ``needed`` are the minimum below which the judge refuses to start."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What was found when the sandbox started; measured in a trial box, not guessed."""

    faults: dict[str, str]
    """SandboxLayer name to why it does not hold; an empty text where it does."""
    counting: Mapping[str, str] = field(default_factory=dict)
    """What counts a box's processor time and its memory."""

    def holds(self, name: str) -> bool:
        return self.faults.get(name, "not tried") == ""

    @property
    def missing(self) -> tuple[SandboxLayer, ...]:
        """Layers of the stated minimum that do not hold."""
        return tuple(layer for layer in LAYERS if layer.needed and not self.holds(layer.name))

    def lines(self) -> list[str]:
        """The report for people, one line a layer and one for each thing that is counted."""
        lines = []
        for layer in LAYERS:
            if self.holds(layer.name):
                lines.append(f"{layer.name}: holds")
            else:
                why = self.faults.get(layer.name, "not tried")
                lines.append(f"{layer.name}: MISSING ({why}); it would stop {layer.stops}")
        return lines + [f"limit of {what}: holds, by {by}" for what, by in self.counting.items()]

    def to_json(self) -> dict[str, str]:
        """SandboxLayer name to ``"holds"`` or why it does not."""
        names = (layer.name for layer in LAYERS)
        return {name: "holds" if self.holds(name) else self.faults.get(name, "") for name in names}


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one box.

    Memory and processor time are counted in sum over the box's processes, by a control group where
    there is one and by a watchdog that looks every 20 ms; the address space bounds each process by
    itself, at once.
    """

    wall_seconds: float = 20.0
    """From the making of the box to its verdict, without what it waited for a processor."""
    waiting_seconds: float = 40.0
    """The most that is granted for waiting."""
    cpu_seconds: int = 5
    """On a machine of usual speed: right programs that are slow shall pass on a slow one too."""
    slowest: float = 3.0
    """So many times as much is granted at the most, by how long a piece of Python takes when a box
    has used up what is usual."""
    memory_bytes: int = 512 * _MIB
    address_space_bytes: int = 1024 * _MIB
    processes: int = 32
    """Threads count as processes, as the kernel counts them."""
    signals: int = 256
    """Timers and queued signals, which take memory of the kernel's."""
    files: int = 64
    """Open descriptors of a process."""
    scratch_bytes: int = 16 * _MIB
    """The writable file system, and any one file."""


_ALLOWED = """
accept accept4 access alarm arch_prctl bind brk chdir chmod clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat
fdatasync fgetxattr flock fork fstat fstatfs fsync ftruncate futex futex_requeue futex_wait
futex_waitv futex_wake get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid
getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid kill lchown
link linkat listen lseek lstat membarrier mincore mkdir mkdirat mprotect mremap msync
munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 poll
ppoll prctl pread64 preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir rseq
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_yield select sendfile sendmmsg sendmsg sendto
set_robust_list set_tid_address setitimer setpgid setrlimit setsid shutdown sigaltstack
splice stat statfs statx symlink symlinkat sync_file_range sysinfo tee tgkill time
timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat
utimes vfork wait4 waitid write writev
"""

_UNKNOWN = -1  # libseccomp's answer for a name that it does not know

# Making a namespace would give back capabilities inside it.
_CLONE_NAMESPACES = 0x7E020080
# By name where Python has one. Left out: F_SETPIPE_SZ, kernel memory that no limit counts.
_FCNTL = (*range(8), 36, 37, 38, fcntl.F_DUPFD_CLOEXEC, 1032)
_IOCTL = (termios.TCGETS, termios.TIOCGWINSZ, termios.FIONREAD, termios.FIONBIO, termios.FIOCLEX)
# Left out: merging pages with other processes', and having them written to swap.
_MADVISE = (*range(5), 8, 9, 10, 11, *range(14, 20), 22, 23)
_MAP_SHARED, _MAP_HUGETLB = 0x01, 0x40000
_SETSOCKOPT = (
    socket.SO_REUSEADDR,
    socket.SO_KEEPALIVE,
    socket.SO_LINGER,
    socket.SO_PASSCRED,
    socket.SO_RCVBUF,
    socket.SO_RCVTIMEO,
    socket.SO_SNDTIMEO,
)


def compile_filter(*, counted: bool) -> bytes:
    """Return the filter's instructions.

    ``counted`` says whether control groups count what a box uses. Where they do not, the filter
    refuses what ``/proc`` would not show: children that nobody awaits, shared mappings that are
    large, and larger buffers of sockets.

    Raises :class:`OSError` or :class:`RuntimeError` where libseccomp is not installed.
    """
    import pyseccomp  # type: ignore[import-untyped]  # loads the shared library, which a client of a remote judge need not have

    arg, equal, masked = pyseccomp.Arg, pyseccomp.EQ, pyseccomp.MASKED_EQ
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    architecture = pyseccomp.system_arch()
    allowed: list[tuple[str, list[object]]] = [(name, []) for name in _ALLOWED.split()]
    allowed.append(("clone", [arg(0, masked, _CLONE_NAMESPACES, 0)]))
    # Of other families, a pair would be made before it is refused, and its module loaded.
    allowed += [(name, [arg(0, equal, int(socket.AF_UNIX))]) for name in ("socket", "socketpair")]
    # Only one's own limits: the tester runs as the same user.
    allowed.append(("prlimit64", [arg(0, equal, 0)]))
    allowed += [("fcntl", [arg(1, equal, command)]) for command in _FCNTL]
    allowed += [("ioctl", [arg(1, equal, request)]) for request in _IOCTL]
    allowed += [("madvise", [arg(2, equal, advice)]) for advice in _MADVISE]
    if counted:
        # Huge pages of the machine's own store are counted by nobody.
        allowed.append(("mmap", [arg(3, masked, _MAP_HUGETLB, 0)]))
        allowed += [("rt_sigaction", []), ("setsockopt", [])]
    else:
        kinds = _MAP_SHARED | _MAP_HUGETLB
        small = arg(1, pyseccomp.LE, SHARED_MAPPING)
        allowed.append(("mmap", [arg(3, masked, kinds, 0)]))
        allowed.append(("mmap", [arg(3, masked, kinds, _MAP_SHARED), small]))
        # Another way to end of a child would be taken for no time at all. Asking is allowed.
        allowed.append(("rt_sigaction", [arg(0, pyseccomp.NE, int(signal.SIGCHLD))]))
        allowed.append(("rt_sigaction", [arg(1, equal, 0)]))
        # A buffer's size is an option of the socket's own level; all other options are harmless.
        allowed += [
            ("setsockopt", [arg(1, equal, socket.SOL_SOCKET), arg(2, equal, option)])
            for option in _SETSOCKOPT
        ]
    for name, conditions in allowed:
        if pyseccomp.resolve_syscall(architecture, name) != _UNKNOWN:
            rules.add_rule(pyseccomp.ALLOW, name, *conditions)
    # Its flags lie in memory, where a filter cannot look; the C library then falls back on clone.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
