"""How a box is confined: its layers, what each would stop and which hold here, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LAYERS", "MAX_SUBMISSION", "Layer", "LayerReport", "Limits"]


MAX_SUBMISSION = 1_000_000
"""The most characters that a submission may have; compiling more would only waste its memory."""

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of confinement."""

    name: str
    stops: str
    """What a submission could do without it."""
    needed: bool = True
    """Whether the stated minimum includes it."""


LAYERS = (
    Layer("bubblewrap", "reading files of the host, and host processes through /proc"),
    Layer("user", "keeping the rights of the user who started the judge"),
    Layer("pid", "signalling other processes, and leaving a process behind that lives on"),
    Layer("mount", "writing where the next submission can read"),
    Layer("network", "connecting to the network or to services of this machine"),
    Layer("ipc", "leaving shared memory and message queues behind"),
    Layer("uts", "changing the host's name", needed=False),
    Layer("limits", "exhausting processes, descriptors, file space or processor time"),
    Layer("capabilities", "using what is left of root's powers inside the box"),
    Layer("seccomp", "attacking the kernel through rarely used system calls"),
    Layer("landlock", "writing outside the scratch folder, were a mount forgotten", needed=False),
    Layer("library", "failing honest programs for modules that they cannot import"),
)
"""Every layer; those with ``needed`` are the minimum below which the judge refuses to start."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What was found when the sandbox started; measured in a trial box, not guessed."""

    faults: dict[str, str]
    """Layer name to why it does not hold; an empty text where it does."""
    counting: Mapping[str, str] = field(default_factory=dict)
    """What counts a box's processor time and its memory."""

    def holds(self, name: str) -> bool:
        return self.faults.get(name, "not tried") == ""

    @property
    def missing(self) -> tuple[Layer, ...]:
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
        """Layer name to ``"holds"`` or why it does not."""
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
