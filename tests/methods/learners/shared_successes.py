"""One adapter of all questions, trained on what was solved."""

from __future__ import annotations

from fttt.methods import LoRASettings, Method, Session
from fttt.types import Example, Question

__all__ = ["SharedSuccesses"]


class SharedSuccesses(Method):
    """Each right attempt of any question is imitated by the weights that all write under."""

    name = "shared-successes-example"
    summary = "one adapter for all questions, trained on what was solved"
    Settings = LoRASettings
    shared = True

    def __init__(self, settings: LoRASettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as shared:
            async for trial in session.trials():
                attempt = await trial.generate(adapter=shared)
                verdict = await trial.verify(attempt)
                await trial.train(shared, [Example(attempt)] if verdict.correct else [])
