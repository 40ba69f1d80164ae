"""What all kinds of adapters share: slots, the bank that holds them, and their memory.

A kind is one file beside this one. It owns its bank (the stacked weights and how they are added to
a model's layers), what it takes of the memory, and how its train requests are carried out.
"""

from __future__ import annotations

import asyncio
import difflib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fttt.engine.adapters.draws import DrawnRow, RowDraws
from fttt.engine.batch import Batch, Segment, decoder_of
from fttt.engine.request import AdapterSlot, AdapterSpec, TrainRequest
from fttt.errors import RunError, UsageError, first_line
from fttt.models.quantized import quantized_layers

if TYPE_CHECKING:
    from fttt.engine.cache import KVCache
    from fttt.engine.memory_plan import MemoryPlan
    from fttt.engine.scheduler import LessonQueue, TrainJob

__all__ = [
    "AdapterNeeds",
    "Bank",
    "Fill",
    "Learned",
    "Learner",
    "Slot",
    "applied",
    "check_gradients",
    "decoder_layers",
    "handed_over",
    "layers_by_name",
    "slot_index",
]

GRADIENT_TOLERANCE = 0.1
"""Share of a product that rounding may change: of inputs to 8 bits, say."""

Fill = Callable[[Sequence[Segment]], None]
"""Runs segments into their cache rows."""
Learned = tuple["TrainJob", tuple[float, ...]]
"""A finished request, and its targets' losses before the step."""


class Learner(Protocol):
    """Runs train requests."""

    def check(self, request: TrainRequest) -> None:
        """Refuse a request that this kind of adapter cannot learn from.

        Raises:
            UsageError: the request is such.
        """

    def reads(self, *, adapted: bool) -> bool:
        """Whether a step reads the cache rows of sequences that were (or were not) adapted."""

    def due(self, queue: LessonQueue) -> tuple[int, bool]:
        """How many requests could run now, and whether they fill a pass.

        None could where the first one must wait.
        """

    def run(self, queue: LessonQueue) -> list[Learned]:
        """Run as many requests as one pass holds; after an error they stay queued."""


@dataclass(frozen=True, slots=True)
class AdapterNeeds:
    """Memory of one kind of adapter, in bytes, and the sizes of its train passes."""

    slot: int
    """Of an open adapter."""
    token: int
    """Of a token of a train pass."""
    long_token: int
    """Of a token of a sequence that is longer than a pass; 0 where each must fit one."""
    question: int
    """Of each question of a train step, beside its tokens."""
    questions: int
    """Most that are taken in one step."""
    share: float
    """Of a GPU's memory that a train pass may take where it holds more tokens than it must."""
    hidden: int = 0
    """Width of the hidden states that are kept of each token."""
    keeps: bool = True
    """Whether steps read the rows of finished sequences."""
    captures: bool = False
    """Whether passes of short targets can be captured (:mod:`fttt.engine.captured_pass`)."""


class Slot:
    """The engine's :class:`fttt.engine.request.AdapterSlot`."""

    def __init__(self, bank: Bank, index: int) -> None:
        self.bank = bank
        self.index = index
        self.is_open = True

    def close(self) -> None:
        """Give the place back. Calling it twice is harmless."""
        if self.is_open:
            self.is_open = False
            self.bank.give(self.index)


def applied(bank: Bank | None, batch: Batch) -> AbstractContextManager[None]:
    """Add each segment's adapter for one forward pass, where there are any."""
    return nullcontext() if bank is None else bank.applied(batch)


def slot_index(adapter: AdapterSlot | None) -> int:
    """The place of an engine's own slot; -1 for the base model."""
    if adapter is None:
        return -1
    assert isinstance(adapter, Slot)
    return adapter.index


