"""Towards the base model that reads the feedback: context distillation of a verdict."""

from __future__ import annotations

from fttt.methods import LoRASettings, Method, Session
from fttt.types import Example, Question, user

__all__ = ["SelfDistill"]


class SelfDistill(Method):
    """After a wrong attempt, one step towards what the base model predicts of the same tokens
    once it has read that an earlier attempt was wrong."""

    name = "self-distill-example"
    summary = "learn towards the base model that reads the feedback"
    Settings = LoRASettings

    def __init__(self, settings: LoRASettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        return (max_new_tokens, "Your answer is incorrect. Try again.", max_new_tokens)

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as own:
            async for trial in session.trials():
                attempt = await trial.generate(adapter=own)
                verdict = await trial.verify(attempt)
                if verdict.correct or trial.last:
                    return
                told = (attempt, user("Your answer is incorrect. Try again."))
                again = await session.generate(*told)
                scores = await session.score(again, after=told, top_k=8)
                await trial.train(own, [Example(again, teacher=scores.teacher())])
