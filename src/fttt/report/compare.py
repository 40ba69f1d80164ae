"""Two or more runs on the same questions, held against each other.

Each pair is compared twice: at equal trials and at equal generated tokens. The test is exact and
paired, the interval is a paired score interval, and where nothing was shown the smallest difference
that these questions would have shown is named beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from fttt.errors import UsageError
from fttt.report.outcomes import Axis, pass_curve, trials_by_question
from fttt.report.scores import ScoreComparison, compare_scores
from fttt.report.sides import (
    Side,
    check_distinct,
    check_rules,
    form_sides,
    set_aside,
    shared_questions,
)
from fttt.report.statistics import (
    LEVEL,
    Estimate,
    difference_interval,
    holm,
    mean_intervals,
    minimum_detectable_difference,
    paired_p_value,
    shared_lattice,
)
from fttt.store import Run
from fttt.types import Usage

__all__ = ["Comparison", "PairResult", "SideResult", "compare", "describe", "estimate", "named"]


@dataclass(frozen=True, slots=True)
class SideResult:
    """What one side reached and spent."""

    label: str
    method: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: int
    budget: int | None
    decided_by: str
    accuracy: Estimate
    """With all that the run spent."""
    accuracy_by_seed: tuple[float, ...]
    accuracy_at: dict[int, Estimate]
    """Within 1, 2, 4 … trials."""
    pass_at: dict[int, Estimate]
    """Unbiased pass@k, where the samples allow it."""
    trials_mean: float
    unanswered: float
    """Share of the trials in which no answer was found."""
    tokens: dict[str, float]
    """Mean tokens a question: prompt, generated, trained."""
    seconds: float
    """Mean wall seconds a question; questions that shared a batch overlap."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """One side against another at one budget; every difference is ``first`` minus ``second``."""

    first: str
    second: str
    axis: Axis
    budget: float
    questions: int
    first_accuracy: float
    second_accuracy: float
    only_first: float
    """Questions that only the first side solved (with several seeds: the mean surplus)."""
    only_second: float
    difference: Estimate
    p: float
    p_holm: float
    detectable: float | None
    """Smallest difference that would have been shown with 80 % power; ``None``: none would."""
    ran_out: tuple[float, float]
    """Share of questions, a side, that ran out of trials, unsolved, before this budget."""

    @property
    def shown(self) -> bool:
        """Whether a difference was shown, all tests of its kind taken together."""
        return self.p_holm < 1 - LEVEL


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sides and pairs on one task, model and set of rules."""

    task: str
    model: str
    questions: int
    notes: tuple[str, ...]
    sides: tuple[SideResult, ...]
    pairs: tuple[PairResult, ...]
    scores: ScoreComparison | None = None
    """The best scores, where the verifier gives any."""

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data; fractions stay fractions, and the sides are ``arms``."""
        facts = {"arms" if key == "sides" else key: value for key, value in asdict(self).items()}
        pairs = [{**asdict(pair), "shown": pair.shown} for pair in self.pairs]
        return {**facts, "level": LEVEL, "pairs": pairs}


def compare(
    runs: Sequence[Run],
    *,
    intersection: bool = False,
    allow: Sequence[str] = (),
    baseline: str | None = None,
) -> tuple[Comparison, list[Side]]:
    """Compare every two sides (or each with ``baseline``) on the questions that they share.

    A greedy run whose failures are the others' questions is left out, which the notes say.

    Raises:
        UsageError: fewer than two sides, an unknown baseline, or runs that must not be compared.
    """
    check_distinct(runs)
    _, others, hard = set_aside(runs)
    runs = others if len(others) > 1 else runs
    notes = [*(hard if runs is others else ()), *check_rules(runs, allow)]
    ids, said = shared_questions(runs, intersection)
    sides = form_sides(runs, ids)
    if len(sides) < 2:
        raise UsageError(
            f"There is only one side, {sides[0].label} ({len(runs)} of its seeds), and nothing to "
            "compare it with; name a run of another method or of other settings."
        )
    pairs = _pair_up(sides, baseline)
    results: list[PairResult] = []
    axes: tuple[Axis, ...] = ("trials", "tokens")
    for axis in axes:
        held = [hold(a, b, axis, len(pairs)) for a, b in pairs]
        corrected = holm([pair.p for pair in held])
        results.extend(replace(h, p_holm=p) for h, p in zip(held, corrected, strict=True))
    scored = compare_scores(
        sides, [*pairs, *pairs], [(result.axis, result.budget) for result in results]
    )
    comparison = Comparison(
        runs[0].task,
        runs[0].model,
        len(ids),
        (*notes, *said),
        tuple(describe(side) for side in sides),
        tuple(results),
        scored,
    )
    return comparison, sides


def describe(side: Side) -> SideResult:
    """What one side reached and spent, on its own questions."""
    usage, made, blank = Usage(), 0, 0
    for run in side.runs:
        trials = trials_by_question(run)
        for question_id in side.ids:
            for trial in trials[question_id]:
                usage += trial.usage
                made += 1
                blank += trial.verdict == "unanswered"
    visits = len(side.ids) * len(side.runs)
    reach = side.budget or int(max(o.spent["trials"].max(initial=1) for o in side.outcomes))
    ks = [1 << n for n in range(max(reach, 1).bit_length())]
    if reach not in ks:
        ks.append(reach)
    draws = len(side.runs)
    at_k = side.values("trials", ks)
    unbiased = pass_curve(side.runs, side.ids, ks) if side.runs[0].decided_by == "first" else {}
    return SideResult(
        label=side.label,
        method=side.method,
        runs=tuple(str(run.path) for run in side.runs),
        seeds=side.seeds,
        questions=len(side.ids),
        budget=side.budget,
        decided_by=side.runs[0].decided_by,
        accuracy=estimate(side.values("trials", math.inf)[:, 0], draws),
        accuracy_by_seed=tuple(float(o.solved.mean()) for o in side.outcomes),
        accuracy_at={k: estimate(at_k[:, n], draws) for n, k in enumerate(ks)},
        pass_at={k: estimate(values, draws * reach) for k, values in unbiased.items()},
        trials_mean=made / visits,
        unanswered=blank / made if made else 0.0,
        tokens={
            "prompt": usage.prompt_tokens / visits,
            "generated": usage.generated_tokens / visits,
            "trained": usage.trained_tokens / visits,
        },
        seconds=usage.seconds / visits,
    )


def estimate(values_Q: np.typing.NDArray[np.float64], draws: int) -> Estimate:
    """Mean over questions with its interval."""
    mean, low, high = mean_intervals(values_Q, draws)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]))


def hold(first: Side, second: Side, axis: Axis, tests: int) -> PairResult:
    """Hold two sides against each other at the largest budget that both were given.

    ``tests`` is the number of pairs that will be corrected together; ``p_holm`` is still the
    bare p-value.
    """
    budget = min(_given(first, axis), _given(second, axis))
    a_Q, b_Q = first.values(axis, budget)[:, 0], second.values(axis, budget)[:, 0]
    seeds = math.lcm(len(first.runs), len(second.runs))
    steps_Q = shared_lattice(a_Q - b_Q, seeds)
    p = paired_p_value(steps_Q)
    return PairResult(
        first=first.label,
        second=second.label,
        axis=axis,
        budget=budget,
        questions=len(a_Q),
        first_accuracy=float(a_Q.mean()),
        second_accuracy=float(b_Q.mean()),
        only_first=float(steps_Q[steps_Q > 0].sum()) / seeds,
        only_second=float(-steps_Q[steps_Q < 0].sum()) / seeds,
        difference=difference_interval(steps_Q, seeds),
        p=p,
        p_holm=p,
        detectable=minimum_detectable_difference(steps_Q, seeds, tests),
        ran_out=(_ran_out(first, axis, budget), _ran_out(second, axis, budget)),
    )


def named(sides: Sequence[Side], name: str) -> list[Side]:
    """The sides that a name means: a side's own, or the folder's of one of its runs."""
    return [side for side in sides if name in (side.label, *(run.path.name for run in side.runs))]


def _pair_up(sides: Sequence[Side], baseline: str | None) -> list[tuple[Side, Side]]:
    if baseline is None:
        return list(combinations(sides, 2))
    wanted = named(sides, baseline)
    if len(wanted) != 1:
        raise UsageError(
            f"There is no side {baseline!r} to compare with; the sides are "
            f"{', '.join(repr(side.label) for side in sides)}."
        )
    return [(side, wanted[0]) for side in sides if side is not wanted[0]]


def _given(side: Side, axis: Axis) -> float:
    """The budget that a side was given: its trials, or what nearly all its questions could spend.

    Past the point where a question has run out of trials nobody knows what more tokens would
    have done; up to 5 % of a run's questions may be in that state, and they count as unsolved.
    """
    if axis == "trials" and side.budget is not None:
        return float(side.budget)
    return side.observed(axis)


def _ran_out(side: Side, axis: Axis, budget: float) -> float:
    shares = [np.mean(~o.solved & (o.spent[axis] < budget)) for o in side.outcomes]
    return float(np.mean(shares))
