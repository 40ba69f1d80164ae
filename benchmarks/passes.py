"""Where an engine's seconds go: its passes by kind, and what ran and waited between them.

    python benchmarks/passes.py run policy --task sorting --limit 8 --trials 16
    python benchmarks/passes.py --sync --each engine.py --shape llama-8b --reference 0

Watches any command of fttt, or a script of this folder, in this process. Of each kind of pass it
prints how many there were, their seconds in all and the median, how many requests one served, and
on a GPU how many allocations they asked the driver for; of the turns between them, how many
sequences ran and how many requests waited, in the mean. With `--sync` a GPU is waited for before
and after each pass, so that its seconds are its own; without, they are the host's.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fttt.engine.engine import BatchedEngine

HERE = Path(__file__).resolve().parent


@dataclass
class Passes:
    """Of one kind."""

    seconds: list[float] = field(default_factory=list)
    requests: int = 0
    allocations: int = 0


class Watch:
    """Counts what engines of this process do."""

    def __init__(self, *, sync: bool, each: bool) -> None:
        self._sync = sync and torch.cuda.is_available()
        self._each = each
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
            start = time.perf_counter()
            timed(engine, kind, run)
            self._wait()
            seconds, served = time.perf_counter() - start, before - self._queued(engine)
            own = self.passes[kind]
            own.seconds.append(seconds)
            own.requests += served
            own.allocations += _allocations() - held
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
        print(f"\n{heads}  allocations" if cuda else f"\n{heads}")
        for kind, own in self.passes.items():
            count, median = len(own.seconds), 1e3 * statistics.median(own.seconds)
            row = f"{kind:<8}  {count:5}  {sum(own.seconds):8.2f}  {median:9.1f}"
            row += f"  {own.requests / count:8.1f}"
            print(f"{row}  {own.allocations:11}" if cuda else row)
        if self.turns:
            waits = ", ".join(f"{n / self.turns:.1f} to {kind}" for kind, n in self.waiting.items())
            print(
                f"{self.turns} turns: {self.running / self.turns:.1f} sequences ran in the mean; "
                f"{waits} waited"
            )


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
    parser.add_argument("command", help="of fttt, or a script of this folder")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its own")
    options = parser.parse_args()
    watch = Watch(sync=options.sync, each=options.each)
    watch.install()
    sys.argv = [options.command, *options.words]
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


if __name__ == "__main__":
    main()
