"""What a long job shows while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["LINE_EVERY", "StepProgress", "bar", "clock"]

LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


def clock(seconds: float) -> str:
    """``1:05`` or ``2:10:00``: minutes and seconds, after hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bar(console: Console) -> Progress:
    """A bar between a title and the task's field ``line``, gone at its end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
    return Progress(*columns, console=console, transient=True)


class StepProgress:
    """Shows the steps of a training, its losses and the time left on standard error."""

    def __init__(self, title: str, *, shown: bool = True) -> None:
        """``shown=False`` shows nothing, for all processes but the main one."""
        self.validation: float | None = None
        """The last validation loss, shown beside each step's own."""
        self._title = title
        self._console = Console(stderr=True, quiet=not shown)
        self._bar: Progress | None = None

    def begin(self, step: int, total: int) -> StepProgress:
        """Count from ``step`` to ``total``; :meth:`close` comes last."""
        self._first, self._total = step, total
        self._began = self._said = time.monotonic()
        if self._console.is_terminal:
            self._bar = bar(self._console)
            self._task = self._bar.add_task(self._title, total=total, line="")
            self._bar.start()
        return self

    def stepped(self, step: int, loss: float, rate: str) -> None:
        """Show the state after a step; ``rate`` says how fast it goes, unit included."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=self._line(step, loss, rate))
        elif time.monotonic() - self._said >= LINE_EVERY:
            self._said = time.monotonic()
            self.say(self._line(step, loss, rate))

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(f"{self._title}: {line}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, step: int, loss: float, rate: str) -> str:
        parts = [f"step {step:,}/{self._total:,}", f"loss {loss:.4f}"]
        if self.validation is not None:
            parts.append(f"validation {self.validation:.4f}")
        taken, done = time.monotonic() - self._began, max(step - self._first, 1)
        left = taken / done * (self._total - step)
        return " · ".join([*parts, rate, f"about {clock(left)} left"])
