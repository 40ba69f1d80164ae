"""Places in the engine's stacked weights, one for each question in progress."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from contextlib import AbstractContextManager

from torch.utils.hooks import RemovableHandle

from fttt.engine.batch import Batch
from fttt.engine.handover import handed_over
from fttt.engine.request import AdapterSlot, AdapterSpec
from fttt.errors import RunError

__all__ = ["Bank", "Slot", "slot_index"]


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


def slot_index(adapter: AdapterSlot | None) -> int:
    """The place of an engine's own slot; -1 for the base model."""
    if adapter is None:
        return -1
    assert isinstance(adapter, Slot)
    return adapter.index


class Bank(ABC):
    """All slots of one kind of adapter, hooked into one model's layers."""

    spec: AdapterSpec

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.hooks: list[RemovableHandle] = []
        self._free = deque(range(slots))
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._versions = [0] * slots
        self._changes = 0

    @abstractmethod
    def fill(self, index: int, seed: int) -> None:
        """Make a slot as it is before any train step: the model's outputs are the base model's."""

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """Make a slot as another one is, with all that its next steps depend on."""

    @abstractmethod
    def applied(self, batch: Batch) -> AbstractContextManager[None]:
        """Add each segment's adapter to the model's layers for one forward pass."""

    async def open(self, seed: int, copy_of: AdapterSlot | None = None) -> Slot:
        """Wait for a free slot and make it fresh, or as another one is then.

        Raises:
            RunError: ``copy_of`` is closed, or a slot of another bank.
            Exception: what :meth:`fail` was given before one came free.
        """
        if copy_of is not None:
            self.index_of(copy_of)
        if self._free:
            index = self._free.popleft()
        else:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            index = await handed_over(future, self.give)
        if copy_of is None:
            self.fill(index, seed)
            self._versions[index] = 0
            return Slot(self, index)
        try:
            source = self.index_of(copy_of)  # which may have been closed in the meantime
        except RunError:
            self.give(index)
            raise
        self.copy(source, index)
        self._versions[index] = self._versions[source]
        return Slot(self, index)

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
        """A number that a slot's weights have to themselves; 0 where outputs are the base model's.

        A slot of -1 is the base model. Copies share the number until one of them is changed.
        """
        return 0 if index < 0 else self._versions[index]

    def changed(self, index: int) -> None:
        """Note that a slot's weights are others now."""
        self._changes += 1
        self._versions[index] = self._changes

    def give(self, index: int) -> None:
        """Hand a slot to whoever waits for one, or keep it free."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(index)
                return
        self._free.append(index)

    def fail(self, error: BaseException) -> None:
        """Answer all that wait for a slot with an error."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def detach(self) -> None:
        """Take the adapters off the model's layers."""
        for hook in self.hooks:
            hook.remove()
