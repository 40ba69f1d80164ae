"""OpTune: a trained network predicts each update of the weights (arXiv 2502.15771, section 4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fttt.methods.base import Method, MethodSettings, Session
from fttt.types import Feedback, Question

__all__ = ["OpTune", "OpTuneSettings"]


class OpTuneSettings(MethodSettings):
    """Settings of ``optune``."""

    checkpoint: str = Field(
        min_length=1,
        description="the trained network: a folder of `fttt optune train`, or owner/name",
    )
    schedule: Literal["alternate", "accumulate"] = Field(
        "alternate",
        description="alternate: every other trial runs the base model, and the next one the change "
        "that is predicted from it; accumulate: every wrong trial adds a change",
    )
    feedback: str | None = Field(
        None, description="the user's turn after a wrong answer: the one of the network's training"
    )


class OpTune(Method):
    """Answer under a change of the weights that is predicted from the factors of an attempt.

    The loss is that of question, attempt and feedback together, as in the network's training.
    """

    name = "optune"
    summary = "after a wrong trial a trained network predicts how to change a few weights"
    Settings = OpTuneSettings

    def __init__(self, settings: OpTuneSettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        assert self.settings.feedback is not None, "the checkpoint says what it is"
        said = Feedback((self.settings.feedback,), on="conversation")
        alternate = self.settings.schedule == "alternate"
        async with session.adapter() as adapter:
            async for trial in session.trials():
                base = alternate and trial.index % 2 == 0
                completion = await trial.generate(adapter=None if base else adapter)
                verdict = await trial.verify(completion)
                if verdict.correct or trial.last:
                    return
                if base or not alternate:
                    await trial.train(adapter, after=completion, on=said)
