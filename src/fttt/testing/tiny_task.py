"""A task of ten questions, and its verifier."""

from __future__ import annotations

import re
from typing import ClassVar

from fttt.tasks.task import TaskOptions
from fttt.types import Question, Verdict
from fttt.verifiers.verifier import Verifier, feedback_on

__all__ = ["TinyTask", "TinyVerifier"]


class TinyVerifier:
    """Reads the last whole number of a completion; no number is no answer."""

    def __init__(self) -> None:
        self.closed = False

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Compare the last number with the question's gold."""
        answer = self.extract(question, completion)
        if answer is None:
            said = feedback_on("unanswered", None)
            return Verdict("unanswered", None, "no number in the completion", feedback=said)
        if answer == question.gold:
            return Verdict("correct", answer, feedback=feedback_on("correct", answer))
        said = feedback_on("incorrect", answer)
        return Verdict("incorrect", answer, f"expected {question.gold}", feedback=said)

    def extract(self, question: Question, completion: str) -> str | None:
        """The last whole number."""
        numbers = re.findall(r"\d+", completion)
        return numbers[-1] if numbers else None

    async def close(self) -> None:
        """Remember that the verifier was closed."""
        self.closed = True


class TinyTask:
    """Ten questions, each of which asks for a number."""

    name: ClassVar[str] = "tiny"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def load(self, options: TaskOptions) -> list[Question]:
        """The questions ``tiny/0`` to ``tiny/9``."""
        return [Question(f"tiny/{n}", f"Write the number {n}.", str(n)) for n in range(10)]

    def verifier(self) -> Verifier:
        """A verifier of numbers."""
        return TinyVerifier()
