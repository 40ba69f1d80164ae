"""Policy gradient at test time: groups of attempts of one question, advantages from their scores.

Sources: RLOO (Ahmadian et al. 2024, arXiv 2402.14740), GRPO (Shao et al. 2024, arXiv 2402.03300),
NGRPO (Nan et al. 2025, arXiv 2509.18851), TTT-Discover (Yuksekgonul et al. 2026, arXiv 2601.16175).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from fttt.errors import UsageError
from fttt.methods.base import AttemptSettings, Method, Session
from fttt.types import Example, Judged, Question

__all__ = ["Policy", "PolicySettings", "advantages", "entropic", "leave_one_out", "rewards"]

_STEEPEST = 1e3
"""The most that beta times the range of a group's rewards is raised to."""


class PolicySettings(AttemptSettings):
    """Settings of ``policy``."""

    group: int = Field(4, ge=2, description="attempts of a question to a step")
    shared: bool = Field(False, description="one adapter for all questions of the run")
    advantage: Literal["rloo", "grpo", "ngrpo", "entropic"] | None = Field(
        None,
        description="how a group's rewards become weights: rloo (less the mean of the others), "
        "grpo (normalised), ngrpo (normalised beside a virtual success), entropic (towards the "
        "best); by default ngrpo, and rloo where the adapter is shared",
    )
    best: float = Field(
        1.0, description="ngrpo: reward of the virtual success, where no attempt has a higher one"
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="entropic: how steeply weights rise with the reward (so that their KL "
        "divergence from equal ones is ln 2)",
    )
    kl: float = Field(
        0.0,
        ge=0,
        description="weight of the anchor, the cross-entropy of the attempts' tokens against the "
        "base model's predictions",
    )
    teacher_tokens: int = Field(
        20, ge=1, description="anchor: the base model's tokens at each place"
    )
    novelty: float = Field(
        0.0,
        ge=0,
        description="added to the reward, over the root of how often the final answer was given",
    )
    ahead: Literal[0, 1] = Field(
        1,
        description="where shared: groups that a question may write before all have learned from "
        "the one before (0: a step more in a budget, and each waits for the slowest)",
    )
    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate, constant")
    rank: int = Field(4, ge=1, description="rank of the low-rank weights (16 where shared)")
    alpha: float = Field(16.0, gt=0, description="their scale is alpha / rank (32 where shared)")
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="dropout on the adapter's input, in the train step only (0 where shared)",
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        min_length=1,
        description="the linear layers that carry them (all-linear, which is the default where "
        "shared: all of the decoder layers but the experts of a mixture)",
    )

    WHERE_SHARED: ClassVar[dict[str, Any]] = {
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "targets": ("all-linear",),
        "advantage": "rloo",
    }

    def settled(self) -> Self:
        """The settings with the defaults that depend on whose the adapter is.

        Raises:
            UsageError: a bound on an adapter that is all questions'.
        """
        if self.shared and self.bound:
            raise UsageError(
                f"The setting bound cannot be {self.bound} where the adapter is shared, since no "
                "question may reset it for the others; leave it away, or give kl or bound=0."
            )
        defaults = self.WHERE_SHARED if self.shared else {"advantage": "ngrpo"}
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        return self.model_copy(update={k: v for k, v in defaults.items() if k not in given})

    def check_budget(self, trials: int | None) -> None:
        """Refuse a group that no question's budget can fill.

        Raises:
            UsageError: it is larger than the budget.
        """
        if trials is not None and self.group > trials:
            raise UsageError(
                f"A group of {self.group} attempts is larger than the budget of {trials} trials; "
                f"give --trials {2 * self.group} or more, or a smaller --set group (2 or more)."
            )


