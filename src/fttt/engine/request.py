"""What the engine is asked for, and what it answers.

Everything is token ids and numbers: text, chat templates and verdicts live above. Requests are
plain data, so that a fake engine (:mod:`fttt.testing`) can answer them without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fttt.types import FinishReason, Teacher, Text

if TYPE_CHECKING:
    from fttt.engine.adapters.delta import Delta, Factors

__all__ = [
    "AdapterSlot",
    "AdapterSpec",
    "BeamRequest",
    "Engine",
    "GenerateRequest",
    "Generation",
    "Kept",
    "Lesson",
    "LoRASpec",
    "ScoreRequest",
    "Scored",
    "Target",
    "ThoughtBudget",
    "TrainRequest",
    "Trained",
    "WeightDeltaSpec",
]


@dataclass(frozen=True, slots=True)
class LoRASpec:
    """Per-question low-rank weights and the AdamW that trains them (Hu et al. 2021).

    The defaults are those of FTTT (arXiv 2502.15771): rank 4, alpha 16, on the query and value
    projections of all layers.
    """

    rank: int = 4
    alpha: float = 16.0
    dropout: float = 0.05
    """On the adapter's input, in the train step only."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names (last part) of the linear layers that carry the adapter, or ``("all-linear",)``: all
    of the decoder layers."""
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    """Most that the norm of a question's whole gradient may be; a larger one is scaled down to it
    (``torch.nn.utils.clip_grad_norm_``)."""

    def learns_from(self, *, adapted: bool) -> bool:
        """Whether steps read what the adapter wrote, or what the base model did: the adapter's."""
        return adapted


@dataclass(frozen=True, slots=True)
class WeightDeltaSpec:
    """A change of a few weights that is predicted from an attempt, not learned step by step.

    A train step takes the factors of its request's loss and asks ``predict`` for the change.
    """

    layers: tuple[str, ...]
    """Full names of the linear layers whose weights are changed."""
    predict: Callable[[Factors], Mapping[str, Delta]] = field(compare=False, repr=False)
    """From the factors of Q attempts to a change of each layer's weight, ``[Q, out, in]`` or
    factored. Attempts may come in several calls."""
    accumulate: bool
    """Whether a change is added to the one before, under which the factors are then taken; else it
    takes its place, and the factors are those of the model as it is."""
    key: str
    """Names what ``predict`` does: specs of the same key and layers are the same."""

    def learns_from(self, *, adapted: bool) -> bool:
        """Whether steps read what the change wrote, or what the base model did.

        The base model's; the change's too where another is added to it.
        """
        return self.accumulate or not adapted


AdapterSpec = LoRASpec | WeightDeltaSpec


class AdapterSlot(Protocol):
    """A place in the engine's stacked weights, held by one question until it is closed."""

    def close(self) -> None:
        """Give the place back. Calling it twice is harmless."""


class Kept(Protocol):
    """What the engine's cache holds of a finished sequence: keys and values, first of all."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and completion, as the model saw them."""

    def close(self) -> None:
        """Free the cache row. Calling it twice is harmless."""


