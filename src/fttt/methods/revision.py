"""One growing conversation in which the model is told to try again."""

from __future__ import annotations

from pydantic import Field

from fttt.methods.base import Method, MethodSettings, Session
from fttt.types import Question, Turn

__all__ = ["Revision"]


class RevisionSettings(MethodSettings):
    """Settings of ``revision``."""

    feedback: str = Field(
        "Your answer is incorrect. Please try again.",
        min_length=1,
        description="what the user says after a wrong answer",
    )


class Revision(Method):
    """Attempt, "try again", attempt ...; the oldest turns go when the context is full."""

    name = "revision"
    summary = "one conversation: attempt, 'try again', attempt, ..."
    Settings = RevisionSettings
    answers_in_context = 4

    def __init__(self, settings: RevisionSettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        turns: list[Turn] = []
        async for trial in session.trials():
            completion = await trial.generate(*turns)
            verdict = await trial.verify(completion)
            if verdict.correct:
                return
            turns += [completion, self.settings.feedback]
