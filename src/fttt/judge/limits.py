"""What one submission may use."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_SUBMISSION", "Limits"]

MAX_SUBMISSION = 1_000_000
"""The most characters that a submission may have; compiling more would only waste its memory."""

_MIB = 1024 * 1024


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
