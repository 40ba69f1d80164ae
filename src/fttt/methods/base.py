"""What a method sees: a question, a session, and the trials that the session hands out.

A method is a coroutine over trials. It never opens a file, never touches a tensor and never counts
its own budget: the session records, replays and counts. Hundreds of methods run at once and the
engine gathers what they ask for into batches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from fttt.types import Completion, Feedback, Question, Turn, Verdict

__all__ = ["Adapter", "Attempt", "Method", "Session"]


class Adapter(Protocol):
    """One question's own weights and their optimizer; opaque to methods."""


class Attempt(Protocol):
    """One trial in progress."""

    @property
    def index(self) -> int:
        """The trial's number, from 0."""

    async def generate(
        self,
        *turns: Turn,
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write an answer to the question followed by ``turns``.

        ``turns`` alternate between what the model wrote (a completion) and what the user says
        (a text); none of them means a fresh answer. ``temperature`` overrides the run's.
        """

    async def verify(self, completion: Completion) -> Verdict:
        """Judge a completion. The trial's record is written with this verdict."""

    async def train(
        self, adapter: Adapter, *, after: Completion, on: Feedback | Sequence[Feedback]
    ) -> float:
        """Take one optimizer step on what was said after an attempt; return the loss."""


class Session(Protocol):
    """One question's view of the run."""

    @property
    def budget(self) -> int:
        """The number of trials that the run grants each question."""

    def trials(self) -> AsyncIterator[Attempt]:
        """Trials until the budget is spent, or the question is solved."""

    def adapter(self) -> AbstractAsyncContextManager[Adapter]:
        """This question's own weights, fresh and seeded, given back at the end."""

    async def generate(
        self,
        *turns: Turn,
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write something that is no answer (a critique, say): it spends tokens but no trial."""

    def extract(self, completion: Completion) -> str | None:
        """The normalised answer in a completion, for votes; ``None`` where there is none."""


@runtime_checkable
class Method(Protocol):
    """A way to spend a budget of trials on a question."""

    name: str

    async def solve(self, question: Question, session: Session) -> None:
        """Try until a trial verifies or the session grants no more."""
