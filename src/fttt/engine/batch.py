"""What one forward pass runs: ragged segments packed end to end, without padding.

The model sees one row of all tokens, ``[1, N]``; every per-token layer works on it as it is, and
only attention (:mod:`fttt.engine.attention`), layers that carry a state
(:mod:`fttt.engine.states`) and adapters (:mod:`fttt.engine.adapters`) look at where one segment
ends and the next begins. A decode step is the case where each segment is one token long.

Axes: N packed tokens, B segments, T tokens of the longest segment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from itertools import accumulate, chain
from types import CellType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from fttt.engine.cache import KVCache

__all__ = [
    "CACHE_KEYWORDS",
    "READ_PLACES",
    "Batch",
    "Block",
    "Current",
    "Mode",
    "Ragged",
    "Segment",
    "SlotGroups",
    "by_context",
    "by_length",
    "cache_keyword",
    "decoder_of",
    "noting",
    "passes",
    "put",
    "rebound",
    "sent",
]

Mode = Literal["prefill", "decode", "train"]
CACHE_KEYWORDS = ("cache", "cache_params", "past_key_values")
"""What versions of ``transformers`` call the cache of a forward pass."""


def sent(numbers: Any, device: torch.device) -> Tensor:
    """Numbers of the host, a list, an array or a tensor, on a device, which is not waited for.

    A GPU may be in the middle of earlier work when the next pass is put together.
    """
    return _read_by(device, torch.as_tensor(numbers)).to(device, non_blocking=True)


def put(to: Tensor, numbers: Any) -> None:
    """Write numbers of the host into a tensor, as :func:`sent` sends them."""
    made = torch.as_tensor(numbers).to(to.dtype)
    to.copy_(_read_by(to.device, made), non_blocking=True)


def _read_by(device: torch.device, made: Tensor) -> Tensor:
    """The same in memory that a device reads by itself."""
    return made.pin_memory() if device.type == "cuda" else made


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence."""

    token_ids: Sequence[int]
    row: int
    """The cache row that holds what came before (and, but for training, receives this); -1 where
    nothing is held."""
    past: int
    """How many of the sequence's tokens that row holds already."""
    slot: int = -1
    """The adapter's slot; -1 runs the base model."""
    whole: int = 0
    """Tokens that the sequence had when the first of these were run, where that is not the end of
    these: more where a later pass reads these; fewer where it was resumed, since the tokens beyond
    were then run one by one."""


@dataclass(frozen=True, slots=True)
class Block:
    """Equally many consecutive tokens of several segments: a rectangle without padding."""

    segments: tuple[int, ...]
    where_BT: Tensor
    """Their places in the packed row."""
    row_B: Tensor
    begins: tuple[bool, ...]
    """Whether a segment's sequence begins with it."""


