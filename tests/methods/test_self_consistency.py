"""The whole budget is drawn at once; a vote decides."""

from __future__ import annotations

import asyncio

from fttt.methods.base import MethodSettings
from fttt.methods.self_consistency import SelfConsistency
from fttt.store import solved_within, vote
from fttt.testing import TinyVerifier, play
from fttt.types import Question, Verdict

METHOD = SelfConsistency(MethodSettings())


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
        async with asyncio.timeout(20):
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
