from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from fttt.report.statistics import (
    difference_interval,
    holm,
    mean_intervals,
    minimum_detectable_difference,
    paired_p_value,
    pass_at_k,
    shared_lattice,
)

ANSWERS = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)
STEPS = st.lists(st.integers(-3, 3), min_size=1, max_size=40)


@given(ANSWERS)
def test_one_seed_gives_scipys_wilson_interval(answers: list[float]) -> None:
    mean, low, high = mean_intervals(answers)
    wilson = stats.binomtest(int(sum(answers)), len(answers)).proportion_ci(method="wilson")
    assert mean[0] == pytest.approx(sum(answers) / len(answers))
    assert low[0] == pytest.approx(wilson.low, abs=1e-12)
    assert high[0] == pytest.approx(wilson.high, abs=1e-12)


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=50),
)
def test_an_interval_contains_its_estimate_and_stays_in_range(rows: list[list[bool]]) -> None:
    values = np.mean(np.array(rows, dtype=float), axis=1)
    mean, low, high = mean_intervals(values, draws=3)
    assert 0 <= low[0] <= mean[0] <= high[0] <= 1
    assert high[0] > low[0]  # a few questions never make sure


def test_seeds_that_agree_add_no_questions() -> None:
    answers = np.array([1.0] * 30 + [0.0] * 70)
    pooled, single = mean_intervals(answers, draws=3), mean_intervals(answers, draws=1)
    assert np.concatenate(pooled) == pytest.approx(np.concatenate(single))


def test_seeds_that_are_independent_narrow_the_interval_as_so_many_questions_would() -> None:
    rng = np.random.default_rng(1)
    values = rng.binomial(4, 0.3, size=2000) / 4
    mean, low, high = (float(x[0]) for x in mean_intervals(values, draws=4))
    wilson = stats.binomtest(round(mean * 8000), 8000).proportion_ci(method="wilson")
    assert high - low == pytest.approx(wilson.high - wilson.low, rel=0.08)


def test_the_pooled_interval_agrees_with_scipys_bootstrap_over_questions() -> None:
    rng = np.random.default_rng(2)
    chances = rng.beta(0.5, 1.5, size=400)
    values = rng.binomial(3, chances) / 3
    _, low, high = mean_intervals(values, draws=3)
    drawn = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=rng
    ).confidence_interval
    assert low[0] == pytest.approx(drawn.low, abs=0.006)
    assert high[0] == pytest.approx(drawn.high, abs=0.006)


@pytest.mark.parametrize(("solvable", "least"), [(0.3, 0.935), (0.06, 0.91)])
def test_the_pooled_interval_covers_the_truth_about_as_often_as_it_says(
    solvable: float, least: float
) -> None:
    rng = np.random.default_rng(3)
    truth = solvable / (solvable + 1.5)  # mean of the questions' chances
    covered = 0
    for _ in range(1000):
        chances = rng.beta(solvable, 1.5, size=150)
        _, low, high = mean_intervals(rng.binomial(3, chances) / 3, draws=3)
        covered += bool(low[0] <= truth <= high[0])
    assert least <= covered / 1000 <= 0.98


def test_each_budget_has_its_own_interval() -> None:
    values_QB = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    mean, low, high = mean_intervals(values_QB)
    assert mean == pytest.approx([1 / 3, 1.0])
    assert low[1] > low[0]
    assert high[1] == 1.0


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one question"):
        mean_intervals([])


@given(st.integers(1, 12), st.data())
def test_pass_at_k_counts_the_draws_that_hold_a_correct_sample(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    draws = list(combinations([True] * c + [False] * (n - c), k))
    exact = Fraction(sum(any(draw) for draw in draws), len(draws))
    assert pass_at_k([n], [c], k)[0] == pytest.approx(float(exact), abs=1e-12)


@given(st.integers(1, 200), st.data())
def test_pass_at_k_grows_with_k_and_with_c(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    curve = [float(pass_at_k([n], [c], k)[0]) for k in range(1, n + 1)]
    assert curve[0] == pytest.approx(c / n)
    assert all(a <= b + 1e-12 for a, b in pairwise(curve))
    assert curve[-1] == pytest.approx(float(c > 0))
    if c < n:
        k = data.draw(st.integers(1, n))
        assert pass_at_k([n], [c], k)[0] <= pass_at_k([n], [c + 1], k)[0] + 1e-12


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(4)
    correct = rng.binomial(10, 0.2, size=200_000)
    estimate = pass_at_k(np.full_like(correct, 10), correct, 4).mean()
    assert estimate == pytest.approx(1 - 0.8**4, abs=0.002)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"samples"):
        pass_at_k([n], [c], k)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=80))
def test_with_one_seed_the_test_is_mcnemars_exact_one(steps: list[int]) -> None:
    table = [[0, steps.count(1)], [steps.count(-1), 0]]
    assert paired_p_value(np.array(steps)) == pytest.approx(
        min(1.0, float(mcnemar(table, exact=True).pvalue)), abs=1e-9
    )


@settings(max_examples=25)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=10))
def test_with_seeds_the_test_is_the_exact_permutation_test(steps: list[int]) -> None:
    scipys = stats.permutation_test(
        (np.array(steps, dtype=float), np.zeros(len(steps))),
        lambda a, b: float(np.sum(a - b)),
        permutation_type="samples",
        vectorized=False,
        n_resamples=np.inf,
    )
    assert paired_p_value(np.array(steps)) == pytest.approx(float(scipys.pvalue), abs=1e-9)


@given(STEPS)
def test_the_test_does_not_care_which_side_comes_first(steps: list[int]) -> None:
    forward, back = np.array(steps), -np.array(steps)
    assert paired_p_value(forward) == pytest.approx(paired_p_value(back))
    assert 0 < paired_p_value(forward) <= 1