class Ragged:
    """Sequences of different lengths, packed end to end or padded to the longest one."""

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.lengths, self._device = lengths, device
        self.longest = max(lengths)
        self.ends = tuple(accumulate(lengths))
        self.uniform = min(lengths) == self.longest
        """Whether padding is a reshape."""
        self.packed = True
        """Whether the packed row is these sequences, which the host knows the lengths of."""

    @cached_property
    def span_2B(self) -> Tensor:
        """Where each sequence begins in the packed row, and its tokens."""
        starts = [end - own for end, own in zip(self.ends, self.lengths, strict=True)]
        return sent([starts, self.lengths], self._device)

    @cached_property
    def owner_N(self) -> Tensor:
        """The sequence that each packed token belongs to."""
        lengths = sent(self.lengths, self._device)
        owners = torch.arange(len(lengths), device=self._device)
        return torch.repeat_interleave(owners, lengths, output_size=self.ends[-1])

    @cached_property
    def end_B(self) -> Tensor:
        """Where each sequence ends in the packed row."""
        if self.uniform:  # without the host, as a captured pass asks for it
            return torch.arange(1, len(self.lengths) + 1, device=self._device) * self.longest
        return sent(self.ends, self._device)

    @cached_property
    def pad_BT(self) -> Tensor:
        """Where to read each padded token in the packed row; padding reads token 0."""
        length_B1 = torch.tensor(self.lengths).unsqueeze(1)
        start_B1 = torch.tensor(self.ends).unsqueeze(1) - length_B1
        step_1T = torch.arange(self.longest).unsqueeze(0)
        index = torch.where(step_1T < length_B1, start_B1 + step_1T, 0)
        return sent(index, self._device)

    @cached_property
    def unpad_N(self) -> Tensor:
        """Where to read each packed token in the padded block, flattened to ``[B * T]``."""
        places = enumerate(zip(self.ends, self.lengths, strict=True))
        shift = [n * self.longest - end + own for n, (end, own) in places]
        at_N = torch.arange(self.ends[-1], device=self._device)
        return at_N + sent(shift, self._device)[self.owner_N]

    def pad(self, x_ND: Tensor) -> Tensor:
        """``[N, ...] -> [B, T, ...]``."""
        if self.uniform:
            padded: Tensor = x_ND.unflatten(0, (len(self.lengths), -1))
            return padded
        return _pad(x_ND, self.pad_BT, self.unpad_N)

    def pad_zeros(self, x_ND: Tensor) -> Tensor:
        """:meth:`pad` with zeros in padding, and without a gradient."""
        if self.uniform:
            return self.pad(x_ND)
        flat = x_ND.new_zeros(len(self.lengths) * self.longest, *x_ND.shape[1:])
        padded: Tensor = flat.index_copy_(0, self.unpad_N, x_ND).unflatten(0, (-1, self.longest))
        return padded

    def unpad(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, ...] -> [N, ...]``; T may be more than the longest sequence."""
        flat = x_BTD[:, : self.longest].flatten(0, 1)
        return flat if self.uniform else _unpad(flat, self.unpad_N)


@dataclass(frozen=True, slots=True)
class SlotGroups:
    """The tokens of a pass by the adapter that they run under; those of the base model left out."""

    slots: tuple[int, ...]
    """Each once, in the order of their first segments."""
    group_of: tuple[int, ...]
    """The place of each segment's slot among them, -1 for the base model."""
    ragged: Ragged
    """The tokens of each slot."""
    where_M: Tensor | None
    """The places of these tokens in the packed row; ``None`` where that are all, in order."""
    tokens: int
    """N: all of the packed row."""

    @property
    def padded(self) -> int:
        """Tokens of all groups where they are padded to the longest."""
        return len(self.ragged.lengths) * self.ragged.longest

    def select(self, x_ND: Tensor) -> Tensor:
        """Those of the packed tokens that have an adapter, group by group, ``[M, ...]``."""
        return x_ND if self.where_M is None else x_ND.index_select(0, self.where_M)

    def spread(self, x_MD: Tensor) -> Tensor:
        """The other way round, with zeros at the other tokens."""
        if self.where_M is None:
            return x_MD
        return x_MD.new_zeros(self.tokens, *x_MD.shape[1:]).index_copy_(0, self.where_M, x_MD)

    def blocks(self, x_MD: Tensor, *, apart: bool, zeros: bool = False) -> list[Tensor]:
        """Tokens of all groups padded to the longest, ``[U, T, ...]``, or of each one apart.

        Padding is another token, unless it is to be ``zeros``.
        """
        if apart:
            return [part[None] for part in x_MD.split(self.ragged.lengths)]
        return [self.ragged.pad_zeros(x_MD) if zeros else self.ragged.pad(x_MD)]

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """The other way round, ``[M, ...]``."""
        if len(blocks) > 1:
            return torch.cat([block[0] for block in blocks])
        return self.ragged.unpad(blocks[0])


