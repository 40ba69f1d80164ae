"""Push down the tokens of a wrong attempt that the model holds for probable."""

from __future__ import annotations

import math

from fttt.methods import LoRASettings, Method, Session
from fttt.types import Example, Question

__all__ = ["Unlearn"]


class Unlearn(Method):
    """After a wrong attempt, one unlikelihood step on its tokens of probability above 0.1."""

    name = "unlearn-example"
    summary = "push down a wrong attempt's probable tokens"
    Settings = LoRASettings

    def __init__(self, settings: LoRASettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as own:
            async for trial in session.trials():
                attempt = await trial.generate(adapter=own)
                verdict = await trial.verify(attempt)
                if verdict.correct or trial.last:
                    return
                scores = await session.score(attempt, adapter=own)
                probable = tuple(float(log > math.log(0.1)) for log in scores.logprobs)
                lesson = Example(attempt, weight=probable, form="unlikelihood")
                await trial.train(own, [lesson], divergence=True)
