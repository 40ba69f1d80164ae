"""The lines of the plots: accuracy against a budget with its band, and where tokens went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fttt.report.arms import Arm
from fttt.report.outcomes import Axis, trials_by_question
from fttt.report.statistics import mean_intervals

__all__ = ["Curve", "Spending", "curves", "spending"]

GRID_POINTS = 160

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Accuracy of one side against one budget; the arrays share one axis."""

    label: str
    budgets: Floats
    mean: Floats
    low: Floats
    high: Floats
    whole_until: float
    """Past this budget more than 5 % of the questions had run out of trials, unsolved."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Mean tokens a question of one side."""

    label: str
    prompt: float
    generated: float
    trained: float
    correct: float
    """Generated in attempts that were correct; the next three make up the rest."""
    wrong: float
    blank: float
    other: float
    """Generated beside the attempts that were judged: critiques, spare beams."""


def curves(arms: Sequence[Arm], axis: Axis) -> list[Curve]:
    """One curve a side, from its first trial's cost to the largest that it spent."""
    return [_curve(arm, axis) for arm in arms]


def _curve(arm: Arm, axis: Axis) -> Curve:
    costs = np.concatenate([o.costs[axis].ravel() for o in arm.outcomes])
    finite = costs[np.isfinite(costs)]
    if finite.size == 0:
        finite = np.ones(1)
    if axis == "trials":
        top = max(1, int(arm.budget or finite.max()))
        budgets = np.arange(1, top + 1, dtype=np.float64)
    else:
        lowest, highest = max(float(finite.min()), 1e-3), max(float(finite.max()), 2e-3)
        budgets = np.geomspace(lowest, highest, GRID_POINTS)
        budgets[-1] = highest  # the power's rounding must not lose the last trial
    mean, low, high = mean_intervals(arm.values(axis, budgets), len(arm.runs))
    whole_until = float(budgets[-1]) if axis == "trials" and arm.budget else arm.observed(axis)
    return Curve(arm.label, budgets, mean, low, high, whole_until)


def spending(arms: Sequence[Arm]) -> list[Spending]:
    """Where each side's tokens went."""
    return [_spending(arm) for arm in arms]


def _spending(arm: Arm) -> Spending:
    generated = {"correct": 0, "incorrect": 0, "unanswered": 0}
    prompt = trained = other = 0
    for run in arm.runs:
        trials = trials_by_question(run)
        for question_id in arm.ids:
            for trial in trials[question_id]:
                attempt = min(len(trial.token_ids), trial.usage.generated_tokens)
                generated[trial.verdict] += attempt
                other += trial.usage.generated_tokens - attempt
                prompt += trial.usage.prompt_tokens
                trained += trial.usage.trained_tokens
    visits = len(arm.ids) * len(arm.runs)
    return Spending(
        arm.label,
        prompt=prompt / visits,
        generated=(sum(generated.values()) + other) / visits,
        trained=trained / visits,
        correct=generated["correct"] / visits,
        wrong=generated["incorrect"] / visits,
        blank=generated["unanswered"] / visits,
        other=other / visits,
    )
