"""What the layers below the first edited one gave while a sequence was written, kept for its step.

They are the base model's, whatever adapter the sequence was written under, so what they give for
its tokens is the same when a train step reads them again. It is kept beside keys and values, and
the step computes it only for the tokens that follow.

Axes: N packed tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.request import Kept
from fttt.engine.upper import Upper

__all__ = ["Below"]


class Below:
    """Writes hidden states into the rows of a cache, and lets train passes begin with them."""

    def __init__(self, upper: Upper, cache: KVCache) -> None:
        """Write from now on, until the hook is removed."""
        self._upper, self._cache = upper, cache
        self.hook = upper.reached(self._write)

    @contextmanager
    def given(
        self, sequences: Sequence[tuple[int, ...]], contexts: Sequence[Kept | tuple[int, ...]]
    ) -> Iterator[None]:
        """Let passes over packed sequences begin above; the layers below run here, where needed.

        Args:
            sequences: token ids.
            contexts: what each begins as: a kept sequence, whose row is read while it has one and
                stays its owner's, or token ids.
        """
        held = [
            _held_tokens(context, ids) for context, ids in zip(contexts, sequences, strict=True)
        ]
        found: dict[int, Tensor] = {}
        # Those that begin anew run apart, since their attention needs no mask.
        for begins in (True, False):
            part = [n for n, (_, past) in enumerate(held) if (past == 0) is begins]
            if part:
                found.update(self._run(part, [sequences[n] for n in part], [held[n] for n in part]))
        with self._upper.given(torch.cat([found[n] for n in range(len(held))])):
            yield

    def _run(
        self,
        numbers: Sequence[int],
        sequences: Sequence[tuple[int, ...]],
        held: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[int, Tensor]]:
        """All hidden states of each sequence: those in its row, and the others."""
        cache = self._cache
        assert cache.hidden is not None
        segments = [
            Segment(ids[past:], row, past) for ids, (row, past) in zip(sequences, held, strict=True)
        ]
        batch = Batch.pack("train", segments, cache)
        fresh = self._upper.hidden(batch).split(batch.lengths)
        for n, (row, past), fresh_ND in zip(numbers, held, fresh, strict=True):
            old_ND = cache.hidden[row, cache.prefix : cache.prefix + past]
            yield n, torch.cat([old_ND, fresh_ND]) if past else fresh_ND

    def _write(self, batch: Batch, hidden_ND: Tensor) -> None:
        """As attention writes keys and values; also within a captured decode step."""
        hidden = self._cache.hidden
        if batch.mode != "train" and hidden is not None:
            hidden[batch.row_N, batch.position_N] = hidden_ND.to(hidden.dtype)


def _held_tokens(context: Kept | tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, int]:
    """The row that holds a sequence's first tokens, and how many; one at least is left to run."""
    if not isinstance(context, KeptRow) or context.row is None or not context.serves(len(ids)):
        return 0, 0
    return context.row, context.shared(ids)
