"""How a training comes along: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from fttt.finetune.plan import processes
from fttt.finetune.trainer import SolutionTrainer

__all__ = ["EarlyStop", "Progress"]

_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class EarlyStop(TrainerCallback):
    """Stops once so many validations have not lowered the loss; each one is saved."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has compared the validation loss with the best one before it saves."""
        since = state.global_step - (state.best_global_step or 0)
        if since >= self._patience * args.eval_steps:
            control.should_training_stop = True


class Progress(TrainerCallback):
    """Shows step, losses, tokens/s and the time left on standard error."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.trainer: SolutionTrainer | None = None
        """Set once it is made."""
        self._title = title
        self._console = console or Console(stderr=True)
        self._bar: Bar | None = None
        self._task: Any = None
        self._began = self._shown = time.monotonic()
        self._first_step = self._first_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to show."""
        assert self.trainer is not None
        self._began = self._shown = time.monotonic()
        self._first_step, self._first_tokens = state.global_step, self.trainer.counts.tokens
        if self._console.is_terminal and state.is_world_process_zero:
            columns = (
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}")
            )  # fmt: skip
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self._title, total=state.max_steps, line="")
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show one step more."""
        if not state.is_world_process_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, line=self.line(state))
        elif time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            self.say(self.line(state))

    def say(self, what: str) -> None:
        """Print a line, where this is the first process."""
        if processes()[0] == 0:
            self._console.print(f"{self._title}: {what}", highlight=False, soft_wrap=True)

    def line(self, state: Any) -> str:
        """The state in one line."""
        assert self.trainer is not None
        taken = time.monotonic() - self._began
        done = state.global_step - self._first_step
        rate = (self.trainer.counts.tokens - self._first_tokens) / max(taken, 1e-9)
        parts = [
            f"step {state.global_step:,}/{state.max_steps:,}",
            f"loss {self.trainer.last_loss:.4f}",
        ]
        if self.trainer.validation_loss is not None:
            parts.append(f"validation {self.trainer.validation_loss:.4f}")
        parts.append(f"{rate:,.0f} tokens/s")
        left = taken * (state.max_steps - state.global_step) / max(done, 1)
        parts.append(f"about {_clock(left)} left")
        return " · ".join(parts)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
