"""What a verifier is: one method that judges a completion against a question."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fttt.types import Outcome, Question, Verdict

__all__ = ["Verifier", "feedback_on"]

_SHOWN = 200
"""Characters of an answer that feedback repeats."""


@runtime_checkable
class Verifier(Protocol):
    """Judges what a model wrote.

    A verifier bounds its own time and never raises for what a model wrote: a check that raised or
    hung is an ``incorrect`` verdict whose ``detail`` says so. It raises
    :class:`fttt.errors.RunError` only where judging itself is impossible (the judge is down).
    """

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Judge ``completion`` (text without special tokens) as an answer to ``question``."""

    def extract(self, question: Question, completion: str) -> str | None:
        """The normalised answer to ``question`` in ``completion``, for votes; ``None`` without."""

    async def close(self) -> None:
        """Stop workers and close connections. Calling it twice is harmless."""


def feedback_on(outcome: Outcome, extracted: str | None) -> str:
    """What a model may be shown of a verdict, made from its own answer alone."""
    if outcome == "unanswered":
        return "No answer was found in your response."
    answer = "" if extracted is None else f" {extracted[:_SHOWN]}"
    return f"Your answer{answer} is {outcome}."
