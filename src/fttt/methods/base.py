"""What a method sees: a question, a session, and the trials that the session hands out.

A method is a coroutine over trials. It never opens a file, never touches a tensor and never counts
its own budget: the session records, replays and counts. Hundreds of methods run at once and the
engine gathers what they ask for into batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from fttt.types import (
    FEEDBACK,
    Ablation,
    Completion,
    Example,
    Judged,
    Question,
    Scores,
    Step,
    Text,
    Turn,
    Verdict,
    filled_in,
    user,
)

if TYPE_CHECKING:
    from fttt.engine.request import AdapterSpec

__all__ = [
    "Adapter",
    "Attempt",
    "AttemptSettings",
    "BoundedSettings",
    "Group",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Session",
    "room_for",
    "told",
]

PRAISE = "Your answer is correct."
"""What is said of a right answer, and of a wrong one where an ablation has it so."""
_ROOM = 300
"""Tokens that feedback, which a model is shown shortened, is counted as."""


def told(text: str, verdict: Verdict) -> Text:
    """The user's turn after an attempt: a text of the settings, with the feedback filled in."""
    return user(filled_in(text, verdict.feedback))


def room_for(text: str) -> tuple[str | int, ...]:
    """What such a turn takes of a conversation's length (see :meth:`Method.conversation`)."""
    return (text, _ROOM) if FEEDBACK in text else (text,)


