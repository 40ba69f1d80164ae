"""What a training shows while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["Watch"]

_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class Watch:
    """Shows step, loss and time left on standard error."""

    def __init__(self, title: str, *, shown: bool = True) -> None:
        """``shown=False`` shows nothing, for all processes but the main one."""
        self._title = title
        self._console = Console(stderr=True, quiet=not shown)
        self._bar: Progress | None = None
        self._validation: float | None = None

    def begin(self, step: int, total: int) -> Watch:
        """Count from ``step`` to ``total``."""
        self._first, self._step, self._total = step, step, total
        self._began = self._said = time.monotonic()
        return self

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[line]}"),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self._title, total=self._total, line="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(f"{self._title}: {line}", highlight=False, soft_wrap=True)

    def stepped(self, step: int, loss: float, examples_per_second: float) -> None:
        """Show the state after a step."""
        self._step = step
        line = f"step {step}/{self._total} · loss {loss:.4f}"
        if self._validation is not None:
            line += f" · validation {self._validation:.4f}"
        line += f" · {examples_per_second:.1f} examples/s · about {self._left()} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=line)
        elif time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            self.say(line)

    def validated(self, step: int, loss: float) -> None:
        """Show a validation loss."""
        self._validation = loss
        self.say(f"step {step}/{self._total} · validation loss {loss:.4f}")

    def _left(self) -> str:
        done = self._step - self._first
        seconds = (time.monotonic() - self._began) / done * (self._total - self._step)
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
