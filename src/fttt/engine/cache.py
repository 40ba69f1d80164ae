"""Keys and values of running and kept sequences, one row each, and what layers keep of a token.

A row holds one sequence from its first token on, ``capacity`` tokens at most, and belongs to one
owner at a time. Where the model has a prefix, each row begins with its keys and values, written
once; whoever names a place in a row counts the sequence's own tokens, and :class:`Batch` adds the
prefix. Rows that only wait for a train step or for the next turn may be evicted when no other is
free; their tokens are then computed again.

Where only upper layers learn, a row also has what the first of them was given at each token
(:mod:`fttt.engine.hidden_cache`); where layers carry a state, it has theirs
(:mod:`fttt.engine.states`).

Layers may differ in their key-value heads, in the size of keys, which need not be that of values,
and in whether they have keys and values of their own at all or read those of a layer below.
Configurations say it in many ways, so it is read off one short pass of the model, with an attention
that only looks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from fttt.engine.attention import layer_of
from fttt.engine.batch import Current
from fttt.engine.families import attention_replacements, edge_of, interface
from fttt.engine.states import Mixers, States
from fttt.errors import UsageError
from fttt.models.loader import Prefix

__all__ = ["Heads", "KVCache", "KeptRow", "read_heads"]

LOOK = "fttt-heads"


@dataclass(frozen=True, slots=True)
class Heads:
    """The keys and values of a token in one layer."""

    kv_heads: int
    key_dim: int
    value_dim: int
    owner: int
    """The layer that they are stored with: this one, or one below that they are shared with."""

    @property
    def numbers(self) -> int:
        """How many numbers a token's keys and values are."""
        return self.kv_heads * (self.key_dim + self.value_dim)


_known: WeakKeyDictionary[nn.Module, Mapping[int, Heads]] = WeakKeyDictionary()


def read_heads(model: Any) -> Mapping[int, Heads]:
    """The heads of each attention layer, by its number, in the order in which they run.

    Args:
        model: of ``transformers``, on any device.

    Raises:
        UsageError: a layer attends twice, or by other means than through the library's interface.
    """
    if model not in _known:
        _known[model] = _read(model)
    return _known[model]


Look = Callable[..., tuple[Tensor, None]]
_looking: ContextVar[Look] = ContextVar("looking")


def _look(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The registered attention, which passes its call to the current reader of heads."""
    return _looking.get()(*args, **kwargs)


AttentionInterface.register(LOOK, _look)


def _read(model: Any) -> dict[int, Heads]:
    found: dict[int, Heads] = {}
    keys: dict[int, Tensor] = {}

    def look(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        """Note the shapes of a layer's keys and values; nothing is attended to."""
        layer = layer_of(module)
        if layer in found:
            raise UsageError(f"Layer {layer} of the model attends twice.")
        owner = next((n for n, other in keys.items() if other is key), layer)
        keys[layer] = key
        found[layer] = Heads(key.shape[1], key.shape[3], value.shape[3], owner)
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    replacements = [*attention_replacements(model, look, Current(), {}), *interface(model, LOOK)]
    # norms may be kept in float32 between linear layers in half precision, to be trained
    dtypes = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16, torch.float32}
    mixed = len(dtypes) > 1
    half = torch.float16 if torch.float16 in dtypes else torch.bfloat16
    with (
        ExitStack() as stack,
        torch.no_grad(),
        torch.autocast(model.device.type, dtype=half, enabled=mixed),
    ):
        for owner, name, replacement in replacements:
            stack.enter_context(patch.object(owner, name, replacement))
        stack.callback(_looking.reset, _looking.set(look))
        ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
        model(input_ids=ids, use_cache=False)
    return found


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
        others (:mod:`fttt.engine.families`)."""
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
        """Kept rows, which :meth:`take` evicts when no other is free."""
        return len(self._kept)

    @property
    def spare(self) -> int:
        """Kept rows that it evicts first, since no train step waits for them."""
        return sum(not kept.awaited for kept in self._kept.values())

    def take(self) -> int:
        """Take a free row, or evict the one that was kept longest, a train step's last."""
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
        """Take over a kept row, or return ``None`` where it was evicted."""
        if kept.row is None:
            return None
        del self._kept[kept.row]
        return kept.evict()

    def release(self, kept: KeptRow) -> None:
        """Free a kept row."""
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
        """Whether it was written with an adapter."""
        self.awaited = awaited
        """Whether a train step is to read it, so that it is evicted last."""
        self.version = version
        """Of the weights under which it was written, as the bank numbers them; ``None`` where they
        were changed meanwhile."""

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
        """Free the row. Calling it twice is harmless."""
        self._cache.release(self)