class MethodSettings(BaseModel):
    """A method's own settings; each field's description is its help text.

    What a method needs beside the model, its settings say themselves: an adapter for each question,
    a checkpoint to start from, a trained network. Most need nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def starts_from(self) -> Path | None:
        """The fine-tuned checkpoint whose weights the method runs, if its settings name one."""
        return None

    @property
    def base_model(self) -> str | None:
        """The model that what the settings name was trained for."""
        return None

    def settled(self) -> Self:
        """The settings with what a trained network that they name fixes.

        Raises:
            UsageError: there is no such network, or it does not go with the other settings.
        """
        return self

    def check_model(self, model: Any) -> None:
        """Refuse a model that the settings do not go with.

        Args:
            model: a model, or the name of one, whose weights are then not loaded.

        Raises:
            UsageError: it is such.
        """

    def check_budget(self, trials: int | None) -> None:
        """Refuse a budget that the settings do not go with.

        Args:
            trials: of each question; ``None`` where tokens or seconds are the budget.

        Raises:
            UsageError: it is such.
        """

    def fingerprint(self) -> str | None:
        """SHA-256 of the network that the settings name, if they do."""
        return None

    def adapter(self) -> AdapterSpec | None:
        """What the engine holds for each adapter that the method opens; ``None``: it opens none."""
        return None


class LoRASettings(MethodSettings):
    """Settings of a method that trains low-rank weights at test time.

    A method whose ``Settings`` derive from these may ask the session for an adapter. The defaults
    are those of FTTT (arXiv 2502.15771).
    """

    lr: float = Field(1e-5, gt=0, description="AdamW's learning rate, constant")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon, added to the root of its variance")
    max_grad_norm: float | None = Field(
        None, gt=0, description="the gradient's norm is clipped to this (never)"
    )
    rank: int = Field(4, ge=1, description="rank of the low-rank weights")
    alpha: float = Field(16.0, gt=0, description="their scale is alpha / rank")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout on the adapter's input, in the train step only"
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        min_length=1,
        description="the linear layers that carry them (all-linear: all of the decoder layers but "
        "the experts of a mixture)",
    )

    def check_model(self, model: Any) -> None:
        """Refuse a model without such layers before its weights are loaded.

        Raises:
            UsageError: it is such.
        """
        from fttt.engine.request import LoRASpec

        spec = self.adapter()
        if isinstance(model, str) and isinstance(spec, LoRASpec):
            from fttt.engine.adapters.lora import target_layers
            from fttt.models.loader import model_outline

            target_layers(model_outline(model), spec)

    def adapter(self) -> AdapterSpec | None:
        """Low-rank weights and their AdamW."""
        from fttt.engine.request import LoRASpec  # late: methods are listed without an engine

        return LoRASpec(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets,
            lr=self.lr,
            eps=self.eps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )


class Watch(TypedDict):
    """Arguments of :meth:`Attempt.train`."""

    divergence: bool
    bound: float | None


class BoundedSettings(LoRASettings):
    """Settings of a method that watches how far from the base model its steps lead."""

    bound: float | None = Field(
        None,
        ge=0,
        description="most that a step may leave the trained tokens' predictions away from the base "
        "model's, mean KL divergence in nats; past it the question's adapter is made fresh again "
        "(0: measured only; by default not even that)",
    )

    @property
    def watch(self) -> Watch:
        """What a train step is asked for."""
        return {"divergence": self.bound is not None, "bound": self.bound or None}


def answer_weights(said: Completion, weights: Sequence[float]) -> tuple[float, ...]:
    """Weights of a text's tokens, without those of its thought.

    The others grow as the mean has fewer tokens.
    """
    skipped = said.thought_tokens
    scale = len(weights) / max(1, len(weights) - skipped)
    return (0.0,) * skipped + tuple(weight * scale for weight in weights[skipped:])


class AttemptSettings(BoundedSettings):
    """Settings of a method whose steps are on the tokens of its own attempts."""

    train_on_thoughts: bool = Field(
        True,
        description="whether the thought of an attempt is trained on too, as policy gradients on "
        "all generated tokens are; else its answer alone",
    )

    def weights(self, attempt: Completion, weight: float) -> float | tuple[float, ...]:
        """The weight of an attempt in a loss: a mean over the tokens that are trained on."""
        if self.whole(attempt):
            return weight
        return self.trained(attempt, [weight] * len(attempt.token_ids))

    def trained(self, attempt: Completion, weights: Sequence[float]) -> tuple[float, ...]:
        """Weights of an attempt's tokens, without those that are not trained on.

        The others grow as the mean has fewer tokens; an attempt without an answer teaches nothing.
        """
        return tuple(weights) if self.whole(attempt) else answer_weights(attempt, weights)

    def whole(self, attempt: Completion) -> bool:
        """Whether all tokens of an attempt are trained on."""
        return self.train_on_thoughts or not attempt.thought_tokens


class Adapter(Protocol):
    """A question's own weights, or those of all questions, and their optimizer; opaque."""


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
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write an answer to the question followed by ``turns``.

        None of them means a fresh answer. User texts that follow the question at once are part of
        its own turn; after that, answers and user texts alternate. Where they do not fit into the
        context, the oldest are left out.

        Args:
            turns: what follows the question.
            before: a system text, and user texts that the question's own turn begins with.
            adapter: the weights to write under; the base model's without.
            temperature: overrides the run's.
        """

    async def search(self, beams: int) -> tuple[Completion, ...]:
        """Write ``beams`` answers to the question by one beam search, the best one first.

        The first is this trial's, the second the next one's, and so on. All of them are written
        before the first verdict, so this trial bears what they cost.
        """

    async def verify(self, completion: Completion) -> Verdict:
        """Judge the trial's answer, once: each verdict is a trial of the budget."""

    async def train(
        self,
        adapter: Adapter,
        examples: Sequence[Example],
        *,
        divergence: bool = False,
        bound: float | None = None,
    ) -> Step:
        """Take one optimizer step on the sum of the examples' losses.

        Where the adapter is shared by all questions the examples are handed in, and the step is
        taken with those of the same trial of the other questions.

        Args:
            adapter: whose weights learn.
            examples: what they learn from; nothing is learned from none.
            divergence: measure, after the step, how far the trained tokens' predictions are from
                the base model's.
            bound: most that it may be, in nats; it is then measured, and past it the question's
                adapter is made fresh again, optimizer included.
        """