class Bank(ABC):
    """All slots of one kind of adapter, hooked into one model's layers."""

    spec: AdapterSpec
    draws: RowDraws | None = None
    """Draws what fresh slots begin with, where that takes long."""

    @staticmethod
    @abstractmethod
    def needs(model: Any, spec: Any, layer_bytes: int) -> AdapterNeeds:
        """What adapters of a spec take, beside a decoder layer's ``layer_bytes`` a token.

        Raises:
            UsageError: a layer that the model does not have.
        """

    @abstractmethod
    def learner(self, cache: KVCache, plan: MemoryPlan, fill: Fill) -> Learner:
        """The learner of these adapters' train requests; ``fill`` fills cache rows."""

    def __init__(self, model: Any, spec: AdapterSpec, slots: int, device: torch.device) -> None:
        """Take the memory of so many slots.

        Raises:
            UsageError: a layer that the model does not have.
        """
        self.model = model
        self.hooks: list[RemovableHandle] = []
        self._free = deque(range(slots))
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._versions = [0] * slots
        self._changes = 0

    @abstractmethod
    def fill(self, index: int, seed: int, row: DrawnRow | None = None) -> None:
        """Reset a slot to its state before any train step, with the base model's outputs.

        ``row`` is what ``draws`` has drawn by ``seed``, and is given back; without one it is drawn
        now.
        """

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """Copy a slot to another one, with all that its next steps depend on."""

    @abstractmethod
    def applied(self, batch: Batch) -> AbstractContextManager[None]:
        """Add each segment's adapter to the model's layers for one forward pass."""

    async def open(self, seed: int, copy_of: AdapterSlot | None = None) -> Slot:
        """Wait for a free slot and reset it, or make it a copy of another one.

        Raises:
            RunError: ``copy_of`` is closed, or a slot of another bank.
            Exception: what :meth:`fail` was given before one came free.
        """
        if copy_of is None:
            return await self._open_fresh(seed)
        self.index_of(copy_of)
        index = await self._place()
        try:
            source = self.index_of(copy_of)  # which may have been closed in the meantime
        except RunError:
            self.give(index)
            raise
        self.copy(source, index)
        self._versions[index] = self._versions[source]
        return Slot(self, index)

    async def _open_fresh(self, seed: int) -> Slot:
        drawing = self.draws.ask(seed) if self.draws is not None else None  # while it waits
        try:
            index = await self._place()
        except BaseException:
            if drawing is not None:
                drawing.drop()
            raise
        try:
            row = await drawing.row() if drawing is not None else None
        except BaseException:
            self.give(index)
            raise
        self.fill(index, seed, row)
        self._versions[index] = 0
        return Slot(self, index)

    async def _place(self) -> int:
        """Wait for a free place."""
        if self._free:
            return self._free.popleft()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await handed_over(future, self.give)

    def index_of(self, slot: AdapterSlot) -> int:
        """The place of an open slot.

        Raises:
            RunError: it is closed, or of another bank.
        """
        if not isinstance(slot, Slot) or slot.bank is not self:
            raise RunError(f"{slot!r} is not an adapter of this engine; open one with it.")
        if not slot.is_open:
            raise RunError("The adapter was closed; open another one.")
        return slot.index

    def version(self, index: int) -> int:
        """A number of a slot's present weights; 0 where the outputs are the base model's.

        A slot of -1 is the base model. Copies share the number until one of them is changed.
        """
        return 0 if index < 0 else self._versions[index]

    def changed(self, index: int) -> None:
        """Give a slot's weights a new version number, since they changed."""
        self._changes += 1
        self._versions[index] = self._changes

    def give(self, index: int) -> None:
        """Hand a slot to the next request that waits for one, or keep it free."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(index)
                return
        self._free.append(index)

    def fail(self, error: BaseException) -> None:
        """Answer all requests that wait for a slot, or for what it begins with, with an error."""
        if self.draws is not None:
            self.draws.fail(error)
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def detach(self) -> None:
        """Take the adapters off the model's layers."""
        if self.draws is not None:
            self.draws.close()
        for hook in self.hooks:
            hook.remove()


def layers_by_name(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers of these full names.

    Raises:
        UsageError: a name that no linear layer of the model has.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name in names:
        if name not in linear:
            near = difflib.get_close_matches(name, linear, n=3) or list(linear)[:3]
            raise UsageError(
                f"No linear layer {name!r} in this model; near it are {', '.join(near)}."
            )
    return {name: linear[name] for name in names}


def check_gradients(model: Any) -> None:
    """Refuse a model with quantised layers through which no adapter below them would learn.

    A library's product may have no gradient, or a wrong one, without saying so. One layer of each
    kind is held against the definition: ``<v, W d> = <Wᵀ v, d>``.

    Raises:
        UsageError: it is such.
    """
    kinds: dict[tuple[type, type], nn.Linear] = {}
    for layer in quantized_layers(model):
        kinds.setdefault((type(layer), type(layer.weight)), layer)
    generator = torch.Generator().manual_seed(0)
    for layer in kinds.values():
        x_RI, d_RI, v_RO = (
            torch.randn(16, size, generator=generator).to(model.device, model.dtype)
            for size in (layer.in_features, layer.in_features, layer.out_features)
        )
        try:
            with torch.enable_grad():
                out_RO = layer(x_RI.requires_grad_())
                (back_RI,) = torch.autograd.grad(out_RO, x_RI, v_RO)
            ahead_RO = layer(d_RI) - layer(torch.zeros_like(d_RI))
            forward_R = (v_RO.double() * ahead_RO.double()).sum(-1)
            backward_R = (back_RI.double() * d_RI.double()).sum(-1)
            far = float((forward_R - backward_R).norm() / forward_R.norm())
            why = None if far < GRADIENT_TOLERANCE else f"it is {far:.0%} away"
        except RuntimeError as error:  # a product without a gradient at all
            why = first_line(error)
        if why is not None:
            raise UsageError(
                f"The layers of kind {type(layer).__name__} of this model give no right gradient "
                f"({why}), so nothing can be learned through them; take a method that learns "
                "nothing, as best-of-n, or the model in full precision."
            )


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of a model's decoder, in order; none where they are no plain list."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (m for m in decoder_of(model).modules() if isinstance(m, nn.ModuleList))
    return list(next((layers for layers in lists if len(layers) == count), ()))


T = TypeVar("T")


async def handed_over(future: asyncio.Future[T], give_back: Callable[[T], None]) -> T:
    """Wait for a future; ``give_back`` releases its result where the wait is cancelled.

    A future that is cancelled never holds anything. But a task that is cancelled after its future
    was filled, and before its own next turn, never sees what it was given.
    """
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            give_back(future.result())
        raise
