"""The best score so far, where a verifier says how close an answer came.

For graded tasks, and for problems that have no right answer, this is what a method reached: the
best score of a question within a budget, and the area under it, which also tells how soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, permutation_test

from fttt.report.outcomes import Axis
from fttt.report.sides import Side
from fttt.report.statistics import LEVEL, Estimate, holm

__all__ = [
    "ScoreComparison",
    "ScorePair",
    "ScoreResult",
    "best_scores",
    "compare_scores",
    "score_intervals",
]

RESAMPLES = 9_999
_AT_ONCE = 20_000_000
"""Resampled values in memory at once."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What one side reached, mean over questions."""

    label: str
    best: Estimate
    """The best score within the trials that all sides were granted."""
    area: Estimate
    """Mean over these trials of the best score so far: the area under its curve."""


@dataclass(frozen=True, slots=True)
class ScorePair:
    """One side against another at one budget; the difference is ``first`` minus ``second``."""

    first: str
    second: str
    axis: Axis
    budget: float
    difference: Estimate
    """Of the best scores, mean over questions."""
    p: float
    p_holm: float

    @property
    def shown(self) -> bool:
        """Whether a difference was shown, all tests at this kind of budget taken together."""
        return self.p_holm < 1 - LEVEL


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """All sides and pairs."""

    trials: int
    sides: tuple[ScoreResult, ...]
    pairs: tuple[ScorePair, ...]


def best_scores(side: Side, axis: Axis, budgets_B: ArrayLike) -> Floats:
    """Best score of each question within each budget, mean over the seeds, shape QB.

    A question counts with the score of its first trial before that has ended.
    """
    per_seed = [outcomes.best_within(axis, budgets_B) for outcomes in side.outcomes]
    mean_QB: Floats = np.mean(per_seed, axis=0, dtype=np.float64)
    return mean_QB


def score_intervals(values_QB: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean over questions with a bootstrap interval over them, for each budget: shapes B."""
    mean = values_QB.mean(axis=0)
    if len(values_QB) < 2 or np.all(values_QB == values_QB[0]):
        return mean, mean, mean
    found = bootstrap(
        (values_QB,), np.mean, axis=0, n_resamples=RESAMPLES, method="percentile",
        confidence_level=LEVEL, rng=0, batch=max(1, min(500, _AT_ONCE // values_QB.size)),
    ).confidence_interval  # fmt: skip
    return mean, np.minimum(found.low, mean), np.maximum(found.high, mean)


def compare_scores(
    sides: Sequence[Side], pairs: Sequence[tuple[Side, Side]], budgets: Sequence[tuple[Axis, float]]
) -> ScoreComparison | None:
    """Hold the best scores of sides against each other; ``None`` where a run has no scores.

    Args:
        sides: on the same questions.
        pairs: those to compare.
        budgets: of each pair, in turn, the axes and budgets that it is compared at.
    """
    if not all(outcomes.scored for side in sides for outcomes in side.outcomes):
        return None
    trials = int(min(side.budget or side.observed("trials") for side in sides))
    results = []
    for side in sides:
        values_QB = best_scores(side, "trials", np.arange(1, trials + 1))
        best, area = (_estimate(v) for v in (values_QB[:, -1], values_QB.mean(axis=1)))
        results.append(ScoreResult(side.label, best, area))
    held = [
        _hold(first, second, axis, budget)
        for (first, second), (axis, budget) in zip(pairs, budgets, strict=True)
    ]
    corrected = list(held)
    for axis in ("trials", "tokens"):
        places = [n for n, pair in enumerate(held) if pair.axis == axis]
        for n, p in zip(places, holm([held[n].p for n in places]), strict=True):
            corrected[n] = replace(held[n], p_holm=p)
    return ScoreComparison(trials, tuple(results), tuple(corrected))


def _hold(first: Side, second: Side, axis: Axis, budget: float) -> ScorePair:
    """The paired difference, with a sign-flip test over questions.

    It is exact where 2 to the questions are at most the resamples, else drawn with a fixed seed.
    """
    difference_Q = (best_scores(first, axis, budget) - best_scores(second, axis, budget))[:, 0]
    if np.all(difference_Q == 0):
        p = 1.0
    else:
        p = float(
            permutation_test(
                (difference_Q,), np.mean, permutation_type="samples", vectorized=True,
                n_resamples=RESAMPLES, batch=1000, rng=0,
            ).pvalue
        )  # fmt: skip
    return ScorePair(first.label, second.label, axis, budget, _estimate(difference_Q), p, p)


def _estimate(values_Q: Floats) -> Estimate:
    mean, low, high = score_intervals(values_Q[:, None])
    return Estimate(float(mean[0]), float(low[0]), float(high[0]))
