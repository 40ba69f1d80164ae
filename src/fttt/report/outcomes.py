"""What a run did, as arrays over its questions: right or wrong after every trial, at what cost.

One run holds its whole curve: accuracy against trials, generated tokens and seconds is cut from
the same trials, and no run is made again for a smaller budget. Arrays carry their axes: ``Q``
questions, ``T`` trials, ``B`` budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fttt.report.statistics import pass_at_k
from fttt.store import DecidedBy, Run, spent, vote
from fttt.types import Trial

__all__ = ["AXES", "Axis", "Outcomes", "pass_curve", "trials_by_question"]

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

    @classmethod
    def of(cls, run: Run) -> Outcomes:
        """Read a run's trials once, under the run's own rules of counting and deciding."""
        rows = [record.trials for record in run.records]
        width = max((len(trials) for trials in rows), default=0) or 1
        costs = {axis: np.full((len(rows), width), np.inf) for axis in AXES}
        totals = {axis: np.zeros(len(rows)) for axis in AXES}
        right = np.zeros((len(rows), width), dtype=np.bool_)
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
        return cls(tuple(r.question.id for r in run.records), costs, right, totals)

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

    def at(self, ids: Sequence[str]) -> Outcomes:
        """The same for these questions only, in this order."""
        place = {question_id: i for i, question_id in enumerate(self.ids)}
        chosen = np.array([place[question_id] for question_id in ids], dtype=np.int64)
        return Outcomes(
            tuple(ids),
            {axis: values[chosen] for axis, values in self.costs.items()},
            self.right[chosen],
            {axis: values[chosen] for axis, values in self.spent.items()},
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

    The samples of several seeds are pooled. It holds for runs that went on after a correct
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
