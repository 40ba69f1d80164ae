"""Prompts that rows of the cache hold whole, so that another sample of one need not compute it.

A sequence that follows a held prompt takes over the row of a prompt without a sequence, or forks
another's row: it shares the full pages and has a copy of the rest. All tokens of the prompt but the
last are there then; the last is run in a decode step, which draws what a prefill pass would have.
When the last sequence of a prompt ends, its row holds the prompt until somebody needs the place: it
counts as free, and is evicted before any kept row.

Keys and values are those of the weights that wrote them, so a prompt has the version of these. No
row is known of a cache whose first tokens do not serve any sequence (:attr:`KVCache.divisible`).
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from fttt.engine.pages import Standing

if TYPE_CHECKING:
    from fttt.engine.cache import KVCache

__all__ = ["HeldPrompts", "Prompt", "common_beginning"]


class Prompt(NamedTuple):
    """Tokens as some weights read them."""

    slot: int
    """The adapter's; -1: the base model."""
    version: int
    """Of its weights, as the bank numbers them."""
    token_ids: tuple[int, ...]


class HeldPrompts:
    """The rows that hold each prompt: running ones, kept ones, and at most one that is idle."""

    def __init__(self, cache: KVCache) -> None:
        """No row holds one yet."""
        self._cache: KVCache = weakref.proxy(cache)  # whose part this is
        self._rows_of: dict[Prompt, dict[int, None]] = {}
        self._prompt_of: dict[int, Prompt] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Rows without a sequence; that which ended first comes first."""

    @property
    def idle(self) -> int:
        """Rows that hold a prompt without a sequence."""
        return len(self._idle)

    @property
    def oldest(self) -> float:
        """The row of that which has had no sequence for longest; infinite where there is none."""
        return next(iter(self._idle), inf)

    def note(self, row: int, prompt: Prompt) -> None:
        """Let a running row hold a prompt, as soon as the next pass is over, until it is given."""
        if self._cache.divisible:
            self._prompt_of[row] = prompt
            self._rows_of.setdefault(prompt, {})[row] = None

    def forget(self, row: int) -> None:
        """A row is about to hold something else."""
        prompt = self._prompt_of.pop(row, None)
        if prompt is not None:
            rows = self._rows_of[prompt]
            del rows[row]
            if not rows:
                del self._rows_of[prompt]

    def pages_for(self, prompt: Prompt, tokens: int) -> int | None:
        """Pages of a sequence of so many tokens after a prompt that no running one has yet.

        ``None``: no row holds the prompt.
        """
        source = self._source(prompt)
        if source is None:
            return None
        return self._cache.pages_for(source, len(prompt.token_ids) - 1, tokens)

    def begin(self, prompt: Prompt, tokens: int) -> int | None:
        """A running row with all tokens of a prompt but the last, and pages for so many.

        ``None``: no row holds the prompt, or there are too few pages.
        """
        source, held = self._source(prompt), len(prompt.token_ids) - 1
        if source is None:
            return None
        if source not in self._idle:
            row = self._cache.branch(source, held, tokens)
            if row is not None:
                self.note(row, prompt)
            return row
        self._wake(source)
        if self._cache.cut(source, held) and self._cache.extend(source, tokens):
            return source
        self._cache.give(source)
        return None

    def release(self, row: int) -> None:
        """Give a running row back, but for its prompt where no other row holds that."""
        prompt = self._prompt_of.get(row)
        last = prompt is not None and len(self._rows_of[prompt]) == 1
        if prompt is None or not last or not self._cache.cut(row, len(prompt.token_ids)):
            self._cache.give(row)
            return
        self._cache.stand(row, Standing.RUNNING, Standing.PROMPT)
        self._idle[row] = None

    def evict(self) -> None:
        """Free the oldest's row."""
        row = next(iter(self._idle))
        self._wake(row)
        self._cache.give(row)

    def _source(self, prompt: Prompt) -> int | None:
        return next(iter(self._rows_of.get(prompt, ())), None)

    def _wake(self, row: int) -> None:
        del self._idle[row]
        self._cache.stand(row, Standing.PROMPT, Standing.RUNNING)


def common_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first tokens are the same, found by halves, whose comparison is fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
