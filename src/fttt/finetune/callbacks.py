"""What a training does beside its steps: it shows where it is, and it may stop early."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from fttt.finetune.trainer import SolutionTrainer
from fttt.progress import StepProgress

__all__ = ["EarlyStop", "ShowSteps", "has_stopped"]


def has_stopped(state: Any, patience: int | None) -> bool:
    """Whether so many validations up to a ``TrainerState`` have not lowered the loss."""
    if patience is None:
        return False
    since: int = state.global_step - (state.best_global_step or 0)
    return since >= patience * int(state.eval_steps)


class EarlyStop(TrainerCallback):
    """Stops once so many validations have not lowered the loss; each one is saved."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has compared the validation loss with the best one before it saves."""
        control.should_training_stop |= has_stopped(state, self._patience)


class ShowSteps(TrainerCallback):
    """Shows step, losses, tokens/s and the time left."""

    def __init__(self, progress: StepProgress) -> None:
        self.trainer: SolutionTrainer | None = None
        """Set once it is made."""
        self._progress = progress
        self._began = time.monotonic()
        self._first_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to show."""
        assert self.trainer is not None
        self._began, self._first_tokens = time.monotonic(), self.trainer.counts.tokens
        self._progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show one step more."""
        trainer = self.trainer
        assert trainer is not None
        taken = max(time.monotonic() - self._began, 1e-9)
        rate = (trainer.counts.tokens - self._first_tokens) / taken
        self._progress.validation = trainer.validation_loss
        self._progress.stepped(state.global_step, trainer.last_loss, f"{rate:,.0f} tokens/s")
