"""What the engine is asked for, and what it answers.

Everything is token ids and numbers: text, chat templates and verdicts live above. Requests are
plain data, so that a fake engine (:mod:`fttt.testing`) can answer them without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fttt.types import FinishReason

if TYPE_CHECKING:
    from fttt.engine.factors import Delta, Factors

__all__ = [
    "AdapterSlot",
    "AdapterSpec",
    "BeamRequest",
    "Engine",
    "GenerateRequest",
    "Generation",
    "Kept",
    "LoRASpec",
    "Target",
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
    """Names (last part) of the linear layers that carry the adapter."""
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

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
        """Let the cache go. Calling it twice is harmless."""


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
    """Whether a train step may come for what is kept, so that rows are taken back there last."""
    reuse: Kept | None = None
    """A kept sequence that begins as the prompt does, the last turn of a conversation, say. Where
    neither has an adapter and most of the prompt is still held, its row becomes this request's and
    only the rest of the prompt is computed."""
    logprobs: bool = False
    top_k: int = 0
    """Draw from so many of the most probable tokens; 0: from all."""
    min_p: float = 0.0
    """Draw from tokens at least so many times as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Divides the positive scores of tokens that stand in the sequence, and multiplies others."""


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


@dataclass(frozen=True, slots=True)
class Target:
    """Tokens that follow a context, and how much each one counts.

    The loss is ``sum_t weights[t] * CE_t``, where ``CE_t`` is the cross-entropy of the model's
    prediction of ``token_ids[t]`` from everything before it. ``after`` counts the tokens of the
    context that come before the first target token (``None``: all of them); no gradient reaches
    the keys and values of those, so a smaller ``after`` lets the loss reach into the attempt's own
    tokens by naming them again in ``token_ids``.
    """

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    after: int | None = None
    teacher_ids: Sequence[Sequence[int]] | None = None
    """``[tokens, k]``: where given, ``CE_t`` is taken against this distribution instead."""
    teacher_logprobs: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One step of one question's own weights on the sum of its targets' losses."""

    adapter: AdapterSlot
    context: Kept | tuple[int, ...]
    """A kept sequence, or token ids that the engine runs under the adapter as it is. A predicted
    change of weights takes from a kept one only what the layers below the edited ones gave, so it
    may have been written with any adapter or without."""
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a :class:`TrainRequest`."""

    loss: float
    """Before the step."""
    losses: tuple[float, ...]
    """The same, target by target."""
    trained_tokens: int
    """Tokens with a non-zero weight."""
    seconds: float


class Engine(Protocol):
    """Batches the requests of many questions. All calls belong to one event loop."""

    @property
    def max_length(self) -> int:
        """The longest sequence, prompt and completion, that a row can hold, in tokens."""

    @property
    def idle(self) -> int:
        """Sequences that could run beside those that run or wait."""

    async def generate(self, request: GenerateRequest) -> Generation:
        """Continue one sequence."""

    async def beam(self, request: BeamRequest) -> tuple[Generation, ...]:
        """Search; the beams come best first, by log-probability a token."""

    async def train(self, request: TrainRequest) -> Trained:
        """Take one step of one adapter."""

    async def open_adapter(self, spec: AdapterSpec, seed: int) -> AdapterSlot:
        """Wait for a free slot and make it fresh; what is drawn is drawn from ``seed``."""

    async def close(self) -> None:
        """Stop, and fail whatever is still waiting."""
