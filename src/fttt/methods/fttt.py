"""Feedback-based test-time training (arXiv 2502.15771, section 3)."""

from __future__ import annotations

from pydantic import Field

from fttt.methods.base import LoRASettings, Method, Session
from fttt.types import Completion, Feedback, Question

__all__ = ["FTTT"]


class FTTTSettings(LoRASettings):
    """Settings of ``fttt``."""

    feedback: str = Field(
        "Your answer is incorrect.",
        min_length=1,
        description="the user's turn after a wrong answer, whose tokens carry the loss",
    )
    reflection: bool = Field(
        False, description="also learn from a critique that the base model writes first"
    )
    critique_request: str = Field(
        "Your answer is incorrect. In a few sentences, say what is wrong with it and what to do "
        "differently. Do not solve the problem again.",
        min_length=1,
        description="what asks for that critique",
    )
    critique_tokens: int = Field(256, ge=1, description="the longest critique, in tokens")


class FTTT(Method):
    """Learn from each wrong attempt: one AdamW step on the feedback turn that follows it."""

    name = "fttt"
    summary = "after each wrong trial one AdamW step of the question's own LoRA on the feedback"
    Settings = FTTTSettings

    def __init__(self, settings: FTTTSettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        if not self.settings.reflection:
            return (max_new_tokens,)
        critique = min(self.settings.critique_tokens, max_new_tokens)
        return (max_new_tokens, self.settings.critique_request, critique)

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as adapter:
            async for trial in session.trials():
                completion = await trial.generate(adapter=adapter)
                verdict = await trial.verify(completion)
                if verdict.correct or trial.last:
                    return
                said = await self.feedback(completion, session)
                await trial.train(adapter, after=completion, on=said)

    async def feedback(self, attempt: Completion, session: Session) -> list[Feedback]:
        """What is said after a wrong attempt; the losses of all of it are added."""
        said = [Feedback((self.settings.feedback,))]
        if self.settings.reflection:
            request = self.settings.critique_request
            critique = await session.generate(
                attempt, request, max_new_tokens=self.settings.critique_tokens
            )
            said.append(Feedback((request, critique)))
        return said
