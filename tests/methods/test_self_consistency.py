"""The whole budget is drawn at once; a vote decides."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from fttt.methods.self_consistency import (
    SelfConsistency,
    SelfConsistencySettings,
    stays_ahead,
)
from fttt.store import solved_within, vote
from fttt.testing import TinyVerifier, play
from fttt.types import Question, Verdict

METHOD = SelfConsistency(SelfConsistencySettings())


def test_a_right_answer_does_not_stop_the_others() -> None:
    scene = play(METHOD, ["7", "3", "3", "7", "7"], trials=5)
    assert len(scene.trials) == 5
    winner = vote(scene.trials)
    assert winner is not None
    assert winner.extracted == "7"
    at = [solved_within(scene.trials, k, decided_by=METHOD.decided_by) for k in range(1, 6)]
    assert at == [True, True, False, True, True]


def test_a_right_minority_loses() -> None:
    scene = play(METHOD, ["7", "3", "3"], trials=3)
    assert not solved_within(scene.trials, decided_by="vote")


class AllTogether(TinyVerifier):
    """Judges nothing before four answers have come."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = asyncio.Barrier(4)

    async def verify(self, question: Question, completion: str) -> Verdict:
        async with asyncio.timeout(120):
            await self.barrier.wait()
        return await super().verify(question, completion)


def test_all_samples_are_asked_for_before_the_first_is_judged() -> None:
    scene = play(METHOD, lambda *_: "7", trials=4, verifier=AllTogether())
    assert [trial.verdict for trial in scene.trials] == ["correct"] * 4
    assert sorted(trial.generation for trial in scene.trials) == [0, 1, 2, 3]


def test_free_trials_are_drawn_anew_until_enough_answered() -> None:
    scene = play(METHOD, ["none", "7", "none", "3", "7"], trials=3, unanswered="retry")
    assert [t.verdict for t in sorted(scene.trials, key=lambda t: t.trial)] == [
        "unanswered",
        "correct",
        "unanswered",
        "incorrect",
        "correct",
    ]


def test_free_trials_end_at_twice_the_budget_and_one() -> None:
    scene = play(METHOD, lambda *_: "none", trials=3, unanswered="retry")
    assert len(scene.trials) == 7


class Wordy(TinyVerifier):
    """Shows the answer as it was written; its normal form is the number."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        verdict = await super().verify(question, completion)
        return Verdict(verdict.outcome, completion, verdict.detail)


def test_the_normal_form_is_voted_on() -> None:
    scene = play(METHOD, ["is 3", "it's 7", "= 7"], trials=3, verifier=Wordy())
    assert [trial.extracted for trial in scene.trials] == ["3", "7", "7"]
    assert solved_within(scene.trials, decided_by="vote")


def stopping(**settings: Any) -> SelfConsistency:
    return SelfConsistency(SelfConsistencySettings(stop_when_decided=True, **settings))


@pytest.mark.parametrize(
    ("answers", "drawn"),
    [
        ("7777377", 4),  # four of seven
        ("7373377", 7),
        ("77", 1),  # a tie would go to the first
        ("nnnn7nn", 7),
        ("7n7n3777", 7),
        ("3777", 4),
        ("7333", 4),
        ("7733", 2),
    ],
)
def test_it_stops_once_the_rest_cannot_change_the_vote(answers: str, drawn: int) -> None:
    script = ["none" if answer == "n" else answer for answer in answers]
    scene = play(stopping(window=1), script, trials=len(answers))
    assert len(scene.trials) == drawn


def test_a_decided_vote_is_the_vote_of_the_whole_budget() -> None:
    """Over all orders of three answers and none in four samples."""
    for answers in itertools.product(("7", "3", "5", "none"), repeat=4):
        whole = vote(play(METHOD, list(answers), trials=4).trials)
        for window in (1, 3):
            scene = play(stopping(window=window), list(answers), trials=4)
            early = vote(scene.trials)
            assert (early and early.extracted) == (whole and whole.extracted), answers


def test_it_looks_at_the_vote_after_each_window() -> None:
    scene = play(stopping(window=3), ["7"] * 8, trials=8)
    assert len(scene.trials) == 6
    assert [trial.trial for trial in scene.trials] == list(range(6))


def test_a_right_answer_alone_stops_nothing() -> None:
    scene = play(stopping(window=1), ["7", "3", "3", "3", "7"], trials=5)
    assert len(scene.trials) == 4
    assert not solved_within(scene.trials, decided_by="vote")


def test_it_may_stop_where_the_leader_is_likely_to_stay() -> None:
    scene = play(stopping(window=1, confidence=0.95), ["7"] * 32, trials=32)
    assert len(scene.trials) == 4  # 1 - 1/2^5 = 0.97
    scene = play(stopping(window=1, confidence=0.95), ["7", "3"] * 16, trials=32)
    assert len(scene.trials) == 31


def test_the_probability_is_that_of_the_beta_distribution() -> None:
    assert stays_ahead(0, 0) == 0.5
    assert stays_ahead(4, 0) == 1 - 1 / 2**5
    assert stays_ahead(5, 2) == pytest.approx(0.85546875)  # 1 - I(1/2; 6, 3)


def test_free_trials_without_an_answer_do_not_bring_the_end_nearer() -> None:
    script = ["7", "none", "none", "7", "3"]
    scene = play(stopping(window=1), script, trials=3, unanswered="retry")
    assert [trial.extracted for trial in scene.trials] == ["7", None, None, "7"]