@dataclass
class Batch:
    """Packed segments on the device, with what attention and adapters need to know of them."""

    mode: Mode
    cache: KVCache
    token_ids_N: Tensor
    position_N: Tensor
    row_B: Tensor
    past_B: Tensor
    """Filled positions of each row, those of the cache's prefix included."""
    slot_B: Tensor
    lengths: tuple[int, ...]
    """Tokens in each segment, on the host. Empty for a captured decode step."""
    pasts: tuple[int, ...]
    rows: tuple[int, ...]
    adapted: bool
    """Whether any segment has an adapter."""
    row_of_BS: Tensor | None = None
    """The row that holds each earlier token of a decode step; ``None``: the segment's own."""
    slots: tuple[int, ...] = ()
    wholes: tuple[int, ...] = ()
    """Tokens of each segment's whole sequence as it is then (:attr:`Segment.whole`), those of the
    prefix included."""
    recompute: bool = True
    """Whether a train pass computes attention again for the gradient: less memory, more time."""
    masks: dict[Any, Any] = field(default_factory=dict)
    """Attention masks by how far layers see, built once a pass and shared by the layers."""
    source_B: Tensor | None = None
    """The row that each state of a decode step is read from; ``None``: the segment's own."""
    inside: tuple[int, ...] | None = None
    """The segments, one a row of ``[B, T, D]``, that a mixer is running (``fttt.engine.states``);
    ``None`` elsewhere, where layers see the packed row ``[1, N, D]``."""

    @classmethod
    def pack(cls, mode: Mode, segments: Sequence[Segment], cache: KVCache) -> Batch:
        """Lay segments end to end on the cache's device."""
        cache.sync()
        lengths = tuple(len(s.token_ids) for s in segments)
        pasts = tuple(cache.prefix + s.past for s in segments)
        rows = tuple(s.row if s.row >= 0 else cache.rows for s in segments)
        if cache.states is not None:
            for s, row in zip(segments, rows, strict=True):
                cache.states.check(row, s.past)
                if mode != "train":
                    cache.states.saw(row, s.past + len(s.token_ids))
        slots = tuple(s.slot for s in segments)
        per_segment = [rows, pasts, slots]
        # NumPy reads ten thousands of numbers several times as fast as PyTorch does
        packed = np.empty((2, sum(lengths)), np.int64)
        packed[0] = np.fromiter(chain.from_iterable(s.token_ids for s in segments), np.int64)
        begins = np.array(pasts) - np.cumsum(lengths) + np.array(lengths)
        packed[1] = np.arange(packed.shape[1]) + np.repeat(begins, lengths)
        device = cache.device
        ids_N, position_N = sent(packed, device)
        row_B, past_B, slot_B = sent(per_segment, device)
        return cls(
            mode,
            cache,
            ids_N,
            position_N,
            row_B,
            past_B,
            slot_B,
            lengths,
            pasts,
            rows,
            adapted=max(slots) >= 0,
            slots=slots,
            wholes=tuple(
                cache.prefix + s.whole if s.whole else p + n
                for p, n, s in zip(pasts, lengths, segments, strict=True)
            ),
        )

    @cached_property
    def ragged(self) -> Ragged:
        """The segments' lengths."""
        return Ragged(self.lengths, self.token_ids_N.device)

    @property
    def longest(self) -> int:
        """T: tokens in the longest segment."""
        return self.ragged.longest

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each segment ends in the packed row."""
        return self.ragged.ends

    @cached_property
    def groups(self) -> SlotGroups:
        """The tokens by adapter."""
        slots = tuple(dict.fromkeys(slot for slot in self.slots if slot >= 0))
        place = {slot: group for group, slot in enumerate(slots)}
        group_of = tuple(place.get(slot, -1) for slot in self.slots)
        if slots == self.slots:
            return SlotGroups(slots, group_of, self.ragged, None, self.ends[-1])
        own: list[list[int]] = [[] for _ in slots]
        for group, end, length in zip(group_of, self.ends, self.lengths, strict=True):
            if group >= 0:
                own[group] += range(end - length, end)
        where = [at for places in own for at in places]
        device = self.token_ids_N.device
        return SlotGroups(
            slots,
            group_of,
            Ragged(tuple(map(len, own)), device),
            None if where == list(range(self.ends[-1])) else sent(where, device),
            self.ends[-1],
        )

    @cached_property
    def whole_N(self) -> Tensor:
        """Tokens of the sequence that each packed token belongs to, as long as it is then."""
        if self.mode == "decode":
            return self.position_N + 1
        wholes = sent(self.wholes, self.token_ids_N.device)
        return torch.maximum(wholes[self.segment_N], self.position_N + 1)

    @property
    def segment_N(self) -> Tensor:
        """The segment that each packed token belongs to."""
        return self.ragged.owner_N

    @cached_property
    def row_N(self) -> Tensor:
        """The cache row that each packed token belongs to."""
        return self.row_B if self.mode == "decode" else self.row_B[self.segment_N]

    @cached_property
    def place_N(self) -> tuple[Tensor, Tensor]:
        """The page that each packed token is stored in, and the place in it."""
        page = self.cache.page
        return self.cache.table_RP[self.row_N, self.position_N // page].long(), (
            self.position_N % page
        )

    @cached_property
    def page_BP(self) -> Tensor:
        """The pages of each segment's row, as far as any of the pass has positions."""
        most = max(p + n for p, n in zip(self.pasts, self.lengths, strict=True))
        most = -(-most // 8) * 8  # as train passes read them
        return self.cache.table_RP[self.row_B, : -(-most // self.cache.page)].long()

    @cached_property
    def pieces(self) -> tuple[int, ...] | None:
        """The page that is each segment's row; ``None`` where rows have several."""
        cache = self.cache
        return tuple(cache.pages_of(row)[0] for row in self.rows) if cache.whole else None

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All tokens in blocks, each segment's in order.

        Segments of one length are a block. Where there are too many lengths, segments are cut at
        the powers of two that their lengths are made of, so that there are no more blocks than a
        length has binary digits.
        """
        lengths = self.lengths
        digits = 0
        for length in lengths:
            digits |= length
        if len(set(lengths)) <= digits.bit_count():
            return tuple(
                self._block([(n, 0) for n, own in enumerate(lengths) if own == length], length)
                for length in dict.fromkeys(lengths)
            )
        sizes = [
            1 << digit for digit in reversed(range(digits.bit_length())) if digits >> digit & 1
        ]
        return tuple(
            self._block([(n, own & -2 * size) for n, own in enumerate(lengths) if own & size], size)
            for size in sizes
        )

    def _block(self, parts: Sequence[tuple[int, int]], size: int) -> Block:
        """``size`` tokens of each segment, from a place in it on."""
        segments = tuple(n for n, _ in parts)
        first = [self.ends[n] - self.lengths[n] + start for n, start in parts]
        first_B, segment_B = sent([first, segments], self.token_ids_N.device)
        return Block(
            segments,
            first_B[:, None] + torch.arange(size, device=first_B.device),
            self.row_B[segment_B],
            tuple(self.pasts[n] + start == 0 for n, start in parts),
        )

    def pad(self, x_ND: Tensor) -> Tensor:
        """``[N, ...] -> [B, T, ...]``."""
        return x_ND[:, None] if self.mode == "decode" else self.ragged.pad(x_ND)

    def unpad(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, ...] -> [N, ...]``; T may be more than the longest segment."""
        return x_BTD.flatten(0, 1) if self.mode == "decode" else self.ragged.unpad(x_BTD)

    def by_segment(self, x: Tensor) -> Tensor:
        """What a linear layer is given, ``[1, N, D]`` or ``[N, D]``, as ``[B, T, D]``.

        While a mixer runs, it is given that already, or ``[B * T, D]``.
        """
        if self.inside is None:
            return self.pad(x.flatten(0, -2))
        return x if x.dim() == 3 else x.unflatten(0, (len(self.inside), -1))


@dataclass
class Current:
    """What a model runs at the moment, for those of its parts that are not told."""

    batch: Batch | None = None

    @property
    def handed(self) -> dict[str, Any]:
        """What attention is to be given of it."""
        return {} if self.batch is None else {"fttt_batch": self.batch}


def rebound(module: Any, names: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Methods of a module that call functions of these names, with others in their place.

    Only the module's own methods change: the Python module that they were written in is shared by
    all models of its kind, and by all engines of a process.
    """
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(type(module)):
        function = inspect.getattr_static(type(module), name)
        if not inspect.isfunction(function):
            continue
        code: Any = inspect.unwrap(function)
        if set(names) & set(code.__code__.co_names):
            found[name] = MethodType(_with_globals(function, names), module)
    return found


def _with_globals(function: Any, names: Mapping[str, Any]) -> Any:
    """A function's own code and decorators, which finds other things under these names."""
    inner = getattr(function, "__wrapped__", None)
    cells, around = function.__closure__, function.__globals__
    if inner is None:
        around = {**around, **names}
    else:
        changed = _with_globals(inner, names)
        cells = tuple(
            CellType(changed) if cell.cell_contents is inner else cell for cell in cells or ()
        )
    made = FunctionType(function.__code__, around, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    if inner is not None:
        made.__wrapped__ = changed  # type: ignore[attr-defined]
    return made


def cache_keyword(function: Callable[..., Any]) -> str:
    """The keyword by which a ``forward`` of ``transformers`` takes a cache; empty if it takes none.

    Later versions call it ``cache`` where earlier ones have two other names.
    """
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_KEYWORDS if name in parameters), "")


def decoder_of(model: Any) -> Any:
    """The part of a model that its output layer follows.

    The text model of Llama 4 names as its base what only the whole of it has; the base of OPT only
    wraps its decoder, which the model calls itself.
    """
    base = model.base_model
    if base is model:
        base = getattr(model, "model", model)
    parts = list(base.children())
    return parts[0] if len(parts) == 1 else base


def noting(model: Any, forward: Callable[..., Any], current: Current) -> Callable[..., Any]:
    """A model's ``forward`` that notes its batch: not all models hand it down to their layers.

    It is kept after the pass, since layers may be run again for the gradient.
    """
    whole = decoder_of(model) is not model

    @wraps(forward)
    def note(*args: Any, **kwargs: Any) -> Any:
        if whole or "fttt_batch" in kwargs:
            current.batch = kwargs.get("fttt_batch")
        return forward(*args, **kwargs)

    return note


def by_length(lengths: Sequence[int], fits: Callable[[int, int], bool]) -> list[list[int]]:
    """Indices of segments that are padded to one length, part by part, longest first.

    Args:
        lengths: of the segments.
        fits: whether a part may hold so many tokens with padding, so many of them its own; a
            segment that fits nowhere is a part of its own.
    """
    parts: list[list[int]] = []
    own = 0
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        own += lengths[n]
        if parts and fits((len(parts[-1]) + 1) * lengths[parts[-1][0]], own):
            parts[-1].append(n)
        else:
            parts.append([n])
            own = lengths[n]
    return [sorted(part) for part in parts]


READ_PLACES = 2**18
"""Positions of rows that one pass reads, padding included, where each layer copies them."""


def by_context(pasts: Sequence[int], *, copied: bool) -> list[list[int]]:
    """Indices of segments whose rows are read in one pass, part by part, longest first.

    Args:
        pasts: positions that each of them reads, and is padded to the longest.
        copied: whether each layer copies what is read.
    """
    return by_length(pasts, lambda padded, _: padded <= READ_PLACES or not copied)


def passes(
    segments: Sequence[Segment], fits: Callable[[int, int], bool], *, copied: bool
) -> list[list[int]]:
    """Indices of segments that run in one pass, by what they read and by their own tokens.

    Args:
        fits: as of :func:`by_length`.
        copied: as of :func:`by_context`.
    """
    found: list[list[int]] = []
    for read in by_context([segment.past for segment in segments], copied=copied):
        lengths = [len(segments[n].token_ids) for n in read]
        found += [[read[i] for i in part] for part in by_length(lengths, fits)]
    return found


class _Pad(torch.autograd.Function):
    """Indexing whose gradient is indexing too.

    Each packed token stands in one place, and nobody looks at padding, so nothing has to be added
    up; autograd's own way is to add every padded place to token 0, one after the other.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, pad_BT: Tensor, unpad_N: Tensor) -> Tensor:
        ctx.save_for_backward(unpad_N)
        return x_ND[pad_BT]

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None, None]:
        (unpad_N,) = ctx.saved_tensors
        return grad_BTD.flatten(0, 1).index_select(0, unpad_N), None, None


class _Unpad(torch.autograd.Function):
    """The other way round; padding takes no gradient."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, unpad_N: Tensor) -> Tensor:
        ctx.save_for_backward(unpad_N)
        ctx.shape = flat.shape
        return flat.index_select(0, unpad_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        (unpad_N,) = ctx.saved_tensors
        return grad_ND.new_zeros(ctx.shape).index_copy(0, unpad_N, grad_ND), None


def _pad(x_ND: Tensor, pad_BT: Tensor, unpad_N: Tensor) -> Tensor:
    padded: Tensor = _Pad.apply(x_ND, pad_BT, unpad_N)  # type: ignore[no-untyped-call]
    return padded


def _unpad(flat: Tensor, unpad_N: Tensor) -> Tensor:
    packed: Tensor = _Unpad.apply(flat, unpad_N)  # type: ignore[no-untyped-call]
    return packed