@dataclass(frozen=True, slots=True)
class ThoughtBudget:
    """How long a thought may be, and what closes it then.

    The closing tokens are put into the sequence as if they had been drawn; the draws after them are
    those of their places.
    """

    tokens: int
    """New tokens that the sequence may have before its thought is over."""
    opening: tuple[int, ...]
    """What opens a thought; empty where the prompt has opened it."""
    mark: tuple[int, ...]
    """With what a thought is over."""
    closing: tuple[int, ...]
    """What is written in its place; it ends with the mark, or with space behind it."""

    def closes(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """What has to follow these new tokens; nothing where no thought is open.

        A part of the closing that has been written already is not written twice.
        """
        if not _holds(token_ids, self.opening) or _holds(token_ids, self.mark):
            return ()
        begun = range(min(len(self.closing) - 1, len(token_ids)), 0, -1)
        ends = (n for n in begun if tuple(token_ids[-n:]) == self.closing[:n])
        return self.closing[next(ends, 0) :]


def _holds(token_ids: Sequence[int], part: tuple[int, ...]) -> bool:
    places = range(len(token_ids) - len(part) + 1)
    return any(tuple(token_ids[n : n + len(part)]) == part for n in places)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One sequence to continue."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    noise_key: int = 0
    """Names the random stream: the same key draws the same tokens whoever shares the batch."""
    stop_ids: tuple[int, ...] = ()
    adapter: AdapterSlot | None = None
    keep: bool = False
    """Hold keys and values after the end (``Generation.kept``) until they are closed."""
    awaited: bool = True
    """Whether a train step may come for what is kept, so that such rows are evicted last."""
    reuse: Kept | None = None
    """A kept sequence that begins as the prompt does, the last turn of a conversation, say. Where
    neither has an adapter and most of the prompt is still held, its pages are shared (its row
    becomes this request's where no other is free) and only the rest of the prompt is computed. It
    is still to be closed."""
    logprobs: bool = False
    top_k: int = 0
    """Draw from so many of the most probable tokens; 0: from all."""
    min_p: float = 0.0
    """Draw from tokens at least so many times as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Divides the positive scores of tokens that stand in the sequence, and multiplies others."""
    messages: tuple[Text, ...] = ()
    """The conversation in place of ``prompt_ids``, for a server that has template and tokenizer."""
    template_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of that template."""
    thought: ThoughtBudget | None = None
    """Of a model that thinks before it answers; ``None``: the thought may take all tokens."""


@dataclass(frozen=True, slots=True)
class BeamRequest:
    """One prompt to continue by a beam search of the base model."""

    prompt_ids: tuple[int, ...]
    beams: int
    """How many sequences are held at each step, and how many come out."""
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of a :class:`GenerateRequest`, or one beam of a :class:`BeamRequest`."""

    token_ids: tuple[int, ...]
    """The new tokens, the stop token included where one ended it."""
    finish_reason: FinishReason
    seconds: float
    """From the request to the answer."""
    kept: Kept | None = None
    logprobs: tuple[float, ...] | None = None
    text: str | None = None
    """What a server wrote, which may not tell its ids; else the ids say it."""
    thought: str | None = None
    """What it says was thought before that; else the ids say it."""
    prompt_tokens: int | None = None
    """What a server counted; else the request says it."""
    generated_tokens: int | None = None
    """Likewise; else there is an id for each."""


@dataclass(frozen=True, slots=True)
class Target:
    """Tokens that follow a context, and how much each one counts.

    The loss is ``sum_t weights[t] * L_t``; ``p`` is the model's prediction of a place from
    everything before it.
    """

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    """Of each token; 0 leaves it out, a negative one pushes it down."""
    after: int | None = None
    """How many of the context's tokens come before the first target token (``None``: all of them).
    No gradient reaches the keys and values of those, so a smaller number lets the loss reach into
    the attempt's own tokens by naming them again in ``token_ids``."""
    teacher: Teacher | None = None
    """Where given, ``L_t = -sum_k w_k log p_k - tail log(1 - sum_k p_k)`` in its place."""
    form: Literal["nll", "unlikelihood"] = "nll"
    """``L_t`` of a target without a teacher: ``-log p`` of the token, or ``-log(1 - p)``."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A context, and what is learned from the tokens that follow it."""

    context: Kept | tuple[int, ...]
    """A kept sequence, or token ids. Its keys and values are those of the adapter as it is: they
    are read where they are held and were written under the same weights, and computed elsewhere. A
    predicted change of weights takes only what the layers below the edited ones gave, so its
    context may have been written with any adapter or without."""
    targets: tuple[Target, ...]

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The context's tokens."""
        return self.context if isinstance(self.context, tuple) else self.context.token_ids


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One step of one adapter on the sum of the losses of all targets of all lessons."""

    adapter: AdapterSlot
    lessons: tuple[Lesson, ...]

    @property
    def targets(self) -> list[Target]:
        """Those of all lessons, in order."""
        return [target for lesson in self.lessons for target in lesson.targets]


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a :class:`TrainRequest`."""

    loss: float
    """Before the step."""
    losses: tuple[float, ...]
    """The same, target by target, in the order of lessons and targets."""
    trained_tokens: int
    """Tokens with a non-zero weight."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Tokens whose log-probabilities are asked for, and the context that they follow."""

    context: Kept | tuple[int, ...]
    """A kept sequence, whose row is read where it was written under the same weights, or ids."""
    token_ids: tuple[int, ...]
    adapter: AdapterSlot | None = None
    """Its dropout is off."""
    top_k: int = 0
    """How many of the likeliest tokens are wanted at each place."""
    after: int | None = None
    """As in :class:`Target`."""

    @property
    def sequence(self) -> tuple[int, ...]:
        """What comes before the scored tokens, and they."""
        context = self.context if isinstance(self.context, tuple) else self.context.token_ids
        return context[: self.after] + self.token_ids

    @property
    def tokens(self) -> int:
        """Of the whole sequence."""
        return len(self.sequence)


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of a :class:`ScoreRequest`; all at temperature 1."""

    logprobs: tuple[float, ...]
    """Of each token."""
    top_ids: tuple[tuple[int, ...], ...]
    """``[T][k]``, the likeliest first; empty where none were asked for."""
    top_logprobs: tuple[tuple[float, ...], ...]
    seconds: float


class Engine(Protocol):
    """Batches the requests of many questions. All calls belong to one event loop."""

    @property
    def max_length(self) -> int:
        """The longest sequence, prompt and completion, that a row can hold, in tokens."""

    @property
    def idle(self) -> int:
        """Sequences that could run beside those that run or wait."""

    @property
    def adapters(self) -> int:
        """How many adapters can be open at once."""

    async def generate(self, request: GenerateRequest) -> Generation:
        """Continue one sequence."""

    async def beam(self, request: BeamRequest) -> tuple[Generation, ...]:
        """Search; the beams come best first, by log-probability a token."""

    async def train(self, request: TrainRequest) -> Trained:
        """Take one step of one adapter."""

    async def score(self, request: ScoreRequest) -> Scored:
        """Take the log-probabilities of given tokens, and of the likeliest at their places."""

    async def open_adapter(
        self, spec: AdapterSpec, seed: int, copy_of: AdapterSlot | None = None
    ) -> AdapterSlot:
        """Wait for a free slot and make it fresh; what is drawn is drawn from ``seed``.

        With ``copy_of`` it begins as that slot is then: weights, optimizer, and what its dropout
        draws next.
        """

    async def close(self) -> None:
        """Stop, and fail whatever is still waiting."""
