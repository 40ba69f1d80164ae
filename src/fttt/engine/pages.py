"""Who owns which page of the cache, and copies of pages.

A page may have several owners: the samples of one prompt, the turns of one conversation. It is free
once it has none. Owners differ in what may be taken from them, so that it is known at any time how
many pages would come free, were the kept sequences given up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["Pages", "Standing", "copy_pages"]

COPIED = 2**26
"""Bytes of pages that are held while they are copied, unless those of a layer are more."""


class Standing(IntEnum):
    """What may be taken from an owner of pages; what a page is follows its first owner's."""

    RUNNING = 0
    """Nothing."""
    AWAITED = 1
    """A kept sequence that a train step is to read."""
    SPARE = 2
    """A kept sequence that no train step waits for."""
    PROMPT = 3
    """A prompt without a sequence."""
    FREE = 4
    """Of a page without an owner."""


class Pages:
    """Counts of each page's owners."""

    def __init__(self, count: int, fixed: int = 0) -> None:
        """All of them are free, but ``fixed`` ones behind them, which have an owner for ever."""
        self._free = list(range(count))
        self._owners = [[int(page >= count), 0, 0, 0] for page in range(count + fixed)]
        self._count = [fixed, 0, 0, 0, count]

    @property
    def free(self) -> int:
        """Pages without an owner, or only held for a prompt."""
        return self.vacant + self._count[Standing.PROMPT]

    @property
    def vacant(self) -> int:
        """Pages without an owner."""
        return self._count[Standing.FREE]

    def obtainable(self, *, awaited: bool) -> int:
        """Pages that are free or would be, were all spare (and ``awaited``) sequences given up."""
        own = self.free + self._count[Standing.SPARE]
        return own + self._count[Standing.AWAITED] if awaited else own

    def take(self) -> int:
        """Take a free page for a running sequence: low ones first, so that a CPU step reads a
        short prefix of them.
        """
        page = heapq.heappop(self._free)
        self._change(page, Standing.RUNNING, 1)
        return page

    def add(self, pages: Iterable[int], standing: Standing) -> None:
        """Let pages have one owner more."""
        for page in pages:
            self._change(page, standing, 1)

    def remove(self, pages: Iterable[int], standing: Standing) -> None:
        """Take an owner off pages; those without any are free."""
        for page in pages:
            if self._change(page, standing, -1) is Standing.FREE:
                heapq.heappush(self._free, page)

    def alone(self, page: int) -> bool:
        """Whether a page has one owner only."""
        return sum(self._owners[page]) == 1

    def runs(self, page: int) -> bool:
        """Whether a running sequence has a page."""
        return self._owners[page][Standing.RUNNING] > 0

    def _change(self, page: int, standing: Standing, by: int) -> Standing:
        owners = self._owners[page]
        before = self._of(owners)
        owners[standing] += by
        now = self._of(owners)
        if now is not before:
            self._count[before] -= 1
            self._count[now] += 1
        return now

    @staticmethod
    def _of(owners: list[int]) -> Standing:
        running, awaited, spare, prompt = owners
        if running:
            return Standing.RUNNING
        if awaited:
            return Standing.AWAITED
        if spare:
            return Standing.SPARE
        return Standing.PROMPT if prompt else Standing.FREE


def copy_pages(stack: Tensor, source_B: Tensor, target_B: Tensor, most: int) -> None:
    """Copy the first positions of pages, ``[layers, pages, kv_heads, page, dim]``.

    As many layers at once as are held meanwhile: launching a copy for each takes a millisecond, for
    one page as for hundreds.
    """
    layers, pages = stack.shape[:2]
    flat = stack.flatten(0, 1)
    several = max(1, COPIED // (len(target_B) * flat[0].nbytes))
    for part in torch.arange(layers, device=stack.device)[:, None].split(several):
        source_N, target_N = ((part * pages + at_B).flatten() for at_B in (source_B, target_B))
        flat[target_N, :, :most] = flat[source_N, :, :most]
