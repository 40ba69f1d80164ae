"""Learn towards the base model that has read the feedback (SDPO, arXiv 2601.20802).

The teacher is a prompt: question, attempt and verdict, after which the base model scores the
attempt's own tokens once more. Nothing is written for it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fttt.methods.base import (
    PRAISE,
    Adapter,
    AttemptSettings,
    Method,
    Session,
    room_for,
    told,
)
from fttt.types import FEEDBACK, Example, Judged, Question, Scores, Text, user

__all__ = ["SelfDistill", "SelfDistillSettings"]

_AGAIN = "Solve the problem again, correctly, and give the answer in the form that was asked for."


class SelfDistillSettings(AttemptSettings):
    """Settings of ``self-distill``."""

    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate, constant")
    form: Literal["feedback", "contrast"] = Field(
        "contrast",
        description="feedback: towards the base model after the feedback; contrast: towards the "
        "difference of its predictions after the feedback and after praise",
    )
    level: Literal["token", "top-k"] = Field(
        "top-k",
        description="what is compared at each place: the attempt's token (token), or the likeliest "
        "tokens and all others as one (top-k)",
    )
    teacher_tokens: int = Field(
        20, ge=1, description="the teacher's likeliest tokens at each place"
    )
    feedback: str = Field(
        f"{FEEDBACK} {_AGAIN}",
        min_length=1,
        description="what the teacher reads after the attempt; {feedback} stands for what the "
        "verifier lets the model know of it",
    )
    praise: str = Field(
        f"{PRAISE} {_AGAIN}",
        min_length=1,
        description="contrast: what it reads in the other case",
    )


class SelfDistill(Method):
    """After a wrong attempt, one step towards what the base model says once it is told so."""

    name = "self-distill"
    summary = "after each wrong trial one step towards the base model that reads the feedback"
    Settings = SelfDistillSettings
    ablations = ("shuffle", "constant", "random-verdict")

    def __init__(self, settings: SelfDistillSettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        said = self.settings
        longest = max(said.feedback, said.praise, key=len)
        return (max_new_tokens, longest, *room_for(said.feedback)[1:], max_new_tokens)

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
        """The attempt's own tokens, and what the teacher would have them be.

        Where an ablation shows the attempt as a right one, feedback and praise change places.
        """
        said, attempt = self.settings, shown.completion
        texts = (told(said.feedback, shown.verdict), user(said.praise))
        after, other = reversed(texts) if shown.verdict.correct else texts
        top_k = said.teacher_tokens if said.level == "top-k" else 0

        async def score(text: Text) -> Scores:
            return await session.score(attempt, after=(attempt, text), top_k=top_k)

        teacher = await score(after)
        weight = said.weights(attempt, 1.0)
        if said.form == "feedback" and top_k:
            return Example(attempt, weight=weight, teacher=teacher.teacher())
        if said.form == "feedback":
            against = await session.score(attempt, adapter=own)
        else:
            against = await score(other)
        if top_k:
            return Example(attempt, weight=weight, teacher=teacher.teacher() - against.teacher())
        pairs = zip(teacher.logprobs, against.logprobs, strict=True)
        return Example(attempt, weight=said.trained(attempt, [one - two for one, two in pairs]))
