"""One growing conversation in which the model is told to try again."""

from __future__ import annotations

from pydantic import Field

from fttt.methods.base import Method, MethodSettings, Session
from fttt.types import Question, Turn, user

__all__ = ["Revision"]


class RevisionSettings(MethodSettings):
    """Settings of ``revision``."""

    feedback: str = Field(
        "Your answer is incorrect. Please try again.",
        min_length=1,
        description="what the user says after a wrong answer",
    )
    attempts: int = Field(
        4, ge=2, description="attempts of full length that the conversation has room for"
    )


class Revision(Method):
    """Attempt, "try again", attempt ...; the oldest turns go when the context is full."""

    name = "revision"
    summary = "one conversation: attempt, 'try again', attempt, ..."
    Settings = RevisionSettings

    def __init__(self, settings: RevisionSettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        return (max_new_tokens, self.settings.feedback) * (self.settings.attempts - 1) + (
            max_new_tokens,
        )

    async def solve(self, question: Question, session: Session) -> None:
        turns: list[Turn] = []
        async for trial in session.trials():
            completion = await trial.generate(*turns)
            verdict = await trial.verify(completion)
            if verdict.correct:
                return
            turns += [completion, user(self.settings.feedback)]
