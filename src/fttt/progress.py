"""Progress of runs and trainings: a bar on a terminal, plain lines elsewhere, and a log file."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from fttt.forecast import Forecast, TimeLeft
from fttt.types import Trial

__all__ = ["LOG", "Progress", "Quiet", "StepProgress", "clock", "note", "silenced", "span"]

LOG = "run.log"
"""The log's name in a run folder."""
_LOG_EVERY = 60.0
"""Seconds between two lines of progress in it."""
_TRACK_EVERY = 2.0
"""Seconds between two sets of figures for a tracker, at least."""

_LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""
_MOST_SCORES = 4
"""Runs whose best scores one line names; of more it says where they lie."""
_WINDOW = 15.0
"""Seconds over which tokens a second are averaged."""
_LONG = 60.0
"""Seconds from which a run is told to be long."""
_EVERY = {True: 0.5, False: _LINE_EVERY}
"""Seconds between two updates, on a terminal and elsewhere."""


_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


def note(text: str) -> None:
    """Print a line on standard error, where that is not silenced."""
    console = Console(stderr=True, quiet=_SILENT.get())
    console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Let what is made within show neither progress nor notes."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def clock(seconds: float) -> str:
    """``1:05`` or ``2:10:00``: minutes and seconds, after hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def span(left: TimeLeft) -> str:
    """``about 5:10``, or ``4:10 to 9:30`` where the time left is known less well."""
    if left.narrow:
        return f"about {clock(left.middle)}"
    return f"{clock(left.low)} to {clock(left.high)}"


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
        self._console = Console(stderr=True, quiet=not shown or _SILENT.get())
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


class _Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...


class _BestScores:
    """The best score so far, mean over the questions of a run that have one, and its tokens."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._best: dict[str, float] = {}
        self._tokens = 0

    def saw(self, trial: Trial) -> None:
        """Count a trial."""
        self._tokens += trial.usage.generated_tokens
        if trial.score is not None:
            best = self._best.get(trial.question_id, trial.score)
            self._best[trial.question_id] = max(best, trial.score)

    def __bool__(self) -> bool:
        """Whether there is a score."""
        return bool(self._best)

    @property
    def mean(self) -> float:
        """Over the questions that have a score."""
        return sum(self._best.values()) / len(self._best)

    def __str__(self) -> str:
        if not self._name:
            return f"{self.mean:.3f}"
        return f"{self._name} {self.mean:.3f} ({self._tokens:,} tokens)"


