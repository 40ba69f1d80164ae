"""What the trials of a question come to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from fttt.store import solved_within, spent, vote, wilson
from fttt.store.outcome import summarize
from fttt.types import Question, Record, Trial, Usage


def trials(*verdicts: str, extracted: str = "") -> list[Trial]:
    words = extracted.split() or ["1"] * len(verdicts)
    return [
        Trial("q", n, n, "", (), "stop", None if w == "-" else w, v, "", None, Usage())  # type: ignore[arg-type]
        for n, (v, w) in enumerate(zip(verdicts, words, strict=True))
    ]


def test_budget_is_spent_by_each_trial_or_by_answers_only() -> None:
    some = trials("unanswered", "incorrect", "unanswered", "correct")
    assert spent(some) == [1, 2, 3, 4]
    assert spent(some, "retry") == [0, 1, 1, 2]
    assert not solved_within(some, 3)
    assert solved_within(some, 4)
    assert solved_within(some, 2, unanswered="retry")
    assert not solved_within([])


def test_a_vote_is_decided_by_its_winner() -> None:
    some = trials(
        "incorrect", "correct", "correct", "unanswered", "incorrect", extracted="3 4 4 - 3"
    )
    assert [solved_within(some, k, decided_by="vote") for k in range(1, 6)] == [
        False,
        False,  # as many votes: the first wins
        True,
        True,
        False,
    ]
    winner = vote(some[:3])
    assert winner is not None
    assert winner.trial == 1
    assert vote(trials("unanswered", extracted="-")) is None
    assert vote(trials("unanswered", extracted="4")) is None  # whatever was read in it


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_equals_statsmodels(successes: int, total: int) -> None:
    successes = min(successes, total)
    low, high = proportion_confint(successes, total, method="wilson")
    assert wilson(successes, total) == pytest.approx((low, high), abs=1e-12)


def test_accuracy_is_given_at_the_whole_budget_too() -> None:
    third = tuple(trials("incorrect", "incorrect", "correct"))
    record = Record(Question("q", "?"), third, Usage())
    summary = summarize(
        [record], head={}, budget=3, decided_by="first", unanswered="count", seconds=1.0
    )
    assert summary["accuracy_at"] == {"1": 0.0, "2": 0.0, "3": 1.0}


def test_no_question_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.lists(st.sampled_from(["correct", "incorrect", "unanswered"]), max_size=12))
def test_more_budget_never_unsolves_the_first_rule(verdicts: list[str]) -> None:
    some = trials(*verdicts)
    for rule in ("count", "retry"):
        solved = [solved_within(some, k, unanswered=rule) for k in range(14)]  # type: ignore[arg-type]
        assert solved == sorted(solved)
        assert solved[-1] == ("correct" in verdicts)
