"""What a verifier is: one method that judges a completion against a question."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, Protocol, runtime_checkable

from fttt.types import Outcome, Question, Verdict

__all__ = ["Verifier", "extract_answer", "feedback_on", "verify_completion"]

_SHOWN = 200
"""Characters of an answer that feedback repeats."""


@runtime_checkable
class Verifier(Protocol):
    """Judges what a model wrote.

    A verifier bounds its own time and never raises for what a model wrote: a check that raised or
    hung is an ``incorrect`` verdict whose ``detail`` says so. It raises
    :class:`fttt.errors.RunError` only where judging itself is impossible (the judge is down).

    Where ``verify`` and ``extract`` also take a keyword ``cut: bool = False``, they are told when
    a completion ended at its length limit, so that half a number is not taken for an answer.
    """

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Judge ``completion`` (text without special tokens) as an answer to ``question``."""

    def extract(self, question: Question, completion: str) -> str | None:
        """The normalised answer to ``question`` in ``completion``, for votes; ``None`` without."""

    async def close(self) -> None:
        """Stop workers and close connections. Calling it twice is harmless."""


async def verify_completion(
    verifier: Verifier, question: Question, completion: str, *, cut: bool
) -> Verdict:
    """The verdict of ``verifier``, which is told of a cut-off completion if it asks for that."""
    return await verifier.verify(question, completion, **_told(verifier.verify, cut))


def extract_answer(
    verifier: Verifier, question: Question, completion: str, *, cut: bool
) -> str | None:
    """What ``verifier`` extracts; it is told of a cut-off completion if it asks for that."""
    return verifier.extract(question, completion, **_told(verifier.extract, cut))


def _told(method: Callable[..., Any], cut: bool) -> dict[str, Any]:
    if not cut:
        return {}
    parameters = signature(method).parameters.values()
    asks = any(one.name == "cut" or one.kind is one.VAR_KEYWORD for one in parameters)
    return {"cut": True} if asks else {}


def feedback_on(outcome: Outcome, extracted: str | None) -> str:
    """What a model may be shown of a verdict, made from its own answer alone."""
    if outcome == "unanswered":
        return "No answer was found in your response."
    answer = "" if extracted is None else f" {extracted[:_SHOWN]}"
    return f"Your answer{answer} is {outcome}."
