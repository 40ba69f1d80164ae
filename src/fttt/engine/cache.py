"""Keys and values of running and kept sequences, one row each.

A row holds one sequence from its first token on, ``capacity`` tokens at most, and belongs to one
owner at a time. Where the model has a prefix, each row begins with its keys and values, written
once; whoever names a place in a row counts the sequence's own tokens, and :class:`Batch` adds the
prefix. Rows that only wait for a train step or for the next turn may be taken back when no other is
free; their tokens are then computed again.

Where only upper layers learn, a row also has what the first of them was given at each token
(:mod:`fttt.engine.below`); where layers carry a state, it has theirs (:mod:`fttt.engine.states`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fttt.engine.heads import Heads, read_heads
from fttt.engine.rotary import edge_of
from fttt.engine.states import Mixers, States
from fttt.models.loader import Prefix

__all__ = ["KVCache", "KeptRow"]


class KVCache:
    """Stacked rows of keys and values.

    ``keys[layer]`` and ``values[layer]`` are ``[rows + 1, kv_heads, capacity, dim]`` of the layer's
    own heads and dimensions, the same tensors where layers share them; ``hidden``, where it is
    wanted, is ``[rows + 1, capacity, width]``. The last row takes what the unused lanes of a
    captured decode step write.
    """

    def __init__(
        self,
        *,
        rows: int,
        capacity: int,
        heads: Mapping[int, Heads],
        dtype: torch.dtype,
        device: torch.device,
        prefix: Prefix | None = None,
        hidden: int = 0,
        states: States | None = None,
        edge: int | None = None,
    ) -> None:
        """Take the memory; ``hidden`` is the width of the hidden states that are kept, if any."""
        self.rows = rows
        self.capacity = capacity
        self.device = device
        self.edge = edge
        """Positions up to which a row's keys serve a sequence that is no longer; past it they are
        others (:mod:`fttt.engine.rotary`)."""
        self.states = states
        """Of layers that carry one; ``None`` where there are none."""
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._own: list[Tensor] = []
        for layer, own in heads.items():
            if own.owner != layer:
                self.keys[layer], self.values[layer] = self.keys[own.owner], self.values[own.owner]
                continue
            for held, dim in ((self.keys, own.key_dim), (self.values, own.value_dim)):
                shape = (rows + 1, own.kv_heads, capacity, dim)
                held[layer] = torch.zeros(shape, dtype=dtype, device=device)
                self._own.append(held[layer])
        self.hidden: Tensor | None = None
        if hidden:
            self.hidden = torch.zeros(rows + 1, capacity, hidden, dtype=dtype, device=device)
        self.prefix = prefix.length if prefix else 0
        """P: positions at the start of every row that belong to no sequence."""
        if prefix:
            for layer in heads:
                self.keys[layer][:, :, : self.prefix] = prefix.keys[layer]
                self.values[layer][:, :, : self.prefix] = prefix.values[layer]
        self._free = list(range(rows - 1, -1, -1))
        self._kept: OrderedDict[int, KeptRow] = OrderedDict()

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        rows: int,
        capacity: int,
        prefix: Prefix | None = None,
        hidden: int = 0,
        dtype: torch.dtype | None = None,
        mixers: Mixers | None = None,
    ) -> KVCache:
        """A cache of a model's own shape, on its device, in its precision or another.

        Without ``mixers`` it holds no state of theirs, and passes begin with none.
        """
        return cls(
            rows=rows,
            capacity=capacity,
            heads=read_heads(model),
            dtype=dtype or model.dtype,
            device=model.device,
            prefix=prefix,
            hidden=hidden,
            edge=edge_of(model),
            states=States(tuple(mixers), rows, model.device) if mixers else None,
        )

    @property
    def free(self) -> int:
        """Rows that hold nothing."""
        return len(self._free)

    @property
    def kept(self) -> int:
        """Rows that :meth:`take` would take back when no other is free."""
        return len(self._kept)

    @property
    def spare(self) -> int:
        """Those of them that it would take back first, as no train step waits for them."""
        return sum(not kept.awaited for kept in self._kept.values())

    def take(self) -> int:
        """Take a free row, or the one that was kept longest, a train step's last."""
        if not self._free:
            oldest = next(iter(self._kept.values()))
            spare = next((kept for kept in self._kept.values() if not kept.awaited), oldest)
            self.release(spare)
        row = min(self._free)  # low rows first, so that a CPU step reads a short prefix of rows
        self._free.remove(row)
        return row

    def give(self, row: int) -> None:
        """Give a row back."""
        self._free.append(row)

    def keep(
        self,
        row: int,
        token_ids: tuple[int, ...],
        *,
        adapted: bool,
        awaited: bool,
        version: int | None = None,
    ) -> KeptRow:
        """Hold a finished sequence's row; all its tokens but the last are in it."""
        if self.states is not None:
            self.states.saw(row, len(token_ids) - 1)
        kept = KeptRow(self, row, token_ids, adapted=adapted, awaited=awaited, version=version)
        self._kept[row] = kept
        return kept

    def claim(self, kept: KeptRow) -> int | None:
        """Make a kept row the caller's own, or return ``None`` where it was taken back."""
        if kept.row is None:
            return None
        del self._kept[kept.row]
        return kept.evict()

    def release(self, kept: KeptRow) -> None:
        """Let a kept row go."""
        row = self.claim(kept)
        if row is not None:
            self.give(row)

    def copy(self, pairs: Sequence[tuple[int, int]], tokens: int) -> None:
        """Copy the first tokens of rows to others, ``(source, target)`` each."""
        source_B, target_B = torch.tensor(pairs, device=self.device).T
        end = self.prefix + tokens
        for part in self._own:
            part[target_B, :, :end] = part[source_B, :, :end]
        if self.hidden is not None:
            self.hidden[target_B, :end] = self.hidden[source_B, :end]
        if self.states is not None:
            self.states.copy(pairs)

    def serves(self, held: int, whole: int) -> bool:
        """Whether keys of a sequence of ``held`` tokens are those that one of ``whole`` has."""
        if self.edge is None:
            return True
        return (self.prefix + held > self.edge) == (self.prefix + whole > self.edge)

    def write(
        self, layer: int, row_N: Tensor, position_N: Tensor, k_NHD: Tensor, v_NHD: Tensor
    ) -> None:
        """Store keys and values of packed tokens, ``[N, kv_heads, head_dim]`` each."""
        self.keys[layer][row_N, :, position_N] = k_NHD
        self.values[layer][row_N, :, position_N] = v_NHD


