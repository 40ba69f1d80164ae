"""The runs of a folder, followed by one thread for all pages that show them."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fttt.errors import UsageError
from fttt.files import held_files, model_label
from fttt.report.text import ago, count, percent, seconds
from fttt.store import FollowedRun, run_folders

__all__ = ["Watcher"]

_PAUSE = 0.3
"""Seconds between two looks at the runs that may grow."""
_SCAN = 2.0
"""Seconds between two looks for new runs; longer where a look takes long."""
_SLICE = 1 << 20
"""Bytes that are read of a file before anything else may use what was read."""
_MEMORY_EVERY = 5.0
"""Seconds between two looks at the memory of the GPUs."""


class Watcher:
    """Follows every run below a folder.

    Of a finished run only the summary is read until a page looks at it (:meth:`watching`); a run
    that is not finished is read at once, the newest first.
    """

    def __init__(self, folder: Path) -> None:
        """Look for runs once; :meth:`start` goes on.

        Raises:
            UsageError: there is no such folder, or it cannot be read.
        """
        if not folder.is_dir():
            what = "a file" if folder.exists() else "not there"
            raise UsageError(
                f"The folder of runs {str(folder)!r} is {what}; name a folder that holds runs, "
                "or one run, or make a run by `fttt run`."
            )
        if not os.access(folder, os.R_OK | os.X_OK):
            raise UsageError(
                f"The folder of runs {str(folder)!r} cannot be read; fix its permissions."
            )
        self.folder = folder.absolute()  # a page that is called '.' tells nothing
        self.lock = threading.RLock()
        """Held while runs are read on; whoever reads their facts holds it too."""
        self.runs: dict[str, FollowedRun] = {}
        """By a key that is made of the folder's name and stays the same."""
        self.memory = ""
        """Memory in use of this machine's GPUs, in words; empty where there are none."""
        self._broken: dict[Path, str] = {}
        self._watched: Counter[str] = Counter()
        self._end = threading.Event()
        self._next_scan = 0.0
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._follow, self._look_at_memory)
        ]
        self.step()

    @property
    def broken(self) -> list[str]:
        """What is wrong with folders below, a sentence each."""
        return [*self._broken.values(), *(run.broken for run in self.runs.values() if run.broken)]

    def start(self) -> None:
        """Begin to follow the runs."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it."""
        self._end.set()

    @property
    def stopped(self) -> bool:
        """Whether it was ended."""
        return self._end.is_set()

    @contextmanager
    def watching(self, *keys: str) -> Iterator[None]:
        """Read these runs to their end, finished or not, while the block lasts."""
        self._watched.update(keys)
        try:
            yield
        finally:
            self._watched.subtract(keys)

    def step(self) -> bool:
        """Look at everything once and read a slice; return whether more is waiting to be read."""
        now = time.monotonic()
        if now >= self._next_scan:
            self._scan()
            self._next_scan = time.monotonic() + max(_SCAN, 20 * (time.monotonic() - now))
        held = held_files()
        waiting = [run for key, run in list(self.runs.items()) if self._look(key, run, held)]
        if waiting:
            # what a page looks at first, then the latest
            watched = [self.runs.get(key) for key, pages in self._watched.items() if pages > 0]
            first = max(waiting, key=lambda run: (run in watched, run.written))
            with self.lock:
                first.read(_SLICE)
        return bool(waiting)

    def rows(self) -> list[dict[str, Any]]:
        """What the list of runs says of each, the latest first."""
        with self.lock:
            runs = sorted(self.runs.items(), key=lambda pair: -pair[1].written)
            return [self._row(key, run) for key, run in runs]

    def _follow(self) -> None:
        while not self._end.is_set():
            more = self.step()
            self._end.wait(0.005 if more else _PAUSE)

    def _scan(self) -> None:
        found, broken = {}, {}
        for path in run_folders(self.folder):
            key = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
            run = self.runs.get(key)
            try:
                found[key] = FollowedRun(path) if run is None else run
            except UsageError as error:
                broken[path] = str(error)
        with self.lock:
            self.runs, self._broken = found, broken

    def _look(self, key: str, run: FollowedRun, held: frozenset[int] | None) -> bool:
        """Whether a run is to be read on."""
        if run.summary is not None and not self._watched[key]:
            return False
        try:
            with self.lock:
                more = run.look(held)
        except (OSError, UsageError):  # the next look for runs says what became of it
            with self.lock:
                self.runs.pop(key, None)
            return False
        return more and (run.summary is None or self._watched[key] > 0)

    def _row(self, key: str, run: FollowedRun) -> dict[str, Any]:
        reached, finished = run.reached, run.state == "finished"
        left, rate = run.seconds_left, run.tokens_per_second
        return {
            "key": key,
            "name": str(run.path.relative_to(self.folder)) if run.path != self.folder else ".",
            "method": run.run.method,
            "task": run.run.task,
            "model": model_label(run.run.model),
            "seed": run.run.seed,
            "state": run.state,
            "total": reached.questions,
            "done": reached.done,
            "solved": reached.solved,
            "share": percent(reached.solved / reached.questions)
            if finished and reached.done
            else "",
            "trials": count(reached.trials),
            "rate": count(rate) if rate else "",
            "left": "" if left is None else f"at most {seconds(left)}",
            "time": seconds(run.seconds),
            "written": ago(run.written),
            "resume": "" if finished else f"fttt run --resume {shlex.quote(str(run.path))}",
        }

    def _look_at_memory(self) -> None:
        """Ask for the memory in use while a run works; a machine without GPUs is asked once."""
        while not self._end.wait(_MEMORY_EVERY):
            if any(run.state == "running" for run in list(self.runs.values())):
                self.memory = _gpu_memory()
                if not self.memory:
                    return


def _gpu_memory() -> str:
    """``43.1 of 79.6 GiB``, for each GPU of this machine; empty where there are none."""
    command = [
        "nvidia-smi",
        "--query-gpu=memory.used,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        pairs = [[float(n) / 1024 for n in line.split(",")] for line in done.stdout.splitlines()]
        told = [f"{used:.1f} of {total:.1f} GiB" for used, total in pairs]
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    if len(told) < 2:
        return "".join(told)
    return ", ".join(f"GPU {n}: {words}" for n, words in enumerate(told))
