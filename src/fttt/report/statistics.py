"""Intervals, tests and power for answers that are right or wrong on a sample of questions.

The question is the unit of everything here: seeds repeat a question, they do not add one. So every
function takes one value a question (the mean over its seeds, between 0 and 1), and an interval
speaks of questions like these. Arrays carry their axes: ``Q`` questions, ``B`` budgets.
``docs/statistics.md`` says why each choice was made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom, hypergeom, norm
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

__all__ = [
    "FEWEST_QUESTIONS",
    "LEVEL",
    "POWER",
    "Estimate",
    "difference_interval",
    "holm",
    "mean_intervals",
    "minimum_detectable_difference",
    "paired_p_value",
    "pass_at_k",
    "shared_lattice",
]

LEVEL = 0.95
"""Confidence of every interval; its complement is the level of every test."""
POWER = 0.80
"""Probability with which the smallest detectable difference would have been shown."""
FEWEST_QUESTIONS = 6
"""With fewer discordant questions no exact paired test reaches p < 0.05 (2 / 2**5 = 0.0625)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, both as fractions (0.125 is 12.5 %)."""

    value: float
    low: float
    high: float


def mean_intervals(values_QB: ArrayLike, draws: int = 1) -> tuple[Floats, Floats, Floats]:
    """Mean over questions with a Wilson interval, for each budget.

    ``values_QB`` holds one value in [0, 1] a question (and budget); a vector is one budget.
    ``draws`` is the number of seeds (or samples) behind each value. With one draw this is the
    Wilson score interval. With more, the Wilson interval is taken on the effective number of
    questions ``p (1 - p) / (s² / Q)``, bounded by Q (the seeds agree on every question) and
    ``Q · draws`` (they are independent), so that it keeps its cover near 0 and 1, where a
    bootstrap of the questions has no width. Returns mean, low and high, each of shape B.
    """
    values = np.asarray(values_QB, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    questions = values.shape[0]
    if questions == 0:
        raise ValueError("an interval needs at least one question")
    mean = values.mean(axis=0)
    effective = np.full_like(mean, float(questions))
    if draws > 1 and questions > 1:
        variance = values.var(axis=0, ddof=1) / questions
        ratio = np.divide(
            mean * (1 - mean), variance, out=np.full_like(mean, np.inf), where=variance > 0
        )
        spread = (mean > 0) & (mean < 1)
        effective = np.where(
            spread, np.clip(ratio, questions, float(questions * draws)), float(questions)
        )
    low, high = proportion_confint(mean * effective, effective, alpha=1 - LEVEL, method="wilson")
    # Rounding may push a bound past the estimate by one unit in the last place.
    return mean, np.minimum(np.maximum(low, 0.0), mean), np.maximum(np.minimum(high, 1.0), mean)


def pass_at_k(samples_Q: ArrayLike, correct_Q: ArrayLike, k: int) -> Floats:
    """Chance that at least one of ``k`` samples is correct, unbiased, for each question.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, equation 1): the chance that k of the n
    samples, drawn without replacement, hold one of the c correct ones. It is unbiased only where
    n was fixed beforehand: a run that stops at the first correct sample is cut instead.
    """
    samples = np.asarray(samples_Q, dtype=np.int64)
    correct = np.asarray(correct_Q, dtype=np.int64)
    if k < 1 or np.any(samples < k):
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples of every question")
    if np.any((correct < 0) | (correct > samples)):
        raise ValueError("the number of correct samples must lie between 0 and all samples")
    missed: Floats = np.asarray(hypergeom.pmf(0, samples, correct, k), dtype=np.float64)
    return np.clip(1.0 - missed, 0.0, 1.0)


def shared_lattice(differences_Q: ArrayLike, seeds: int) -> NDArray[np.int64]:
    """Differences as whole multiples of ``1 / seeds``, the least common multiple of both sides."""
    scaled = np.asarray(differences_Q, dtype=np.float64) * seeds
    whole = np.rint(scaled)
    if not np.allclose(scaled, whole, atol=1e-6):
        raise ValueError(f"the differences are no multiples of 1/{seeds}")
    return whole.astype(np.int64)


def difference_interval(steps_Q: NDArray[np.int64], seeds: int) -> Estimate:
    """A mean difference over questions with Tango's score interval for paired proportions (1998).

    ``steps_Q`` are the differences in units of ``1 / seeds``. With one seed a side this is Tango's
    interval, which has width where no question is discordant: ``z² / (Q + z²)`` to either side.
    With more it is taken on ``Q Σ|d| / Σd²`` effective questions, of which the shares ``Σ max(d, 0)
    / Q`` and ``Σ max(-d, 0) / Q`` are discordant, so that the variance is that of the questions'
    differences; the number lies between Q (the seeds agree on every question) and Q times the
    seeds.
    """
    questions, differences = len(steps_Q), steps_Q / seeds
    absolute = float(np.abs(differences).sum())
    effective = questions * absolute / float((differences**2).sum()) if absolute else questions
    first = float(differences.clip(min=0).sum()) * effective / questions
    second = float((-differences).clip(min=0).sum()) * effective / questions
    value = float(steps_Q.sum()) / (questions * seeds)
    low = -_highest_difference(second, first, effective)
    high = _highest_difference(first, second, effective)
    return Estimate(value, min(low, value), max(high, value))


def _highest_difference(first: float, second: float, pairs: float) -> float:
    """The upper bound of Tango's interval for the share ``first`` minus the share ``second``.

    Args:
        first: pairs that only the first side solved.
        second: pairs that only the second side solved.
        pairs: all of them.
    """
    z = float(norm.isf((1 - LEVEL) / 2))

    def excess(delta: float) -> float:
        """How far below ``delta`` the observed difference is, beyond ``z`` standard errors."""
        b = (2 * pairs - first + second) * delta - first - second
        c = -second * delta * (1 - delta)
        share = (math.sqrt(max(0.0, b * b - 8 * pairs * c)) - b) / (4 * pairs)
        variance = pairs * (2 * share + delta * (1 - delta))
        return pairs * delta - (first - second) - z * math.sqrt(max(0.0, variance))

    # at the observed difference itself the variance may be 0, which is no bound
    beyond = (first - second) / pairs + 1e-9
    if beyond >= 1 or excess(1.0) <= 0:
        return 1.0
    return float(brentq(excess, beyond, 1.0))


def paired_p_value(steps_Q: NDArray[np.int64]) -> float:
    """Exact two-sided sign-flip test that a mean difference over questions is zero.

    If the two sides are exchangeable, each question's difference is as likely with the other
    sign. The distribution of the flipped sum is built exactly by convolution. With one seed a
    side the differences are -1, 0 and 1 and this is McNemar's exact test.
    """
    sizes, counts = np.unique(np.abs(steps_Q[steps_Q != 0]), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, flips)
    reach = (len(chances) - 1) // 2
    observed = abs(int(steps_Q.sum()))
    extreme = np.abs(np.arange(-reach, reach + 1)) >= observed
    return float(min(1.0, chances[extreme].sum()))


def minimum_detectable_difference(
    steps_Q: NDArray[np.int64], seeds: int, tests: int = 1
) -> float | None:
    """Smallest difference that these questions would have shown with 80 % power, or ``None``.

    Connor's formula for paired proportions (1987), ``Q δ² = (z_α √ψ + z_β √(ψ - δ²))²``, solved
    for δ. ψ is the mean squared difference that was seen (with one seed the share of discordant
    questions), and at least what a mean difference of δ needs if questions differ by as much as
    those that did (with one seed: δ itself). ``tests`` divides α as Holm's first step does.
    ``None`` where no difference whatever could have been shown.
    """
    questions = len(steps_Q)
    alpha = (1 - LEVEL) / tests
    if questions < FEWEST_QUESTIONS or 2.0 ** (1 - questions) >= alpha:
        return None
    differences = np.abs(steps_Q / seeds)
    seen = float(np.mean(differences**2))
    stride = seen / float(np.mean(differences)) if seen else 1.0
    z_alpha, z_beta = float(norm.isf(alpha / 2)), float(norm.ppf(POWER))

    def surplus(delta: float) -> float:
        psi = max(seen, delta * stride, delta * delta)
        needed = z_alpha * math.sqrt(psi) + z_beta * math.sqrt(psi - delta * delta)
        return questions * delta * delta - needed * needed

    if surplus(1.0) <= 0:
        return None
    return float(brentq(surplus, 1e-9, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values to hold against the level together.

    Six lines of our own, since statsmodels' collects garbage at every call, which may take a second
    beside a large report.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for done, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[n]))
        corrected[n] = highest
    return corrected
