"""One growing conversation in which the model is told to try again."""

from __future__ import annotations

import math

from pydantic import Field

from fttt.methods.base import Method, MethodSettings, Session, room_for, told
from fttt.types import Question, Turn

__all__ = ["Revision"]


class RevisionSettings(MethodSettings):
    """Settings of ``revision``."""

    feedback: str = Field(
        "Your answer is incorrect. Please try again.",
        min_length=1,
        description="what the user says after a wrong answer; {feedback} stands for what the "
        "verifier lets the model know of it",
    )
    attempts: int = Field(
        4, ge=2, description="attempts of full length that the conversation has room for"
    )
    last_only: bool = Field(
        False, description="keep only the last attempt and what was said about it"
    )
    restart: int | None = Field(
        None, ge=1, description="attempts after which the conversation begins anew (never)"
    )


class Revision(Method):
    """Attempt, "try again", attempt ...; the oldest turns go when the context is full.

    The conversation may begin anew after some attempts, and may keep the last attempt only.
    """

    name = "revision"
    summary = "one conversation: attempt, 'try again', attempt, ..."
    Settings = RevisionSettings
    ablations = ("shuffle", "constant")

    def __init__(self, settings: RevisionSettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        said = self.settings
        most = min(said.attempts, said.restart or said.attempts, 2 if said.last_only else math.inf)
        return (max_new_tokens, *room_for(said.feedback)) * (int(most) - 1) + (max_new_tokens,)

    async def solve(self, question: Question, session: Session) -> None:
        said = self.settings
        turns: tuple[Turn, ...] = ()
        async for trial in session.trials():
            if said.restart and trial.index % said.restart == 0:
                turns = ()
            completion = await trial.generate(*turns)
            verdict = await trial.verify(completion)
            if verdict.correct or trial.last:
                return
            shown = await session.evidence(completion, verdict)
            before = () if said.last_only else turns
            turns = (*before, shown.completion, told(said.feedback, shown.verdict))