class Group(Protocol):
    """Trials that are handed out together."""

    @property
    def trials(self) -> tuple[Attempt, ...]:
        """The trials, as many as the budget grants."""

    @property
    def last(self) -> bool:
        """Whether the budget grants no trial after these."""

    async def attempt(
        self,
        *turns: Turn,
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> tuple[Judged, ...]:
        """Write an answer for each trial at once, and judge them in their order.

        The first success ends the group: what comes after it is not judged and counts as no trial.
        In a group that climbs all are judged.
        """

    async def train(
        self,
        adapter: Adapter,
        examples: Sequence[Example],
        *,
        divergence: bool = False,
        bound: float | None = None,
    ) -> Step:
        """Take one step, as :meth:`Attempt.train` does; it is the last trial's."""


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

    def groups(self, size: int, *, climb: bool = False) -> AsyncIterator[Group]:
        """Trials in groups of ``size``, the last one smaller, until the budget is spent.

        A solved question has no further group, unless it is to ``climb`` to the best score that
        the budget allows.
        """

    def adapter(self) -> AbstractAsyncContextManager[Adapter]:
        """Weights of this question's own, fresh and seeded, given back at the end.

        Those of a method whose adapter is ``shared`` are all questions'. A method that has two open
        at once says so in ``adapters``.
        """

    async def generate(
        self,
        *turns: Turn,
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write something that is no answer (a critique, say): it spends tokens but no trial."""

    async def score(
        self,
        target: Turn,
        *,
        after: tuple[Turn, ...] = (),
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        top_k: int = 0,
    ) -> Scores:
        """Log-probabilities of a target's tokens in a conversation, as in an :class:`Example`.

        With ``top_k`` also those of the likeliest tokens at each place, so that the scores are a
        teacher: a prompt that the student does not see, say.
        """

    async def evidence(self, completion: Completion, verdict: Verdict) -> Judged:
        """What is to be learned from a judged attempt: the two, or what ``--ablate`` puts there.

        A method that learns from this alone, and says so in ``ablations``, can be run with feedback
        that tells nothing. Whether a question is solved is the verdict's own matter.
        """

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
    together: bool = False
    """Whether its trials are independent of one another, verdicts included; of the class or as its
    settings say."""
    fresh: ClassVar[bool] = False
    """Whether every trial asks the question anew and generates nothing else, so that answers may
    be written ahead of their trials while the engine has room; none of them is judged ahead."""
    searches: ClassVar[bool] = False
    """Whether its trials are the beams of one search, whose width only ``trials`` can say."""
    adapters: ClassVar[int] = 1
    """Adapters that a question has open at once, at most."""
    at_once: int = 1
    """Sequences of a question that it asks for at once, a group of trials, say."""
    shared: bool = False
    """Whether one adapter is all questions', of the class or as its settings say. Steps are then
    taken in waves: that of a trial, or of a group, once every question has ended it, in the order
    of the questions."""
    ahead: int = 1
    """Where it is shared: 1 writes a trial under the weights of the wave before the last, so that
    none waits for the slowest, and 0 under those of the last wave."""
    ablations: ClassVar[tuple[Ablation, ...]] = ()
    """What ``--ablate`` may put in the place of the method's feedback; its :meth:`solve` then takes
    what it learns from :meth:`Session.evidence`."""
    needs_checkpoint: ClassVar[bool] = False
    """Whether it runs fine-tuned weights only."""

    def __init__(self, settings: MethodSettings) -> None:  # noqa: B027 - most need nothing
        """Take the settings, an object of ``Settings``; a method that has any keeps them."""

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        """Its longest conversation beside the question, from which the engine's rows are sized.

        A text stands for a user's or a system's, a number for as many tokens of the model's. A
        method that passes turns or texts says here how many it needs; older ones are left out.
        """
        return (max_new_tokens,)

    @abstractmethod
    async def solve(self, question: Question, session: Session) -> None:
        """Try until a trial verifies or the session grants no more."""
