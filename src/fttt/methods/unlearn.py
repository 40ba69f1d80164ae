"""Push down the tokens of a wrong attempt that the model holds for probable.

Negative samples alone teach a model with verified rewards (NSR, Zhu et al. 2025, arXiv 2506.01347);
a penalty on all tokens of a wrong answer displaces right ones too, one on selected tokens less so
(NTHR, arXiv 2505.18830).
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fttt.methods.base import Adapter, AttemptSettings, Method, Session
from fttt.types import Example, Judged, Question

__all__ = ["Unlearn", "UnlearnSettings"]


class UnlearnSettings(AttemptSettings):
    """Settings of ``unlearn``."""

    lr: float = Field(3e-4, gt=0, description="AdamW's learning rate, constant")
    form: Literal["nll", "unlikelihood"] = Field(
        "nll",
        description="loss of a token: log p (nll, with a negative weight) or -log(1 - p) "
        "(unlikelihood)",
    )
    mask: float = Field(
        0.1, ge=0, lt=1, description="only tokens of a higher probability are pushed down"
    )
    forking: bool = Field(
        False,
        description="weigh each token by 1 - p under the base model, so that those count most "
        "where it could have gone another way",
    )
    bound: float | None = Field(
        1.0,
        ge=0,
        description="most that a step may leave the trained tokens' predictions away from the base "
        "model's, mean KL divergence in nats; past it the question's adapter is made fresh again "
        "(0: measured only)",
    )


class Unlearn(Method):
    """After a wrong attempt, one step that lowers its own probable tokens."""

    name = "unlearn"
    summary = "after each wrong trial one step that lowers the attempt's own probable tokens"
    Settings = UnlearnSettings
    ablations = ("shuffle", "constant", "random-verdict")

    def __init__(self, settings: UnlearnSettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as own:
            async for trial in session.trials():
                attempt = await trial.generate(adapter=own)
                verdict = await trial.verify(attempt)
                if verdict.correct or trial.last:
                    return
                shown = await session.evidence(attempt, verdict)
                lesson = await self.lesson(shown, session, own)
                await trial.train(own, [lesson], **self.settings.watch)

    async def lesson(self, shown: Judged, session: Session, own: Adapter) -> Example:
        """What lowers a wrong attempt: the tokens that the adapter, as it is, holds for probable.

        Where an ablation shows it as a right one, the same tokens are raised.
        """
        said, attempt = self.settings, shown.completion
        scores = await session.score(attempt, adapter=own)
        weights = [float(log > _log(said.mask)) for log in scores.logprobs]
        if said.forking:
            base = await session.score(attempt)
            pairs = zip(weights, base.logprobs, strict=True)
            weights = [weight * -math.expm1(log) for weight, log in pairs]
        weights = list(said.trained(attempt, weights))
        if shown.verdict.correct:
            return Example(attempt, weight=tuple(weights))
        sign = -1.0 if said.form == "nll" else 1.0
        return Example(attempt, weight=tuple(sign * weight for weight in weights), form=said.form)


def _log(probability: float) -> float:
    return math.log(probability) if probability else -math.inf
