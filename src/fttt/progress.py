"""Progress of runs and trainings: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from fttt.types import Trial

__all__ = ["Progress", "Quiet", "StepProgress", "clock"]

_LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""
_WINDOW = 15.0
"""Seconds over which tokens a second are averaged."""
_EVERY = {True: 0.5, False: _LINE_EVERY}
"""Seconds between two updates, on a terminal and elsewhere."""


def clock(seconds: float) -> str:
    """``1:05`` or ``2:10:00``: minutes and seconds, after hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bar(console: Console) -> Bar:
    """A bar between a title and the task's field ``line``, gone at its end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
    return Bar(*columns, console=console, transient=True)


class StepProgress:
    """Shows the steps of a training, its losses and the time left on standard error."""

    def __init__(self, title: str, *, shown: bool = True) -> None:
        """``shown=False`` shows nothing, for all processes but the main one."""
        self.validation: float | None = None
        """The last validation loss, shown beside each step's own."""
        self._title = title
        self._console = Console(stderr=True, quiet=not shown)
        self._shown: Bar | None = None

    def begin(self, step: int, total: int) -> StepProgress:
        """Count from ``step`` to ``total``; :meth:`close` comes last."""
        self._first, self._total = step, total
        self._began = self._said = time.monotonic()
        if self._console.is_terminal:
            self._shown = _bar(self._console)
            self._task = self._shown.add_task(self._title, total=total, line="")
            self._shown.start()
        return self

    def stepped(self, step: int, loss: float, rate: str) -> None:
        """Show the state after a step; ``rate`` is the speed with its unit."""
        if self._shown is not None:
            self._shown.update(self._task, completed=step, line=self._line(step, loss, rate))
        elif time.monotonic() - self._said >= _LINE_EVERY:
            self._said = time.monotonic()
            self.say(self._line(step, loss, rate))

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(f"{self._title}: {line}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def _line(self, step: int, loss: float, rate: str) -> str:
        parts = [f"step {step:,}/{self._total:,}", f"loss {loss:.4f}"]
        if self.validation is not None:
            parts.append(f"validation {self.validation:.4f}")
        taken, done = time.monotonic() - self._began, max(step - self._first, 1)
        left = taken / done * (self._total - step)
        return " · ".join([*parts, rate, f"about {clock(left)} left"])


class _Engine(Protocol):
    @property
    def generated_tokens(self) -> int: ...


class Progress:
    """Shows questions solved, tokens/s, trials left and time left on standard error."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self._console = console or Console(stderr=True)
        self._begin(0, 0)

    def note(self, text: str) -> None:
        """Print a line once, before the work begins."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def trial_ended(self, trial: Trial) -> None:
        """Count a trial."""
        self._trials += 1

    def question_ended(self, *, solved: bool, spared: int) -> None:
        """Count a question; ``spared`` trials of its budget were not needed."""
        self._ended += 1
        self._solved += solved
        self._spared += spared

    @asynccontextmanager
    async def watching(self, engine: _Engine, questions: int, trials: int) -> AsyncIterator[None]:
        """Show the progress of ``questions`` questions with ``trials`` trials in all."""
        self._begin(questions, trials)
        show = asyncio.create_task(self._show(engine))
        try:
            yield
        finally:
            show.cancel()
            await asyncio.gather(show, return_exceptions=True)

    def line(self, tokens_per_second: float) -> str:
        """Counts, speed and time left in one line."""
        parts = [
            f"{self._ended}/{self._questions} questions",
            f"{self._solved} solved",
            f"{tokens_per_second:,.0f} tokens/s",
        ]
        if self._total:
            left = max(0, self._total - self._trials - self._spared)
            parts.append(f"{left:,} trials left")
            done = self._total - left
            if done and left:
                seconds = (time.monotonic() - self._began) * left / done
                parts.append(f"about {clock(seconds)} left")
        return " · ".join(parts)

    def _begin(self, questions: int, trials: int) -> None:
        self._questions, self._total = questions, trials
        self._ended = self._solved = self._trials = self._spared = 0
        self._began = time.monotonic()

    async def _show(self, engine: _Engine) -> None:
        rate = _Rate(engine)
        live = self._console.is_terminal
        if not live:
            while True:
                await asyncio.sleep(_EVERY[live])
                line = f"{self.title}: {self.line(rate.look())}"
                self._console.print(line, highlight=False, soft_wrap=True)
        with _bar(self._console) as shown:
            task = shown.add_task(self.title, total=max(1, self._total or self._questions), line="")
            while True:
                done = self._trials + self._spared if self._total else self._ended
                shown.update(task, completed=done, line=self.line(rate.look()))
                await asyncio.sleep(_EVERY[live])


class Quiet(Progress):
    """Shows nothing."""

    def __init__(self) -> None:
        super().__init__("", Console(quiet=True))


class _Rate:
    """Tokens a second over the last seconds."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._looks = deque([(time.monotonic(), engine.generated_tokens)])

    def look(self) -> float:
        now = time.monotonic()
        self._looks.append((now, self._engine.generated_tokens))
        while len(self._looks) > 2 and now - self._looks[0][0] > _WINDOW:
            self._looks.popleft()
        (before, old), (_, new) = self._looks[0], self._looks[-1]
        return (new - old) / (now - before) if now > before else 0.0
