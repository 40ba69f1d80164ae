"""Which system calls a box may make: a list of what Python programs need, all others refused.

The list is compiled to the kernel's filter language once, by libseccomp through ``pyseccomp``;
each box only loads the bytes.
"""

from __future__ import annotations

import errno
import fcntl
import signal
import socket
import tempfile
import termios

from fttt.judge.box.usage import SHARED_MAPPING

__all__ = ["compile_filter"]

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
