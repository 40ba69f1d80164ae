"""What a method sees: a question, a session, and the trials that the session hands out.

A method is a coroutine over trials. It never opens a file, never touches a tensor and never counts
its own budget: the session records, replays and counts. Hundreds of methods run at once and the
engine gathers what they ask for into batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from fttt.types import Completion, Feedback, Question, Turn, Verdict

__all__ = ["Adapter", "Attempt", "LoRASettings", "Method", "MethodSettings", "Session"]


class MethodSettings(BaseModel):
    """A method's own settings; each field's description is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoRASettings(MethodSettings):
    """Settings of a method that trains each question's own low-rank weights.

    A method whose ``Settings`` derive from these may ask the session for an adapter. The defaults
    are those of FTTT (arXiv 2502.15771).
    """

    lr: float = Field(1e-5, gt=0, description="AdamW's learning rate, constant")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    rank: int = Field(4, ge=1, description="rank of the low-rank weights")
    alpha: float = Field(16.0, gt=0, description="their scale is alpha / rank")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout on the adapter's input, in the train step only"
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="the linear layers that carry them"
    )


class Adapter(Protocol):
    """One question's own weights and their optimizer; opaque to methods."""


class Attempt(Protocol):
    """One trial in progress."""

    @property
    def index(self) -> int:
        """The trial's number, from 0."""

    @property
    def last(self) -> bool:
        """Whether the budget grants no trial after this one, once this one is judged.

        What is learned from it would not be used.
        """

    async def generate(
        self,
        *turns: Turn,
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write an answer to the question followed by ``turns``.

        ``turns`` alternate between what the model wrote (a completion) and what the user says
        (a text); none of them means a fresh answer. Where they do not fit into the context, the
        oldest of them are left out. ``temperature`` overrides the run's.
        """

    async def search(self, beams: int) -> tuple[Completion, ...]:
        """Write ``beams`` answers to the question by one beam search, the best one first.

        The first is this trial's, the second the next one's, and so on. All of them are written
        before the first verdict, so this trial bears what they cost.
        """

    async def verify(self, completion: Completion) -> Verdict:
        """Judge the trial's answer, once: each verdict is a trial of the budget."""

    async def train(
        self, adapter: Adapter, *, after: Completion, on: Feedback | Sequence[Feedback]
    ) -> float:
        """Take one step on what was said after an attempt; return the loss before it."""


class Session(Protocol):
    """One question's view of the run."""

    @property
    def budget(self) -> int:
        """The number of trials that the run grants each question."""

    def trials(self) -> AsyncIterator[Attempt]:
        """Trials until the budget is spent, or the question is solved.

        A trial ends when the next one is asked for. Those of a method that has them ``together``
        are handed out without waiting for one another, each ends with its verdict, and a solved
        question does not stop them.
        """

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


class Method(ABC):
    """A way to spend a budget of trials on a question.

    A new method derives from this class and writes ``name``, ``summary`` and ``solve``; where it
    has settings, also ``Settings`` and an ``__init__`` that takes them. It holds no state of a
    question: one object serves hundreds of questions at once.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``fttt list methods``."""
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    decided_by: ClassVar[Literal["first", "vote"]] = "first"
    """Whether the first correct trial solves a question, or the most frequent answer decides."""
    fixed: ClassVar[Mapping[str, float]] = {}
    """Settings of the run that the method itself fixes, of ``trials`` and ``temperature``."""
    together: ClassVar[bool] = False
    """Whether its trials are independent of one another, verdicts included."""
    fresh: ClassVar[bool] = False
    """Whether every trial asks the question anew and generates nothing else, so that answers may
    be written ahead of their trials while the engine has room; none of them is judged ahead."""
    searches: ClassVar[bool] = False
    """Whether its trials are the beams of one search, whose width only ``trials`` can say."""

    def __init__(self, settings: MethodSettings) -> None:  # noqa: B027 - most need nothing
        """Take the settings, an object of ``Settings``; a method that has any keeps them."""

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        """Its longest conversation after the question, from which the engine's rows are sized.

        A text stands for a user's turn, a number for as many tokens of the model's. A method that
        passes turns to ``generate`` says here how many it needs; older ones are left out.
        """
        return (max_new_tokens,)

    @abstractmethod
    async def solve(self, question: Question, session: Session) -> None:
        """Try until a trial verifies or the session grants no more."""