class Policy(Method):
    """Groups of attempts; each attempt's likelihood is raised or lowered by its advantage.

    With a question's own adapter the first success ends the question. Where the adapter is shared
    the whole group is judged and handed in, successes included, for the others' sake.
    """

    name = "policy"
    summary = "groups of attempts, and a policy-gradient step on each (--shared: one for all)"
    Settings = PolicySettings
    ablations = ("shuffle", "constant", "random-verdict")

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings.settled()
        self.shared, self.at_once = settings.shared, settings.group
        self.ahead = self.settings.ahead

    async def solve(self, question: Question, session: Session) -> None:
        given: Counter[str] = Counter()
        async with session.adapter() as own:
            async for group in session.groups(self.settings.group, climb=self.shared):
                judged = await group.attempt(adapter=own)
                solved = any(one.verdict.correct for one in judged)
                if (solved or group.last) and not self.shared:
                    return
                shown = await asyncio.gather(
                    *(session.evidence(one.completion, one.verdict) for one in judged)
                )
                lessons = await self.lessons(shown, session, given)
                await group.train(own, lessons, **self.settings.watch)
                if solved:
                    return

    async def lessons(
        self, judged: Sequence[Judged], session: Session, given: Counter[str]
    ) -> list[Example]:
        """What is learned from a group.

        Args:
            judged: the group.
            session: of the question.
            given: how often the question's answers were given; those of the group are added.
        """
        said = self.settings
        earned = rewards(judged)
        if said.novelty:
            answers = [_answer(one, session) for one in judged]
            given.update(answer for answer in answers if answer is not None)
            earned = [
                reward if answer is None else reward + said.novelty / math.sqrt(given[answer])
                for reward, answer in zip(earned, answers, strict=True)
            ]
        found = [
            Example(one.completion, weight=said.weights(one.completion, advantage / len(judged)))
            for one, advantage in zip(judged, advantages(earned, said), strict=True)
        ]
        if said.kl:
            base = await asyncio.gather(
                *(session.score(one.completion, top_k=said.teacher_tokens) for one in judged)
            )
            found += [
                Example(
                    one.completion,
                    weight=said.weights(one.completion, said.kl / len(judged)),
                    teacher=scores.teacher(),
                )
                for one, scores in zip(judged, base, strict=True)
            ]
        return found


def rewards(judged: Sequence[Judged]) -> list[float]:
    """Each attempt's score; without scores 1 for a right attempt and 0 for a wrong one.

    Beside attempts with a score, a wrong one without is worth as much as the worst of them: a
    program that was stopped, say.
    """
    scores = [one.verdict.score for one in judged if one.verdict.score is not None]
    least = min(scores, default=0.0)
    return [
        (1.0 if one.verdict.correct else least) if one.verdict.score is None else one.verdict.score
        for one in judged
    ]


def advantages(earned: Sequence[float], settings: PolicySettings) -> list[float]:
    """The weights of a group's attempts, from their rewards."""
    if settings.advantage == "rloo":
        return leave_one_out(earned)
    if settings.advantage == "entropic":
        return entropic(earned, settings.beta)
    virtual = [max(settings.best, *earned)] if settings.advantage == "ngrpo" else []
    return _normalised(earned, [*earned, *virtual])


def leave_one_out(earned: Sequence[float]) -> list[float]:
    """Each reward less the mean of the others (RLOO); one alone has no advantage."""
    others = len(earned) - 1
    total = sum(earned)
    return [reward - (total - reward) / others if others else 0.0 for reward in earned]


def _normalised(earned: Sequence[float], beside: Sequence[float]) -> list[float]:
    """Each reward less the mean of ``beside``, over their standard deviation."""
    mean = sum(beside) / len(beside)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in beside) / len(beside))
    if deviation < 1e-9 * max(1.0, abs(mean)):
        return [0.0] * len(earned)
    return [(reward - mean) / deviation for reward in earned]


def entropic(earned: Sequence[float], beta: float | None = None) -> list[float]:
    """``N q_n - 1`` with ``q`` the softmax of ``beta`` times the rewards.

    That is the gradient of ``log mean exp(beta r) `` by the log-likelihoods, up to its scale; it
    seeks the maximum where RLOO raises the mean. Without ``beta`` it is the one at which the KL
    divergence of ``q`` from equal shares is ln 2, or as near as ties allow.
    """
    best, span = max(earned), max(earned) - min(earned)
    if span == 0:
        return [0.0] * len(earned)

    def shares(steepness: float) -> list[float]:
        each = [math.exp(steepness * (reward - best)) for reward in earned]
        return [one / sum(each) for one in each]

    if beta is None:
        low, high = 0.0, _STEEPEST / span
        for _ in range(60):
            middle = (low + high) / 2
            q = shares(middle)
            divergence = math.log(len(q)) + sum(one * math.log(one) for one in q if one)
            low, high = (middle, high) if divergence < math.log(2) else (low, middle)
        beta = low
    return [len(earned) * one - 1 for one in shares(beta)]


def _answer(one: Judged, session: Session) -> str | None:
    """An attempt's final answer; where nobody reads one, all that was written."""
    if not one.verdict.answered:
        return None
    return session.extract(one.completion) or one.verdict.extracted or one.completion.text.strip()
