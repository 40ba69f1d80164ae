"""Keys and values of running and kept sequences in pages, and what layers keep of a token.

A row is a sequence's list of pages, in which it has its tokens from the first one on; it takes
another page when it needs one, and belongs to one owner at a time. Full pages may be shared: by the
samples of one prompt, by the turns of a conversation, and by all sequences where the model has a
prefix, which they begin with. Nobody writes to a shared page, so what two sequences have in common
beyond their last full page is copied. Whoever names a place in a row counts the sequence's own
tokens, and :class:`Batch` adds the prefix. Rows that only wait for a train step or for the next
turn may be evicted when no page or no row is free; their tokens are then computed again. A prompt
may be held without a sequence (:mod:`fttt.engine.prompts`): its row and pages count as free.

Where a page is as long as a row (:attr:`KVCache.whole`), as on a CPU, rows lie in one piece each
and are read where they lie.

Where only upper layers learn, a page also has what the first of them was given at each token
(:mod:`fttt.engine.hidden_cache`); where layers carry a state, a row has theirs
(:mod:`fttt.engine.states`).

Layers may differ in their key-value heads, in the size of keys, which need not be that of values,
and in whether they have keys and values of their own at all or read those of a layer below.
Configurations say it in many ways, so it is read off one short pass of the model, with an attention
that only looks.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from fttt.engine.attention import layer_of
from fttt.engine.batch import Current, sent
from fttt.engine.families import attention_replacements, edge_of, follows_length, interface
from fttt.engine.pages import Pages, Standing, copy_pages
from fttt.engine.prompts import HeldPrompts, common_beginning
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
        # a model that is being trained may draw dropout, which is not to count
        devices = [model.device] if model.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        for owner, name, replacement in replacements:
            stack.enter_context(patch.object(owner, name, replacement))
        stack.callback(_looking.reset, _looking.set(look))
        ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
        model(input_ids=ids, use_cache=False)
    return found


class KVCache:
    """Pages of keys and values, and the rows that they belong to.

    ``keys[layer]`` and ``values[layer]`` are ``[pages + 1, kv_heads, page, dim]`` of the layer's
    own heads and dimensions, the same tensors where layers share them; ``hidden``, where it is
    wanted, is ``[pages + 1, page, width]``. The last page takes what is written to places that no
    sequence has.

    ``table_RP`` on the device says which page holds a row's tokens from ``P * page`` on. Its last
    row is a sequence that has no token yet: segments read it where nothing is held of them, and the
    unused lanes of a captured decode step write behind it.
    """

    def __init__(
        self,
        *,
        rows: int,
        capacity: int,
        heads: Mapping[int, Heads],
        dtype: torch.dtype,
        device: torch.device,
        page: int | None = None,
        pages: int | None = None,
        prefix: Prefix | None = None,
        hidden: int = 0,
        states: States | None = None,
        edge: int | None = None,
        by_length: bool = False,
    ) -> None:
        """Take the memory.

        Args:
            rows: sequences.
            capacity: tokens of the longest one, those of the prefix included.
            heads: of each layer.
            dtype: of keys and values.
            device: where they lie.
            page: tokens of a page; ``None``: as many as a row's.
            pages: how many, beside those of the prefix; ``None``: as many as all rows may need.
            prefix: what all sequences begin with.
            hidden: the width of the hidden states that are kept, if any.
            states: of layers that carry one; ``None`` where there are none.
            edge: positions up to which a row's keys serve a sequence that is no longer; past it
                they are others (:mod:`fttt.engine.families`).
        """
        self.rows = rows
        self.capacity = capacity
        self.device = device
        self.edge = edge
        self.divisible = states is None and not by_length
        """Whether a row's first tokens serve any sequence that begins with them."""
        self.states = states
        self.page = page or max(1, capacity)
        self.prefix = prefix.length if prefix else 0
        """P: positions at the start of every row that belong to no sequence."""
        columns, fixed = self.count(capacity - self.prefix), self.count(0)
        pages = rows * columns if pages is None else pages
        self._pages = Pages(pages, fixed)
        self._spare_page = pages + fixed
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._own: list[Tensor] = []
        """Those of one shape in one tensor, so that few kernels copy pages of them."""
        alike: dict[tuple[int, int], list[tuple[dict[int, Tensor], int]]] = {}
        for layer, own in heads.items():
            if own.owner == layer:
                alike.setdefault((own.kv_heads, own.key_dim), []).append((self.keys, layer))
                alike.setdefault((own.kv_heads, own.value_dim), []).append((self.values, layer))
        learns = prefix is not None and any(x.requires_grad for x in prefix.keys)
        for (kv_heads, dim), places in alike.items():
            shape = (len(places), pages + fixed + 1, kv_heads, self.page, dim)
            whole = torch.zeros(shape, dtype=dtype, device=device)
            # a prefix's gradient cannot go through a part of a tensor
            parts = [part.clone() for part in whole] if learns else [*whole]
            self._own += [part[None] for part in parts] if learns else [whole]
            for (held, layer), part in zip(places, parts, strict=True):
                held[layer] = part
        for layer, own in heads.items():
            self.keys[layer], self.values[layer] = self.keys[own.owner], self.values[own.owner]
        self.hidden: Tensor | None = None
        if hidden:
            room = (pages + fixed + 1, self.page, hidden)
            self.hidden = torch.zeros(room, dtype=dtype, device=device)
        self.table_RP = torch.full(
            (rows + 1, columns), self._spare_page, dtype=torch.int32, device=device
        )
        self._changed: dict[int, int] = {}
        self._copies: dict[int, tuple[int, int]] = {}
        """Of pages that are still to be copied to: the source, and how many positions."""
        self._pages_of: list[list[int]] = [[] for _ in range(rows + 1)]
        self._set(rows, 0, range(pages, pages + fixed))
        if prefix:
            for layer in heads:
                for n, page_number in enumerate(self._pages_of[rows]):
                    part = slice(n * self.page, (n + 1) * self.page)
                    for cached, own_KPD in (
                        (self.keys[layer], prefix.keys[layer][:, part]),
                        (self.values[layer], prefix.values[layer][:, part]),
                    ):
                        cached[page_number, :, : own_KPD.shape[1]] = own_KPD
        self._free = list(range(rows))
        self._kept: OrderedDict[int, KeptRow] = OrderedDict()
        self.prompts = HeldPrompts(self)

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        rows: int,
        capacity: int,
        page: int | None = None,
        pages: int | None = None,
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
            page=page,
            pages=pages,
            prefix=prefix,
            hidden=hidden,
            edge=edge_of(model),
            by_length=follows_length(model),
            states=States(tuple(mixers), rows, model.device) if mixers else None,
        )

    @property
    def free(self) -> int:
        """Rows that hold nothing, or a prompt without a sequence."""
        return len(self._free) + self.prompts.idle

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing, or a prompt without a sequence."""
        return self._pages.free

    @property
    def kept(self) -> int:
        """Kept rows, which :meth:`take` evicts when no other is free."""
        return len(self._kept)

    @property
    def spare(self) -> int:
        """Kept rows that it evicts first, since no train step waits for them."""
        return sum(not kept.awaited for kept in self._kept.values())

    @property
    def read_bytes(self) -> int:
        """Of copies of a token's keys and values, as all layers read them for a gradient.

        A GPU's kernel reads them where they lie (:mod:`fttt.engine.ops.train_attention`).
        """
        if self.device.type == "cuda":
            return 0
        held = [*self.keys.values(), *self.values.values()]
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in held)

    @property
    def whole(self) -> bool:
        """Whether a row is one page."""
        return self.table_RP.shape[1] == 1

    def count(self, tokens: int) -> int:
        """Pages that a sequence of so many tokens is held in; at most a row's."""
        return -(-min(self.prefix + tokens, self.capacity) // self.page)

    def room(self, *, awaited: bool) -> tuple[int, int]:
        """Rows and pages that are free or may be evicted, those that train steps await or not."""
        rows = self.free + (self.kept if awaited else self.spare)
        return rows, self._pages.obtainable(awaited=awaited)

    def take(self, tokens: int) -> int | None:
        """Take a row with pages for so many tokens; ``None`` where there are too few."""
        return self.branch(self.rows, 0, tokens)

    def branch(self, source: int, held: int, tokens: int) -> int | None:
        """:meth:`fork` a row that is written already, and copy what it does not share."""
        at, part = divmod(self.prefix + held, self.page)
        behind = self._pages_of[source][at : at + 1]  # it may be evicted for this one
        row = self.fork(source, held, tokens)
        if row is not None and part:
            self._copy(behind[0], self._pages_of[row][at], part)
        return row

    def fork(self, source: int, held: int, tokens: int) -> int | None:
        """Take a row for a sequence that has the first ``held`` tokens of another one.

        It shares the other's full pages and has pages of its own for the rest of so many
        ``tokens``; what lies beyond the last full page is there once it was copied (:meth:`copy`).
        ``None``: there are too few pages, even with all kept ones.
        """
        shared = self._pages_of[source][: (self.prefix + held) // self.page]
        self._pages.add(shared, Standing.RUNNING)  # before the source may be evicted
        if not self._evict(rows=1, pages=self.count(tokens) - len(shared)):
            self._pages.remove(shared, Standing.RUNNING)
            return None
        if self.whole and self.prompts.oldest < self._free[0]:
            self.prompts.evict()
        row = heapq.heappop(self._free)  # low rows first, so that a CPU step reads few of them
        self._set(row, 0, shared)
        self.extend(row, tokens)
        return row

    def pages_for(self, source: int, held: int, tokens: int) -> int:
        """Pages of a fork that no running sequence has yet."""
        shared = self._pages_of[source][: (self.prefix + held) // self.page]
        return self.count(tokens) - sum(map(self._pages.runs, shared))

    def extend(self, row: int, tokens: int) -> bool:
        """Give a running row pages for so many tokens, as far as it has not; whether it has then.

        Kept sequences are evicted for it: those that no train step awaits first, then those kept
        longest.
        """
        held = len(self._pages_of[row])
        more = self.count(tokens) - held
        if more <= 0:
            return True
        if not self._evict(rows=0, pages=more):
            return False
        self._set(row, held, [self._pages.take() for _ in range(more)])
        return True

    def cut(self, row: int, held: int) -> bool:
        """Let a running row be written from ``held`` tokens on, whoever shares its pages now.

        Returns:
            Whether there was a page for what it shared with others beyond its last full page.
        """
        at, part = divmod(self.prefix + held, self.page)
        pages = self._pages_of[row]
        behind = pages[at:]
        if part and not self._pages.alone(behind[0]):
            if not self._evict(rows=0, pages=1):
                return False
            page = self._pages.take()
            self._copy(behind[0], page, part)
            self._set(row, at, [page])
        elif part:
            behind = behind[1:]
        self._pages.remove(behind, Standing.RUNNING)
        kept = at + (part > 0)
        self._set(row, kept, [self._spare_page] * (len(pages) - kept))
        del pages[kept:]
        return True

    def renew(self, row: int, tokens: int) -> bool:
        """Let a running row of so many tokens be written from its first one on."""
        return self.cut(row, 0) and self.extend(row, tokens)

    def give(self, row: int) -> None:
        """Give a running row back."""
        self.prompts.forget(row)
        pages = self._pages_of[row]
        self._pages.remove(pages, Standing.RUNNING)
        self._set(row, 0, [self._spare_page] * len(pages))
        pages.clear()
        heapq.heappush(self._free, row)

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
        self.cut(row, len(token_ids) - 1)
        kept = KeptRow(self, row, token_ids, adapted=adapted, awaited=awaited, version=version)
        self.stand(row, Standing.RUNNING, kept.standing)
        self._kept[row] = kept
        return kept

    def claim(self, kept: KeptRow) -> int | None:
        """Take over a kept row, or return ``None`` where it was evicted."""
        if kept.row is None:
            return None
        del self._kept[kept.row]
        self.prompts.forget(kept.row)
        self.stand(kept.row, kept.standing, Standing.RUNNING)
        return kept.evict()

    def release(self, kept: KeptRow) -> None:
        """Free a kept row."""
        row = self.claim(kept)
        if row is not None:
            self.give(row)

    def stand(self, row: int, old: Standing, new: Standing) -> None:
        """Change what may be taken from a row's owner."""
        pages = self._pages_of[row]
        self._pages.add(pages, new)
        self._pages.remove(pages, old)

    def copy(self, forks: Sequence[tuple[int, int, int]]) -> None:
        """Copy what forks share beyond the last full page: ``(source, target, held)`` each."""
        for source, target, held in forks:
            at, part = divmod(self.prefix + held, self.page)
            if part:
                self._copy(self._pages_of[source][at], self._pages_of[target][at], part)
        if self.states is not None:
            self.states.copy([(source, target) for source, target, _ in forks])

    def sync(self) -> None:
        """Bring table and pages on the device up to date; each pass begins with it."""
        if self._changed:
            # NumPy reads lists faster than PyTorch does
            changed = np.array([[*self._changed], [*self._changed.values()]])
            at, page = sent(changed, self.device)
            self.table_RP.view(-1)[at] = page.to(torch.int32)
            self._changed.clear()
        if self._copies:
            sources, positions = zip(*self._copies.values(), strict=True)
            source_B, target_B = sent(np.array([sources, [*self._copies]]), self.device)
            most = max(positions)  # nobody has written to a target yet
            for stack in self._own:
                copy_pages(stack, source_B, target_B, most)
            if self.hidden is not None:
                self.hidden[target_B, :most] = self.hidden[source_B, :most]
            self._copies.clear()

    def serves(self, held: int, whole: int) -> bool:
        """Whether keys of a sequence of ``held`` tokens are those that one of ``whole`` has."""
        if self.edge is None:
            return True
        return (self.prefix + held > self.edge) == (self.prefix + whole > self.edge)

    def pages_of(self, row: int) -> Sequence[int]:
        """The pages of a row, in order."""
        return self._pages_of[row]

    def read(self, cached: Tensor, page_BP: Tensor, positions: int) -> Tensor:
        """The first positions of rows: ``[B, kv_heads, S, dim]`` of one layer's keys or values."""
        pages = -(-positions // self.page)
        part = cached[page_BP[:, :pages], :, : min(positions, self.page)]
        return part.transpose(1, 2).flatten(2, 3)[:, :, :positions]

    def write(self, layer: int, page_N: Tensor, at_N: Tensor, k_NHD: Tensor, v_NHD: Tensor) -> None:
        """Store keys and values of packed tokens, ``[N, kv_heads, head_dim]`` each."""
        self.keys[layer][page_N, :, at_N] = k_NHD
        self.values[layer][page_N, :, at_N] = v_NHD

    def _evict(self, *, rows: int, pages: int) -> bool:
        """Make so many rows and pages free, if that can be."""
        if len(self._free) >= rows and self._pages.vacant >= pages:
            return True
        have_rows, have_pages = self.room(awaited=True)
        if have_rows < rows or have_pages < pages:
            return False
        while len(self._free) < rows or self._pages.vacant < pages:
            if self.prompts.idle:
                self.prompts.evict()
                continue
            oldest = next(iter(self._kept.values()))
            spare = next((kept for kept in self._kept.values() if not kept.awaited), oldest)
            self.release(spare)
        return True

    def _set(self, row: int, at: int, pages: Sequence[int]) -> None:
        """Note a row's pages from the ``at``-th on."""
        own = self._pages_of[row]
        own[at : at + len(pages)] = pages
        first = row * self.table_RP.shape[1] + at
        self._changed.update(enumerate(pages, first))

    def _copy(self, source: int, target: int, positions: int) -> None:
        """Copy the first positions of a page to another one, with all others at :meth:`sync`.

        In each layer all are read before any is written, so a source that is itself still to be
        copied to stands for its own source.
        """
        source, _ = self._copies.get(source, (source, 0))
        self._copies[target] = (source, positions)


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
        self._awaited = awaited
        self.row: int | None = row
        self.adapted = adapted
        """Whether it was written with an adapter."""
        self.version = version
        """Of the weights under which it was written, as the bank numbers them; ``None`` where they
        were changed meanwhile."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and completion, as the model saw them."""
        return self._token_ids

    @property
    def awaited(self) -> bool:
        """Whether a train step is to read it, so that it is evicted last."""
        return self._awaited

    @awaited.setter
    def awaited(self, awaited: bool) -> None:
        before, self._awaited = self.standing, awaited
        if self.row is not None:
            self._cache.stand(self.row, before, self.standing)

    @property
    def standing(self) -> Standing:
        """The same, as pages know it."""
        return Standing.AWAITED if self._awaited else Standing.SPARE

    def shared(self, ids: Sequence[int]) -> int:
        """How many of the first of ``ids`` are its own as well and lie in the row.

        Of either, the last token is left: its own is not held, and theirs has to be run. A state
        cannot be cut back, so where layers carry one it is all of the row or nothing.
        """
        same = common_beginning(self._token_ids[:-1], ids[:-1])
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
