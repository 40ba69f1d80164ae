"""A run as it stood when each of its questions had had fewer trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fttt.errors import UsageError
from fttt.store import Run, spent
from fttt.types import Record, Trial

__all__ = ["ShorterRun", "shorten"]


@dataclass(frozen=True)
class ShorterRun(Run):
    """The first ``granted`` trials of each question, counted by the run's own rule.

    Trials do not depend on how many more will come, so this is the run that a smaller budget would
    have made; but a search as wide as its budget is cut to its best beams. A run that was cut off
    is whole here where every question has had so many.
    """

    granted: int

    @property
    def trial_budget(self) -> int | None:
        return self.granted

    @property
    def finished(self) -> bool:
        return not self.owed

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(t for record in self._whole.records for t in self._first(record))

    @cached_property
    def owed(self) -> tuple[str, ...]:
        before = set(self._whole.owed)
        return tuple(
            record.question.id
            for record in self._whole.records
            if record.question.id in before
            and not (record.solved and self.decided_by == "first")
            and self._spent(record)[-1:] < [self.granted]
        )

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        return self.summarize()

    @cached_property
    def _whole(self) -> Run:
        return Run(self.path, self.config, self.environment, self.questions)

    def _spent(self, record: Record) -> list[int]:
        return spent(record.trials, self.unanswered)

    def _first(self, record: Record) -> list[Trial]:
        costs = zip(record.trials, self._spent(record), strict=True)
        return [trial for trial, cost in costs if cost <= self.granted]


def shorten(runs: Sequence[Run], trials: int | None) -> Sequence[Run]:
    """The runs as they stood after ``trials`` trials a question; ``None`` leaves them as they are.

    Raises:
        UsageError: a run was granted fewer, or had another budget than trials.
    """
    if trials is None:
        return runs
    for run in runs:
        budget = run.trial_budget
        if run.method != "greedy" and (budget is None or budget < trials):
            granted = "another budget than trials" if budget is None else f"{budget} trials"
            raise UsageError(
                f"The run {str(run.path)!r} was given {granted} a question, so it cannot be "
                f"looked at after {trials}; name a smaller --trials, or leave it away."
            )
    return [
        run
        if run.method == "greedy"
        else ShorterRun(run.path, run.config, run.environment, run.questions, trials)
        for run in runs
    ]
