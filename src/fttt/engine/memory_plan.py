"""How much memory the engine takes, decided before the first token.

Nothing is reserved for the length that a sequence may have: the cache's pages are what is left, and
sequences take them as they grow. A run starts where the longest sequence fits, or says at once
which option to change.

On a CPU, whose attention is fastest over rows in one piece, a page is as long as a row where all
rows fit so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fttt.engine.adapters import bank_of
from fttt.engine.adapters.bank import AdapterNeeds
from fttt.engine.batch import READ_PLACES
from fttt.engine.cache import read_heads
from fttt.engine.free_memory import free_bytes, held_here, total_bytes
from fttt.engine.linear import second_weights
from fttt.engine.request import AdapterSpec
from fttt.engine.sequences import LOGIT_BYTES
from fttt.engine.states import Mixers
from fttt.errors import RunError, UsageError
from fttt.models.loader import LoadedModel
from fttt.models.quantized import held_bytes, quantized_layers

__all__ = ["MemoryPlan", "plan_memory", "taking_memory"]

TRAIN_TOKENS = 1024
"""Of a train pass on a CPU, where the memory allows it."""
PREFILL_TOKENS = 2**17
"""Of the largest prefill pass on a GPU: that of a small model takes as long to launch as to run."""
DEFAULT_BATCH = {"cpu": 16, "cuda": 1024}
_CPU_FULL = "can't allocate memory"
"""What torch says, in an error of no kind of its own, where a CPU has no memory left."""
PAGE = 64
"""Tokens of a page, where it is not a row: a power of two, so that one block of a GPU's attention
kernel lies within one page."""
SHARE = 8
"""Lanes are as many as have room for this part of the longest sequence each: most answers are much
shorter than they may be, and few are at their end at the same time."""
LEFT = 0.95
"""Of a GPU's free memory that is planned for."""
PASSES = (1.0, 0.25, 0.0)
"""What part of a GPU's usual passes is tried, in turn; on a CPU the last is a smaller one."""
CAPTURED = 0.08
"""Of a GPU's memory, what captured train passes may hold beside the others."""
QUESTION_BYTES = 2**32
"""Most that the questions of one train pass take beside its tokens, beyond one question's."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes of the engine's parts, and what they take."""

    batch_size: int
    """Sequences that run at once."""
    rows: int
    """Most sequences that the cache holds: running ones and those kept for a train step."""
    capacity: int
    """Tokens of the longest one."""
    page: int
    """Tokens of a page of the cache."""
    pages: int
    """Pages of all sequences."""
    slots: int
    """Adapters that are open at once."""
    hidden: int
    """Width of the hidden states that a row holds beside keys and values, 0 for none."""
    prefill_tokens: int
    """Tokens of one prefill pass."""
    train_tokens: int
    """Tokens of one train pass, whose activations are held for the gradient."""
    train_bytes: int
    """What their activations take, padding included."""
    train_longest: int
    """Tokens of the longest target of a train step."""
    train_questions: int
    """Questions that take a step at once."""
    captured_bytes: int
    """What captured train passes may hold; 0: none is captured."""
    search_lanes: int
    """Beams, of one question or more, that are searched at once; 0 where none are asked for."""
    weight_bytes: int
    """Those that a CPU holds a second time (:mod:`fttt.engine.linear`) included."""
    cache_bytes: int
    adapter_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.cache_bytes + self.adapter_bytes + self.working_bytes

    def describe(self) -> str:
        """One line for the log."""
        gib = 2.0**30
        return (
            f"{self.batch_size} sequences at once, {self.held}, "
            f"{self.slots} adapters: weights {self.weight_bytes / gib:.2f} GiB, "
            f"cache {self.cache_bytes / gib:.2f}, adapters {self.adapter_bytes / gib:.2f}, "
            f"working {self.working_bytes / gib:.2f}, in all {self.total_bytes / gib:.2f}"
        )

    @property
    def longest(self) -> int:
        """Sequences of full length that the cache holds at once."""
        return self.pages // -(-self.capacity // self.page)

    @property
    def held(self) -> str:
        """What the cache holds, on average and at worst."""
        if self.longest >= self.rows:
            return f"{self.rows} rows of {self.capacity} tokens"
        average = self.pages * self.page // self.batch_size
        return (
            f"with pages for {average} tokens each, or {self.longest} of {self.capacity} (the "
            "others are paused and resumed)"
        )

    def exceeded(self, device: torch.device) -> RunError:
        """The error of a device that ran out of memory all the same."""
        return RunError(
            f"{device} ran out of memory beyond the plan ({self.describe()}); lower --batch-size "
            "or --max-new-tokens and resume."
        )


