"""Group-relative policy gradient: advantages within a group of attempts of one question."""

from __future__ import annotations

from fttt.methods import LoRASettings, Method, Session
from fttt.types import Example, Judged, Question

__all__ = ["GroupPolicy"]


class GroupPolicy(Method):
    """Groups of four attempts; each is pushed by its score less the mean of the others (RLOO)."""

    name = "group-policy-example"
    summary = "policy gradient with leave-one-out advantages"
    Settings = LoRASettings

    def __init__(self, settings: LoRASettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as own:
            async for group in session.groups(4):
                judged = await group.attempt(adapter=own)
                if judged[-1].verdict.correct or group.last:
                    return
                advantages = leave_one_out([reward(one) for one in judged])
                await group.train(
                    own,
                    [
                        Example(one.completion, weight=advantage)
                        for one, advantage in zip(judged, advantages, strict=True)
                        if advantage
                    ],
                )


def reward(one: Judged) -> float:
    """The verifier's score, else whether there was an answer."""
    return float(one.verdict.answered) if one.verdict.score is None else one.verdict.score


def leave_one_out(rewards: list[float]) -> list[float]:
    """Each reward less the mean of the others."""
    others = max(1, len(rewards) - 1)
    return [r - (sum(rewards) - r) / others for r in rewards]
