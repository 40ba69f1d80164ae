"""Where an engine's seconds go: its passes by kind, and what ran and waited between them.

    python benchmarks/passes.py run policy --task sorting --limit 8 --trials 16
    python benchmarks/passes.py --sync --each engine.py --shape llama-8b --reference 0

Watches any command of fttt, or a script of this folder, in this process. Of each kind of pass it
prints how many there were, their seconds in all and the median, how many requests one served, and
on a GPU how many allocations they asked the driver for; of the turns between them, how many
sequences ran and how many requests waited, in the mean. With `--sync` a GPU is waited for before
and after each pass, so that its seconds are its own; without, they are the host's. `--memory` adds
what the largest pass of a kind held beside what was held before it. `--kernels 20` waits likewise,
and prints the GPU's own seconds of each kind of pass, and of what is between passes (decode steps),
with the 20 kernels that took most of them; what a kind's seconds by the clock are above its own is
launching, which the profile itself makes slower.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from fttt.engine.engine import BatchedEngine

HERE = Path(__file__).resolve().parent
MARK = "spin_kernel"
"""What ``torch.cuda._sleep`` runs."""


@dataclass
class Passes:
    """Of one kind."""

    seconds: list[float] = field(default_factory=list)
    requests: int = 0
    allocations: int = 0
    peak: int = 0
    """Bytes that the largest one held beside what was held before it."""


class Watch:
    """Counts what engines of this process do."""

    def __init__(self, *, sync: bool, each: bool, memory: bool, marks: bool) -> None:
        self._sync = (sync or marks) and torch.cuda.is_available()
        self._marks = marks
        self.order: list[str] = []
        """The kinds of all passes, in their order."""
        self._each = each
        self._memory = memory and torch.cuda.is_available()
        self.passes: dict[str, Passes] = defaultdict(Passes)
        self.turns = 0
        self.running = 0
        self.waiting = {"generate": 0, "train": 0, "score": 0}

    def install(self) -> None:
        """Watch every engine that is made from now on, and those that are there."""
        timed, launch = BatchedEngine._timed, BatchedEngine._launch

        def watched(engine: BatchedEngine, kind: str, run: Callable[[], None]) -> None:
            self._wait()
            before, held = self._queued(engine), _allocations()
            base = torch.cuda.memory_allocated() if self._memory else 0
            if self._memory:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            self._mark()
            timed(engine, kind, run)
            self._mark()
            self._wait()
            seconds, served = time.perf_counter() - start, before - self._queued(engine)
            self.order.append(kind)
            own = self.passes[kind]
            own.seconds.append(seconds)
            own.requests += served
            own.allocations += _allocations() - held
            if self._memory:
                own.peak = max(own.peak, torch.cuda.max_memory_allocated() - base)
            if self._each:
                print(f"{kind}: {1e3 * seconds:.1f} ms, {served} requests", flush=True)

        def counted(engine: BatchedEngine) -> None:
            launch(engine)
            self.turns += 1
            self.running += len(engine._running)
            self.waiting["generate"] += len(engine._waiting)
            self.waiting["train"] += len(engine._lessons)
            self.waiting["score"] += len(engine._scores)

        BatchedEngine._timed = watched  # type: ignore[method-assign]
        BatchedEngine._launch = counted  # type: ignore[method-assign]

    def _mark(self) -> None:
        """Let a profile show where a pass begins or ends."""
        if self._marks:
            torch.cuda._sleep(1)

    def _wait(self) -> None:
        if self._sync:
            torch.cuda.synchronize()

    @staticmethod
    def _queued(engine: BatchedEngine) -> int:
        return len(engine._waiting) + len(engine._lessons) + len(engine._scores)

    def show(self) -> None:
        """Print the table."""
        cuda = torch.cuda.is_available()
        heads = f"{'pass':<8}  {'count':>5}  {'s in all':>8}  {'median ms':>9}  {'requests':>8}"
        heads += "  allocations" if cuda else ""
        print(f"\n{heads}{'  peak GiB' if self._memory else ''}")
        for kind, own in self.passes.items():
            count, median = len(own.seconds), 1e3 * statistics.median(own.seconds)
            row = f"{kind:<8}  {count:5}  {sum(own.seconds):8.2f}  {median:9.1f}"
            row += f"  {own.requests / count:8.1f}"
            row += f"  {own.allocations:11}" if cuda else ""
            print(f"{row}  {own.peak / 2**30:8.2f}" if self._memory else row)
        if self.turns:
            waits = ", ".join(f"{n / self.turns:.1f} to {kind}" for kind, n in self.waiting.items())
            print(
                f"{self.turns} turns: {self.running / self.turns:.1f} sequences ran in the mean; "
                f"{waits} waited"
            )


def show_kernels(watched: profile, watch: Watch, most: int) -> None:
    """Print the GPU's seconds by kind of pass, and of each kind the kernels that took most."""
    kernels = [e for e in watched.events() or [] if str(e.device_type).endswith("CUDA")]
    kernels.sort(key=lambda e: e.time_range.start)
    seconds = defaultdict[str, Counter[str]](Counter)
    count = defaultdict[str, Counter[str]](Counter)
    marks = 0
    for e in kernels:
        if MARK in e.name:
            marks += 1
            continue
        kind = watch.order[marks // 2] if marks % 2 else "between"
        seconds[kind][e.name] += e.time_range.elapsed_us() / 1e6
        count[kind][e.name] += 1
    for kind, own in seconds.items():
        busy, clock = own.total(), sum(watch.passes[kind].seconds)
        said = f", {clock:.3f} s by the clock, {clock / busy:.2f} times that" if clock else ""
        print(f"\n{kind}: {busy:.3f} s of GPU work{said}")
        for name, spent in own.most_common(most):
            many = count[kind][name]
            print(f"  {spent:8.3f} s  {many:8,} of {1e6 * spent / many:8.1f} us  {name[:90]}")


def _allocations() -> int:
    """How often memory was asked of the driver."""
    if not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_stats()["num_device_alloc"])


def main() -> None:
    """Run a command, and print what its engines did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sync", action="store_true", help="wait for the GPU around each pass")
    parser.add_argument("--each", action="store_true", help="print a line a pass")
    parser.add_argument("--memory", action="store_true", help="what a GPU's passes hold")
    parser.add_argument("--kernels", type=int, metavar="N", help="print so many of a GPU's kernels")
    parser.add_argument("command", help="of fttt, or a script of this folder")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its own")
    options = parser.parse_args()
    if options.kernels and not torch.cuda.is_available():
        parser.error("--kernels needs a GPU")
    watch = Watch(
        sync=options.sync,
        each=options.each,
        memory=options.memory,
        marks=bool(options.kernels),
    )
    watch.install()
    sys.argv = [options.command, *options.words]
    gpu = profile(activities=[ProfilerActivity.CUDA]) if options.kernels else None
    with gpu or nullcontext():
        try:
            if options.command.endswith(".py"):
                sys.path.insert(0, str(HERE))
                runpy.run_path(str(HERE / options.command), run_name="__main__")
            else:
                from fttt.cli import main as fttt

                sys.argv = ["fttt", options.command, *options.words]
                fttt()
        finally:
            watch.show()
    if gpu is not None:
        show_kernels(gpu, watch, options.kernels)


if __name__ == "__main__":
    main()