@contextmanager
def taking_memory(device: torch.device) -> Iterator[None]:
    """Where an engine takes what is planned.

    Raises:
        RunError: it is not there, though it was free: another process may have taken it.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _CPU_FULL in str(error)):
            raise
        raise RunError(
            f"{device} ran out of memory as the engine was made; lower --batch-size, "
            "--max-new-tokens or --memory-share, or end what else holds its memory."
        ) from error


def plan_memory(
    loaded: LoadedModel,
    *,
    max_length: int,
    batch_size: int | None,
    concurrency: int,
    adapter: AdapterSpec | None,
    beams: int = 0,
    adapters: int | None = None,
    least_adapters: int = 1,
    share: float | None = None,
) -> MemoryPlan:
    """Size the engine for sequences of ``max_length`` tokens.

    A batch size that was asked for is kept, or refused with the largest that fits; without one, as
    many sequences run as have room for an eighth of that length each, 1,024 on a GPU and 16 on a
    CPU at most. Where train steps read rows, there is room for up to as many finished sequences
    until then. Where methods search, there is room for the ``beams`` of one question at least. So
    many ``adapters`` as are wanted (``None``: one a question) are open at once, or as fit,
    ``least_adapters`` at least. With a ``share``, what this process holds, weights included, stays
    within that part of the device's memory.

    Raises:
        UsageError: it does not fit; the sentence names the options to change.
    """
    device = torch.device(loaded.device)
    needs = AdapterNeeds(0, 1, 1, 0, 0, 0.0, keeps=False)
    if adapter is not None:
        needs = bank_of(adapter).needs(loaded.model, adapter, activation_bytes(loaded.model))
    mixers = Mixers(loaded.model)
    slots = (concurrency if adapters is None else max(adapters, least_adapters)) if adapter else 0
    sized = (
        _passes(loaded, device, needs, max_length, mixers.token_bytes, part * (share or 1), slots)
        for part in PASSES
    )
    passes = tuple(dict.fromkeys(sized))  # on a CPU, or where the memory is small, some are equal
    _check_width(beams, batch_size)
    wanted = max(1, beams, min(batch_size or DEFAULT_BATCH[device.type], concurrency))
    cache = _cache_size(loaded, needs, mixers, max_length, wanted, concurrency)
    sizes = first = _Sizes(
        wanted=wanted, lanes=wanted, cache=cache, slots=slots, passes=passes, slot_bytes=needs.slot,
        lane_bytes=_search_bytes(loaded, max_length) if beams else 0, beams=beams,
        least_adapters=least_adapters,
    )  # fmt: skip
    again, to_come = (0, 0) if device.type == "cuda" else second_weights(loaded.model)
    weights = held_bytes(loaded.model) + again
    free, limit = _room(device, share, weights)
    free = int(free * LEFT) if device.type == "cuda" else free - to_come
    while sizes.bytes > free:
        fewer = sizes.shrunk(fixed=batch_size is not None)
        if fewer is None:
            least = replace(first, passes=passes[-1:])
            fit = bisect_right(range(1, wanted), free, key=lambda n: least.least(n).bytes)
            held, advice = (wanted, max_length), _lower(fit, wanted, beams, limit)
            there = "are free" if limit is None else f"of the --memory-share of {limit:g} are left"
            there += f" on {device}"
            raise _too_large(held, sizes.slots, needs.slot, sizes.bytes, free, there, advice)
        vain = sizes.lanes < wanted and len(fewer.passes) < len(sizes.passes)
        sizes = replace(first, passes=fewer.passes) if vain else fewer
    sizes = sizes.filled(first.cache.longest, free)
    cache, taken, slots = sizes.cache, sizes.passes[0], sizes.slots
    return MemoryPlan(
        batch_size=sizes.lanes,
        rows=cache.rows,
        capacity=cache.capacity,
        page=cache.page,
        pages=cache.pages,
        slots=slots,
        hidden=needs.hidden,
        prefill_tokens=taken.prefill_tokens,
        train_tokens=taken.train_tokens,
        train_bytes=taken.train_bytes,
        train_longest=taken.train_longest,
        train_questions=taken.train_questions,
        captured_bytes=taken.captured,
        search_lanes=sizes.searched if beams else 0,
        weight_bytes=weights + to_come,
        cache_bytes=cache.bytes,
        adapter_bytes=slots * needs.slot,
        working_bytes=sizes.working,
    )


def _room(device: torch.device, share: float | None, weights: int) -> tuple[int, float | None]:
    """What may be taken beside the weights, and the share where less is free by that."""
    free = free_bytes(device)
    if share is None:
        return free, None
    # of weights in a file that is mapped into memory, a process has what it has read
    left = int(share * total_bytes(device)) - max(weights, held_here(device))
    return (left, share) if left < free else (free, None)


@dataclass(frozen=True, slots=True)
class _CacheSize:
    """Rows and pages, and what they take."""

    rows: int
    page: int
    pages: int
    capacity: int
    prefix: int
    token_bytes: int
    """Of a token, in all layers."""
    copied_bytes: int
    """Of a token that a pass reads, in the layer that has most; 0 where it copies none."""
    row_bytes: int
    """Of a row's state."""

    @property
    def whole(self) -> bool:
        """Whether a page is a row."""
        return self.page >= self.capacity

    @property
    def columns(self) -> int:
        """Pages of the longest sequence."""
        return -(-self.capacity // self.page)

    @property
    def longest(self) -> int:
        """Sequences of full length."""
        return self.pages // self.columns

    @property
    def bytes(self) -> int:
        """All of it: also the pages of the prefix, and a page and a row for what nobody has."""
        pages = self.pages + -(-self.prefix // self.page) + 1
        row_bytes = self.row_bytes + 4 * self.columns
        return pages * self.page * self.token_bytes + (self.rows + 1) * row_bytes

    def with_rows(self, rows: int) -> _CacheSize:
        """With so many rows, whose pages are fewer only where a page is a row."""
        return replace(self, rows=rows, pages=rows if self.whole else self.pages)

    def in_pages(self, sequences: int) -> _CacheSize:
        """With pages that are no rows, for so many sequences of full length."""
        return replace(self, page=PAGE, pages=sequences * -(-self.capacity // PAGE))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the plan may still lower, and what it takes."""

    wanted: int
    """Lanes that were asked for."""
    lanes: int
    cache: _CacheSize
    slots: int
    passes: tuple[_Passes, ...]
    """The passes that are planned, and smaller ones."""
    slot_bytes: int
    lane_bytes: int
    """Of a beam's lane."""
    beams: int
    least_adapters: int

    @property
    def searched(self) -> int:
        """Beams that have pages for full length."""
        return min(self.lanes, self.cache.longest)

    @property
    def working(self) -> int:
        """Of the larger pass, with the copies of a layer's rows that it reads, if it makes any."""
        places = min(READ_PLACES, self.lanes * self.cache.capacity)
        passes = self.passes[0].working + 2 * places * self.cache.copied_bytes
        return max(passes, self.searched * self.lane_bytes) + self.passes[0].captured

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.cache.bytes + self.slots * self.slot_bytes + self.working

    @property
    def fewest(self) -> int:
        """Pages of one sequence of full length, or of one search, and one for each lane."""
        return max(self.cache.columns * max(1, self.beams), self.lanes)

    def least(self, lanes: int) -> _Sizes:
        """The least that so many sequences need."""
        cache = replace(self.cache, rows=lanes, page=min(self.cache.page, PAGE))
        slots = min(self.slots, max(lanes, self.least_adapters))
        least = replace(self, lanes=lanes, slots=slots, beams=min(self.beams, lanes), cache=cache)
        return replace(least, cache=replace(cache, pages=least.fewest))

    def shrunk(self, *, fixed: bool) -> _Sizes | None:
        """A little less, if that can be; ``fixed`` leaves the lanes."""
        cache, least = self.cache, max(1, self.beams)
        share = max(self.fewest, cache.columns * self.lanes // SHARE)
        slots = max(cache.rows, self.least_adapters)
        if self.slots > slots:
            return replace(self, slots=max(slots, self.slots * 7 // 8))
        if not cache.whole and cache.pages > share:
            return replace(self, cache=replace(cache, pages=max(share, cache.pages * 7 // 8)))
        if cache.rows > self.lanes:
            rows = max(self.lanes, cache.rows * 7 // 8)
            return replace(self, cache=cache.with_rows(rows))
        # fewer feedback turns to a train pass: the fewest cost a GPU more than half of the lanes do
        dear = len(self.passes) == 2 and self.passes[0].captured > 0
        if len(self.passes) > 1 and not (dear and not fixed and self.lanes > self.wanted // 2):
            return replace(self, passes=self.passes[1:])
        if cache.whole and cache.capacity > PAGE:  # rows of full length do not all fit
            return replace(self, cache=cache.in_pages(self.lanes))
        if not fixed and self.lanes > least:
            lanes = max(least, self.lanes * 7 // 8)
            return replace(self, lanes=lanes, cache=cache.with_rows(lanes))
        if not cache.whole and cache.pages > self.fewest:
            return replace(self, cache=replace(cache, pages=max(self.fewest, cache.pages * 7 // 8)))
        return None

    def filled(self, sequences: int, free: int) -> _Sizes:
        """With what is left of the memory in pages, up to so many sequences of full length.

        Rows without a state cost nothing beside their pages, so there are as many for kept ones.
        """
        cache, most = self.cache, sequences * self.cache.columns
        if cache.whole or cache.pages >= most:
            return self
        if not cache.row_bytes:
            cache = replace(cache, rows=2 * self.lanes)
        left = free - replace(self, cache=cache).bytes
        more = max(0, left // (cache.page * cache.token_bytes + self.lane_bytes))
        return replace(self, cache=replace(cache, pages=min(most, cache.pages + more)))


def _cache_size(
    loaded: LoadedModel,
    needs: AdapterNeeds,
    mixers: Mixers,
    max_length: int,
    wanted: int,
    concurrency: int,
) -> _CacheSize:
    """Room for as many sequences of full length as may run or be kept at once."""
    prefix = loaded.prefix.length if loaded.prefix else 0
    capacity = -(-(prefix + max_length + 8) // 16) * 16  # room for the steps between two looks
    page = PAGE if torch.device(loaded.device).type == "cuda" else capacity
    held = max(wanted, min(2 * wanted, concurrency)) if needs.keeps else wanted
    return _CacheSize(
        rows=held if page >= capacity or len(mixers) else 2 * wanted,
        page=page,
        pages=held * -(-capacity // page),
        capacity=capacity,
        prefix=prefix,
        token_bytes=sum(_numbers(loaded.model), needs.hidden) * _itemsize(loaded.model),
        copied_bytes=_copied_bytes(loaded),
        row_bytes=mixers.row_bytes,
    )


def _numbers(model: Any) -> list[int]:
    """How many numbers a token's keys and values are, layer by layer."""
    return [own.numbers for layer, own in read_heads(model).items() if own.owner == layer]


def _copied_bytes(loaded: LoadedModel) -> int:
    """Of a token's keys and values in the layer that has most, as they are gathered to be read; 0
    on a GPU, whose kernels read them where they lie.
    """
    if torch.device(loaded.device).type == "cuda":
        return 0
    return max(_numbers(loaded.model), default=0) * _itemsize(loaded.model)


def _itemsize(model: Any) -> int:
    return int(next(model.parameters()).element_size())


def _check_width(beams: int, batch_size: int | None) -> None:
    """Refuse a search that is wider than the batch."""
    if batch_size is not None and beams > batch_size:
        raise UsageError(
            f"A search of {beams} beams does not fit --batch-size {batch_size}; raise that to "
            f"{beams}, or lower --trials."
        )


def _lower(fit: int, wanted: int, beams: int, limit: float | None) -> str:
    """What to lower, where ``fit`` of the ``wanted`` sequences would fit, and what to raise."""
    if not fit:
        return f"{'free some memory' if limit is None else 'raise --memory-share'} or lower"
    option = "--trials" if wanted == beams else "--batch-size"
    option += " and --trials" if fit < beams < wanted else ""
    more = "" if limit is None else "raise --memory-share, "
    return f"{more}lower {option} to {fit}, which fits, or lower"


def _too_large(
    held: tuple[int, int],
    slots: int,
    slot: int,
    needed: int,
    free: int,
    there: str,
    lower: str,
) -> UsageError:
    gib = 2.0**30
    adapters = f" and {_count(slots, 'adapter')} of {slot / 2**20:.0f} MiB" if slots else ""
    large = slots * slot > free / 2 > 0  # no rank is low enough where nothing is left
    smaller = ", or take adapters of a lower rank or on fewer layers" if large else ""
    return UsageError(
        f"{_count(held[0], 'sequence')} of {held[1]} tokens{adapters} need "
        f"{needed / gib:.1f} GiB beside the model and "
        f"{max(free, 0) / gib:.1f} GiB {there}; {lower} --max-new-tokens{smaller}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class _Passes:
    """Sizes of a prefill and of a train pass, and the bytes that the larger one holds."""

    prefill_tokens: int
    train_tokens: int
    train_bytes: int
    train_longest: int
    train_questions: int
    captured: int
    """What captured train passes hold, at any time."""
    working: int


def _passes(
    loaded: LoadedModel,
    device: torch.device,
    needs: AdapterNeeds,
    max_length: int,
    scanned: int,
    part: float,
    adapters: int,
) -> _Passes:
    """Size the passes by what each of their tokens and questions holds.

    On a GPU they have as many tokens as a ``part`` of the memory's share for them holds; a train
    pass has room for some, however small that is. ``scanned`` is what a token takes in a layer that
    carries state; in a train pass such layers are run again one by one.
    """
    config: Any = loaded.model.config.get_text_config()
    layer_bytes = activation_bytes(loaded.model) + scanned
    longest = max_length + TRAIN_TOKENS  # what is said after an attempt is longer than a row
    least = TRAIN_TOKENS if part else min(TRAIN_TOKENS // 4, max_length)
    if not needs.long_token:
        least = max(least, max_length)
    token_bytes = needs.token + 3 * scanned  # with what its gradient is taken of
    prefill, train, captured = 2048, least, 0
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        captured = int(part * total * CAPTURED) if adapters and needs.captures else 0
        prefill = int(min(PREFILL_TOKENS, max(2048, part * total * 0.05 // layer_bytes)))
        train = int(max(least, min(16384, part * total * needs.share // token_bytes)))
    questions = max(1, min(needs.questions, adapters))
    if needs.question:
        questions = max(1, min(questions, QUESTION_BYTES // needs.question))
    tokens = max(train * token_bytes, longest * (needs.long_token + 3 * scanned))
    logits = min(3 * LOGIT_BYTES, 12 * config.vocab_size * max(train, longest))
    # a quarter may be padding
    trains = 1.25 * tokens + logits + questions * needs.question if adapters else 0
    working = int(max(1.25 * prefill * layer_bytes, trains)) + 2**28
    working += max(_dequantized_bytes(loaded.model), default=0)
    held = int(1.25 * train * token_bytes) if adapters else 0
    return _Passes(prefill, train, held, max(train, longest), questions, captured, working)


def _dequantized_bytes(model: Any) -> Iterator[int]:
    """What each quantised layer's product takes: its weights in the model's dtype."""
    for layer in quantized_layers(model):
        yield layer.in_features * layer.out_features * int(model.dtype.itemsize)


def activation_bytes(model: Any) -> int:
    """What a token's activations take in a decoder layer."""
    config: Any = model.config.get_text_config()
    itemsize = next(model.parameters()).element_size()
    return int((12 * config.hidden_size + 4 * _inner_width(config)) * itemsize)


def _inner_width(config: Any) -> int:
    """The width of the layers' inner products; the widest, where layers differ."""
    names = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
    width = next(filter(None, (getattr(config, name, None) for name in names)), None)
    return max(width) if isinstance(width, list | tuple) else int(width or 4 * config.hidden_size)


def _search_bytes(loaded: LoadedModel, max_length: int) -> int:
    """What a step of a beam search holds of each beam, beside its pages of the cache.

    Scores of the vocabulary in float32 and their copies; on a CPU, keys and values of one layer, as
    they are gathered; the tokens so far, of the beams and of the candidates to follow them.
    """
    config: Any = loaded.model.config.get_text_config()
    gathered = 2 * _copied_bytes(loaded) * max_length
    return int(24 * config.vocab_size + gathered + 64 * max_length)