@given(STEPS)
def test_a_difference_lies_in_its_interval(steps: list[int]) -> None:
    difference = difference_interval(np.array(steps), seeds=3)
    assert difference.low <= difference.value <= difference.high
    assert difference.value == pytest.approx(sum(steps) / 3 / len(steps))


@pytest.mark.parametrize(
    ("first", "second", "same", "low", "high"),
    [
        (1, 7, 13, -0.517, -0.026),  # Bentur et al. 2009, as in Fagerland et al. 2014, table 7
        (0, 0, 28, -0.121, 0.121),  # z² / (28 + z²)
        (0, 12, 0, -1.0, -0.515),
    ],
)
def test_with_one_seed_the_interval_is_tangos(
    first: int, second: int, same: int, low: float, high: float
) -> None:
    steps = np.repeat([1, -1, 0], [first, second, same])
    found = difference_interval(steps, seeds=1)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


@given(STEPS)
def test_a_difference_is_never_sure(steps: list[int]) -> None:
    difference = difference_interval(np.array(steps), seeds=3)
    turned = difference_interval(-np.array(steps), seeds=3)
    assert -1 <= difference.low < difference.high <= 1
    assert (turned.low, turned.high) == pytest.approx((-difference.high, -difference.low))


def test_seeds_that_agree_add_nothing_to_what_is_known_of_a_difference() -> None:
    steps = np.repeat([1, -1, 0], [9, 3, 28])
    once, thrice = difference_interval(steps, 1), difference_interval(3 * steps, 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_the_difference_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(5)
    steps = rng.choice([-3, -1, 0, 0, 0, 1, 2, 3], size=300)
    ours = difference_interval(steps, seeds=3)
    drawn = stats.bootstrap(
        (steps / 3,), np.mean, n_resamples=10_000, method="percentile", rng=rng
    ).confidence_interval
    assert ours.low == pytest.approx(drawn.low, abs=0.006)
    assert ours.high == pytest.approx(drawn.high, abs=0.006)


def test_differences_are_counted_in_the_steps_of_both_sides() -> None:
    differences = np.array([1 / 3 - 1 / 2, 2 / 3, 0.0])
    assert shared_lattice(differences, math.lcm(2, 3)).tolist() == [-1, 4, 0]
    with pytest.raises(ValueError, match="multiples"):
        shared_lattice([0.2], 3)


@pytest.mark.parametrize(("discordant", "questions"), [(0.1, 300), (0.3, 200), (0.05, 1000)])
def test_the_detectable_difference_is_shown_four_times_in_five(
    discordant: float, questions: int
) -> None:
    half = round(discordant * questions / 2)
    seen = np.array([1] * half + [-1] * half + [0] * (questions - 2 * half))
    delta = minimum_detectable_difference(seen, seeds=1)
    assert delta is not None
    psi = max(discordant, delta)
    rng = np.random.default_rng(6)
    chances = [(psi + delta) / 2, (psi - delta) / 2, 1 - psi]
    shown = 0
    for better, worse, same in rng.multinomial(questions, chances, size=400):
        steps = np.repeat([1, -1, 0], [better, worse, same])
        shown += paired_p_value(steps) < 0.05
    assert 0.70 <= shown / 400 <= 0.87  # the exact test falls a little short of the formula


def test_with_seeds_the_detectable_difference_is_shown_four_times_in_five_too() -> None:
    rng = np.random.default_rng(7)

    def drawn(gain: float) -> np.typing.NDArray[np.int64]:
        chances = rng.beta(0.5, 1.5, size=250)
        better = rng.binomial(3, np.minimum(1, chances + gain))
        return np.asarray(better - rng.binomial(3, chances), dtype=np.int64)

    delta = minimum_detectable_difference(drawn(0.0), seeds=3)
    assert delta is not None
    shown = [paired_p_value(drawn(delta * 1.03)) < 0.05 for _ in range(300)]  # a few are capped
    assert 0.70 <= float(np.mean(shown)) <= 0.90


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=12, max_size=60))
def test_more_questions_and_fewer_tests_show_smaller_differences(steps: list[int]) -> None:
    once = minimum_detectable_difference(np.array(steps), seeds=1)
    twice = minimum_detectable_difference(np.array(steps * 2), seeds=1)
    many = minimum_detectable_difference(np.array(steps), seeds=1, tests=3)
    assert once is not None
    assert twice is not None
    assert twice < once <= 1
    assert many is None or many > once


def test_where_no_question_differed_a_difference_is_made_by_as_many_as_it_needs() -> None:
    """Connor's formula with as large a share of discordant questions as the difference itself."""
    delta = minimum_detectable_difference(np.zeros(100, dtype=np.int64), seeds=1)
    assert delta == pytest.approx(0.0766561, rel=1e-4)
    needed = (1.959964 * delta**0.5 + 0.841621 * (delta - delta**2) ** 0.5) ** 2
    assert needed == pytest.approx(100 * delta**2, rel=1e-4)


def test_too_few_questions_show_nothing_however_large() -> None:
    assert minimum_detectable_difference(np.ones(5, dtype=np.int64), seeds=1) is None
    assert paired_p_value(np.ones(5, dtype=np.int64)) > 0.05
    assert paired_p_value(np.ones(6, dtype=np.int64)) < 0.05


@given(st.lists(st.integers(0, 100), min_size=1, max_size=10))
def test_holm_is_the_librarys_and_never_helps(percents: list[int]) -> None:
    p_values = [n / 100 for n in percents]
    corrected = holm(p_values)
    with mock.patch("gc.collect"):  # which the library calls each time
        assert corrected == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert all(p <= c + 1e-12 for p, c in zip(p_values, corrected, strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