class KeptRow:
    """The engine's :class:`fttt.engine.request.Kept`."""

    def __init__(
        self,
        cache: KVCache,
        row: int,
        token_ids: tuple[int, ...],
        *,
        adapted: bool,
        awaited: bool,
        version: int | None,
    ) -> None:
        self._cache = cache
        self._token_ids = token_ids
        self.row: int | None = row
        self.adapted = adapted
        """Whether an adapter made it, as it was then."""
        self.awaited = awaited
        """Whether a train step is to read it, so that it is taken back last."""
        self.version = version
        """Of the weights under which it was written (:meth:`fttt.engine.slots.Bank.version`);
        ``None`` where they were changed meanwhile."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and completion, as the model saw them."""
        return self._token_ids

    def shared(self, ids: Sequence[int]) -> int:
        """How many of the first of ``ids`` are its own as well and lie in the row.

        Of either, the last token is left: its own is not held, and theirs has to be run. A state
        cannot be cut back, so where layers carry one it is all of the row or nothing.
        """
        most = min(len(self._token_ids), len(ids)) - 1
        pairs = zip(self._token_ids[:most], ids, strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), most)
        if self._cache.states is not None and same < len(self._token_ids) - 1:
            return 0
        return same

    def serves(self, whole: int) -> bool:
        """Whether what the row holds is what a sequence of ``whole`` tokens begins with."""
        return self.row is not None and self._cache.serves(len(self._token_ids) - 1, whole)

    def evict(self) -> int:
        """Forget the row and return it; the tokens stay known."""
        assert self.row is not None
        row, self.row = self.row, None
        return row

    def close(self) -> None:
        """Let the cache go. Calling it twice is harmless."""
        self._cache.release(self)