class Progress:
    """Shows questions solved, tokens/s, trials left and time left on standard error.

    Where trials have scores, the best score of a question too, of each run.
    """

    tracker: _Tracker | None = None
    """Gets the figures too, as questions end."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self._console = console or Console(stderr=True, quiet=_SILENT.get())
        self._logs: Sequence[Path] = ()
        self._engine: _Engine | None = None
        self._losses: list[float] = []
        self._began = self._tracked = 0.0
        self._begin(Forecast(0, 0), 0)

    def note(self, text: str) -> None:
        """Print a line once, and log it where there is a log."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        self._log(text)

    def trial_ended(self, trial: Trial, run: int = 0) -> None:
        """Count a trial of the run of this number."""
        self._scores[run].saw(trial)
        self._trials += 1
        self._forecast.trial_ended(trial)
        if trial.loss is not None:
            self._losses.append(trial.loss)
        if self._trials == self._forecast.enough:
            self._say_time()

    def question_ended(self, *, solved: bool, spared: int) -> None:
        """Count a question; ``spared`` trials of its budget were not needed."""
        self._ended += 1
        self._solved += solved
        self._spared += spared
        self._forecast.stops = self._forecast.stops or (solved and spared > 0)
        self._track(_TRACK_EVERY)

    @asynccontextmanager
    async def watching(
        self,
        engine: _Engine,
        forecast: Forecast,
        trials: int,
        *,
        folders: Sequence[Path] = (),
        names: Sequence[str] = (),
        past: Sequence[Sequence[Trial]] = (),
    ) -> AsyncIterator[None]:
        """Show the progress of a run, and log it.

        Args:
            engine: says how many tokens it has generated.
            forecast: of the questions that are owed.
            trials: that they may need in all; 0 where trials are not the budget.
            folders: of the runs, whose logs get a line now and then.
            names: of the runs, where there are several.
            past: trials of each run that an earlier process has made; only their scores count.
        """
        self._begin(forecast, trials, names)
        for scores, made in zip(self._scores, past, strict=False):
            for trial in made:
                scores.saw(trial)
        self._engine = engine
        self._logs = [folder / LOG for folder in folders]
        self._log(f"began: {forecast.questions:,} questions, at most {trials:,} trials")
        jobs = [asyncio.create_task(job) for job in (self._show(engine), self._keep_log(engine))]
        try:
            yield
            self._log(f"ended: {self.line(0.0)}")
        except BaseException as error:
            why = str(error) or type(error).__name__
            self._log(f"stopped: {why}")
            self._log(self.line(0.0))
            raise
        finally:
            self._track()
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            self._logs = ()

    def line(self, tokens_per_second: float) -> str:
        """Counts, speed and time left in one line."""
        parts = [
            f"{self._ended}/{self._questions} questions",
            f"{self._solved} solved",
            f"{tokens_per_second:,.0f} tokens/s",
        ]
        scores = [one for one in self._scores if one]
        if len(scores) > _MOST_SCORES:
            means = [one.mean for one in scores]
            within = f"{min(means):.3f} to {max(means):.3f}"
            parts.append(f"best score {within} in {len(scores)} runs")
        elif scores:
            parts.append(f"best score {', '.join(map(str, scores))}")
        if self._total:
            left = max(0, self._total - self._trials - self._spared)
            parts.append(f"{left:,} trial{'s' if left != 1 else ''} left")
            time_left = self._time_left()
            if time_left is not None:
                parts.append(f"{span(time_left)} left")
        return " · ".join(parts)

    def _time_left(self) -> TimeLeft | None:
        left = max(0, self._total - self._trials - self._spared)
        return self._forecast.time_left(time.monotonic() - self._began, left) if left else None

    def _say_time(self) -> None:
        """Tell once how long a long run will take, as its first trials went."""
        left = self._time_left()
        if left is not None and left.high >= _LONG:
            self.note(f"{span(left)} left, as the first trials went".capitalize())

    def _log(self, text: str) -> None:
        """Add a line with the time to the logs; a full disk is the journal's matter."""
        if not self._logs:
            return
        line = f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n"
        for path in self._logs:
            with suppress(OSError), path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(line)

    def _track(self, least: float = 0.0) -> None:
        """Hand figures to the tracker, where the last ones are ``least`` seconds old."""
        now = time.monotonic()
        if self.tracker is None or self._engine is None or now - self._tracked < least:
            return
        self._tracked, losses = now, list(self._losses)
        self._losses.clear()
        values: dict[str, float] = {
            "questions": self._ended,
            "solved": self._solved,
            "accuracy": self._solved / max(1, self._ended),
            "generated_tokens": self._engine.generated_tokens,
            "seconds": now - self._began,
        }
        if losses:
            values["loss"] = sum(losses) / len(losses)
        self.tracker.log(values, self._trials)

    async def _keep_log(self, engine: _Engine) -> None:
        rate = _Rate(engine)
        while True:
            await asyncio.sleep(_LOG_EVERY)
            self._log(self.line(rate.look()))

    def _begin(self, forecast: Forecast, trials: int, names: Sequence[str] = ()) -> None:
        self._scores = [_BestScores(name) for name in names or [""]]
        self._forecast, self._total = forecast, trials
        self._questions = forecast.questions
        self._ended = self._solved = self._trials = self._spared = 0
        self._losses.clear()
        self._tracked = 0.0
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
