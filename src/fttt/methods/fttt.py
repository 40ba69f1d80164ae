"""Feedback-based test-time training (arXiv 2502.15771, section 3)."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from fttt.errors import UsageError
from fttt.methods.base import PRAISE, LoRASettings, Method, Session, answer_weights
from fttt.types import Completion, Example, Judged, Question, user

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
    train_on_thoughts: bool = Field(
        True,
        description="with reflection: whether the thought of a critique is trained on too; else "
        "its text alone",
    )

    def settled(self) -> Self:
        """The settings as they are.

        Raises:
            UsageError: thoughts of critiques are left out, and there are no critiques.
        """
        if not (self.train_on_thoughts or self.reflection):
            raise UsageError(
                "The method 'fttt' trains on the feedback, which has no thought, so "
                "--no-train-on-thoughts does nothing without --reflection; leave it away."
            )
        return self

    def critique_weights(self, critique: Completion) -> tuple[float, ...]:
        """The weights of a critique's tokens in the loss, whose mean is taken."""
        weights = (1.0,) * len(critique.token_ids)
        return weights if self.train_on_thoughts else answer_weights(critique, weights)


class FTTT(Method):
    """Learn from each wrong attempt: one AdamW step on the feedback turn that follows it."""

    name = "fttt"
    summary = "after each wrong trial one AdamW step of the question's own LoRA on the feedback"
    Settings = FTTTSettings
    ablations = ("shuffle", "constant", "random-verdict")

    def __init__(self, settings: FTTTSettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        if not self.settings.reflection:
            return (max_new_tokens,)
        critique = min(self.settings.critique_tokens, max_new_tokens)
        return (max_new_tokens, self.settings.critique_request, critique)

    async def solve(self, question: Question, session: Session) -> None:
        async with session.adapter() as own:
            async for trial in session.trials():
                attempt = await trial.generate(adapter=own)
                verdict = await trial.verify(attempt)
                if verdict.correct or trial.last:
                    return
                shown = await session.evidence(attempt, verdict)
                await trial.train(own, await self.lessons(shown, session))

    async def lessons(self, shown: Judged, session: Session) -> list[Example]:
        """What is learned from a wrong attempt; the losses are added.

        An ablation may show it as a right one: then it is told so, and has no critique.
        """
        attempt = shown.completion
        if shown.verdict.correct:
            return [Example(user(PRAISE), after=(attempt,))]
        said = [Example(user(self.settings.feedback), after=(attempt,))]
        if self.settings.reflection:
            request = user(self.settings.critique_request)
            critique = await session.generate(
                attempt, request, max_new_tokens=self.settings.critique_tokens
            )
            weights = self.settings.critique_weights(critique)
            if any(weights):  # else all of it is a thought
                said.append(Example(critique, after=(attempt, request), weight=weights))
        return said
