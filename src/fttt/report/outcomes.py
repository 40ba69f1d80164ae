"""What runs reached within a budget: right or wrong after every trial, and at what cost.

One run holds its whole curve: accuracy against trials, generated tokens and seconds is cut from
the same trials, and no run is made again for a smaller budget. Arrays carry their axes: ``Q``
questions, ``T`` trials, ``B`` budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fttt.errors import UsageError
from fttt.report.statistics import pass_at_k
from fttt.store import DecidedBy, Run, spent, vote
from fttt.types import Record, Trial

__all__ = [
    "AXES",
    "Axis",
    "Outcomes",
    "TruncatedRun",
    "pass_curve",
    "trials_by_question",
    "truncate",
]

Axis = Literal["trials", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("trials", "tokens", "seconds")
"""What a budget may be counted in: the ledger's trials, generated tokens, wall seconds."""

Floats = NDArray[np.float64]


def trials_by_question(run: Run) -> dict[str, tuple[Trial, ...]]:
    """The trials of each question of a run, in order; empty where none was made."""
    return {record.question.id: record.trials for record in run.records}


@dataclass(frozen=True)
class Outcomes:
    """The state of each question of one run after each of its trials."""

    ids: tuple[str, ...]
    costs: Mapping[Axis, Floats]
    """Shape QT: all that was spent up to and with a trial; infinite past the last one."""
    right: NDArray[np.bool_]
    """Shape QT: whether the question counted as solved after that trial; the last state is kept."""
    spent: Mapping[Axis, Floats]
    """Shape Q: all that was spent on the question."""
    best: Floats
    """Shape QT: the best score up to and with that trial; infinitely low where none has one."""

    @classmethod
    def of(cls, run: Run) -> Outcomes:
        """Read a run's trials once, under the run's own rules of counting and deciding."""
        rows = [record.trials for record in run.records]
        width = max((len(trials) for trials in rows), default=0) or 1
        costs = {axis: np.full((len(rows), width), np.inf) for axis in AXES}
        totals = {axis: np.zeros(len(rows)) for axis in AXES}
        right = np.zeros((len(rows), width), dtype=np.bool_)
        best = np.full((len(rows), width), -np.inf)
        for q, trials in enumerate(rows):
            if not trials:
                continue
            ledger: dict[Axis, Floats] = {
                "trials": np.array(spent(trials, run.unanswered), dtype=np.float64),
                "tokens": np.cumsum([float(t.usage.generated_tokens) for t in trials]),
                "seconds": np.cumsum([t.usage.seconds for t in trials]),
            }
            for axis, row in ledger.items():
                costs[axis][q, : len(row)] = row
                totals[axis][q] = row[-1]
            states = _states(trials, run.decided_by)
            right[q, : len(states)] = states
            right[q, len(states) :] = states[-1]
            scores = [-np.inf if t.score is None else t.score for t in trials]
            best[q, : len(scores)] = scores
        best = np.maximum.accumulate(best, axis=1)
        return cls(tuple(r.question.id for r in run.records), costs, right, totals, best)

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Which questions were solved in the end."""
        return self.right[:, -1]

    def within(self, axis: Axis, budgets_B: ArrayLike) -> Floats:
        """1 where a question is solved within a budget and 0 elsewhere, shape QB."""
        budgets = np.atleast_1d(np.asarray(budgets_B, dtype=np.float64))
        values = np.zeros((len(self.ids), len(budgets)))
        rows = np.arange(len(self.ids))
        for b, budget in enumerate(budgets):
            made = (self.costs[axis] <= budget).sum(axis=1)
            values[:, b] = (made > 0) & self.right[rows, np.maximum(made - 1, 0)]
        return values

    @property
    def scored(self) -> bool:
        """Whether every question's first trial has a score."""
        return bool(np.all(np.isfinite(self.best[:, 0])))

    def best_within(self, axis: Axis, budgets_B: ArrayLike) -> Floats:
        """The best score of each question within each budget, at least its first, shape QB."""
        budgets = np.atleast_1d(np.asarray(budgets_B, dtype=np.float64))
        made_QB = (self.costs[axis][:, :, None] <= budgets).sum(axis=1)
        return np.take_along_axis(self.best, np.maximum(made_QB - 1, 0), axis=1)

    def at(self, ids: Sequence[str]) -> Outcomes:
        """The same for these questions only, in this order."""
        place = {question_id: i for i, question_id in enumerate(self.ids)}
        chosen = np.array([place[question_id] for question_id in ids], dtype=np.int64)
        return Outcomes(
            tuple(ids),
            {axis: values[chosen] for axis, values in self.costs.items()},
            self.right[chosen],
            {axis: values[chosen] for axis, values in self.spent.items()},
            self.best[chosen],
        )


def _states(trials: Sequence[Trial], decided_by: DecidedBy) -> list[bool]:
    """Whether a question counts as solved after each of its trials."""
    if decided_by == "vote":
        winners = (vote(trials[: n + 1]) for n in range(len(trials)))
        return [winner is not None and winner.verdict == "correct" for winner in winners]
    solved = False
    return [solved := solved or trial.verdict == "correct" for trial in trials]


def pass_curve(runs: Sequence[Run], ids: Sequence[str], ks: Sequence[int]) -> dict[int, Floats]:
    """Unbiased pass@k of each question, for runs of independent samples; empty where not so.

    The samples of several seeds are pooled. It holds for runs that continued after a correct
    sample. A run that stops at its first correct sample is left out: there the share solved
    within k trials is already unbiased, and Chen's estimator, which takes the number of samples
    as fixed, would not be.
    """
    samples = np.zeros(len(ids), dtype=np.int64)
    correct = np.zeros(len(ids), dtype=np.int64)
    for run in runs:
        trials = trials_by_question(run)
        verdicts = [[t.verdict == "correct" for t in trials[i]] for i in ids]
        if not any(any(row[:-1]) for row in verdicts):
            return {}
        samples += np.array([len(row) for row in verdicts])
        correct += np.array([sum(row) for row in verdicts])
    if samples.min() != samples.max():
        return {}
    return {k: pass_at_k(samples, correct, k) for k in ks if k <= samples[0]}


@dataclass(frozen=True)
class TruncatedRun(Run):
    """A run as it stood after ``granted`` trials of each question, counted by its own rule.

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
    def lost(self) -> tuple[str, ...]:
        return self._whole.lost

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


def truncate(runs: Sequence[Run], trials: int | None) -> Sequence[Run]:
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
        else TruncatedRun(run.path, run.config, run.environment, run.questions, trials)
        for run in runs
    ]
