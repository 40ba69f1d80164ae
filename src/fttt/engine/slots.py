"""Places in the engine's stacked weights, one for each question in progress."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from contextlib import AbstractContextManager

from torch.utils.hooks import RemovableHandle

from fttt.engine.batch import Batch
from fttt.engine.handover import handed_over
from fttt.engine.request import AdapterSpec

__all__ = ["Bank", "Slot"]


class Slot:
    """The engine's :class:`fttt.engine.request.AdapterSlot`."""

    def __init__(self, bank: Bank, index: int) -> None:
        self.bank = bank
        self.index = index
        self._open = True

    def close(self) -> None:
        """Give the place back. Calling it twice is harmless."""
        if self._open:
            self._open = False
            self.bank.give(self.index)


class Bank(ABC):
    """All slots of one kind of adapter, hooked into one model's layers."""

    spec: AdapterSpec

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.hooks: list[RemovableHandle] = []
        self._free = deque(range(slots))
        self._waiting: deque[asyncio.Future[int]] = deque()

    @abstractmethod
    def fill(self, index: int, seed: int) -> None:
        """Make a slot as it is before any train step."""

    @abstractmethod
    def applied(self, batch: Batch) -> AbstractContextManager[None]:
        """Add each segment's adapter to the model's layers for one forward pass."""

    async def open(self, seed: int) -> Slot:
        """Wait for a free slot and make it fresh.

        Raises:
            Exception: what :meth:`fail` was given before one came free.
        """
        if self._free:
            index = self._free.popleft()
        else:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            index = await handed_over(future, self.give)
        self.fill(index, seed)
        return Slot(self, index)

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
