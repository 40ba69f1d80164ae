"""A vote among independent samples (Wang et al. 2023, arXiv 2203.11171)."""

from __future__ import annotations

from math import comb

from pydantic import Field

from fttt.methods.base import MethodSettings, Session
from fttt.methods.sample import Sample
from fttt.types import Question

__all__ = ["SelfConsistency", "SelfConsistencySettings", "stays_ahead"]


class SelfConsistencySettings(MethodSettings):
    """Settings of ``self-consistency``."""

    stop_when_decided: bool = Field(
        False, description="stop once the samples that are left cannot change the vote"
    )
    confidence: float = Field(
        1.0,
        gt=0.5,
        le=1.0,
        description="with stop_when_decided: stop as soon as the leading answer would stay ahead "
        "with this probability (1: only when it is certain)",
    )
    window: int = Field(
        4, ge=1, description="with stop_when_decided: samples between two looks at the vote"
    )


class SelfConsistency(Sample):
    """Draw the whole budget at once; the most frequent answer is the method's answer.

    The verdict on that answer decides, and nothing else does: no sample stops the others. Each
    sample's own verdict is written down too, so that one run tells the accuracy of the vote at
    every smaller budget. With ``stop_when_decided`` samples are drawn a window at a time, and the
    rest of the budget is saved once the vote is decided.
    """

    name = "self-consistency"
    summary = "N samples, the majority of the extracted answers decides"
    Settings = SelfConsistencySettings
    decided_by = "vote"

    def __init__(self, settings: SelfConsistencySettings) -> None:
        self.settings = settings
        self.together = not settings.stop_when_decided
        self.at_once = settings.window

    async def solve(self, question: Question, session: Session) -> None:
        if self.together:
            await super().solve(question, session)
            return
        votes: dict[str, int] = {}  # in the order in which answers came up
        async for group in session.groups(self.settings.window, climb=True):
            for attempt in await group.attempt():
                answer = session.extract(attempt.completion)
                if answer is not None and attempt.verdict.outcome != "unanswered":
                    votes[answer] = votes.get(answer, 0) + 1
            # Those without an answer may be free, so they count as still to come.
            left = session.budget - sum(votes.values())
            if _is_decided(votes, left) or self._is_likely(votes):
                return

    def _is_likely(self, votes: dict[str, int]) -> bool:
        first, second = [*sorted(votes.values(), reverse=True), 0, 0][:2]
        return self.settings.confidence < 1 and stays_ahead(first, second) >= (
            self.settings.confidence
        )


def _is_decided(votes: dict[str, int], left: int) -> bool:
    """Whether ``left`` further votes leave the winner what it is.

    Of two answers with as many votes the one that came up first wins.
    """
    if not votes:
        return False
    answers = list(votes)
    winner = max(answers, key=lambda answer: votes[answer])  # the first of equals
    before = answers[: answers.index(winner)]
    rivals = [votes[answer] + left + (answer in before) for answer in answers if answer != winner]
    return votes[winner] >= max([left, *rivals])


def stays_ahead(first: int, second: int) -> float:
    """The probability that an answer with ``first`` votes is likelier than one with ``second``.

    It is that of a share above one half under a beta distribution, as in Adaptive-Consistency
    (Aggarwal et al. 2023, arXiv 2305.11860): of ``first + second + 1`` throws of a coin, at most
    ``first`` heads.
    """
    throws = first + second + 1
    return sum(comb(throws, heads) for heads in range(first + 1)) / (1 << throws)
