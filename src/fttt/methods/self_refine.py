"""The model criticises its own answer and refines it (Madaan et al. 2023, arXiv 2303.17651)."""

from __future__ import annotations

from pydantic import Field

from fttt.methods.base import Method, MethodSettings, Session, room_for, told
from fttt.types import Question, Turn, user

__all__ = ["SelfRefine"]


class SelfRefineSettings(MethodSettings):
    """Settings of ``self-refine``."""

    critique_request: str = Field(
        "Your answer is incorrect. Review it step by step and say what is wrong with it. "
        "Do not solve the problem again.",
        min_length=1,
        description="what asks for the critique; {feedback} stands for what the verifier lets the "
        "model know of the attempt",
    )
    refine_request: str = Field(
        "Now use this review to solve the problem again, and give the final answer in the form "
        "that was asked for.",
        min_length=1,
        description="what asks for the refined attempt",
    )
    critique_tokens: int = Field(512, ge=1, description="the longest critique, in tokens")
    restart: int | None = Field(
        None, ge=1, description="attempts after which a fresh one is made (never)"
    )


class SelfRefine(Method):
    """Attempt, critique, refined attempt ...; each refinement sees the attempt before it."""

    name = "self-refine"
    summary = "attempt, critique by the same model, refined attempt, ..."
    Settings = SelfRefineSettings
    ablations = ("shuffle", "constant")

    def __init__(self, settings: SelfRefineSettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        said = self.settings
        critique = min(said.critique_tokens, max_new_tokens)
        return (
            max_new_tokens,
            *room_for(said.critique_request),
            critique,
            said.refine_request,
            max_new_tokens,
        )

    async def solve(self, question: Question, session: Session) -> None:
        turns: tuple[Turn, ...] = ()
        restart = self.settings.restart
        async for trial in session.trials():
            if restart and trial.index % restart == 0:
                turns = ()
            if turns:
                critique = await session.generate(
                    *turns, max_new_tokens=self.settings.critique_tokens
                )
                turns += (critique, user(self.settings.refine_request))
            completion = await trial.generate(*turns)
            verdict = await trial.verify(completion)
            if verdict.correct or trial.last:
                return
            shown = await session.evidence(completion, verdict)
            turns = (shown.completion, told(self.settings.critique_request, shown.verdict))
