"""How much memory the engine takes, decided before the first token, and what is free on a device.

Rows are sized from what is free, so that a run either starts with room for what it may need or
says at once which option to change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from fttt.engine.adapters import bank_of
from fttt.engine.adapters.bank import AdapterNeeds
from fttt.engine.cache import read_heads
from fttt.engine.request import AdapterSpec
from fttt.engine.sequences import LOGIT_BYTES
from fttt.engine.states import Mixers
from fttt.errors import RunError, UsageError
from fttt.models.loader import LoadedModel
from fttt.models.quantized import held_bytes, quantized_layers

__all__ = ["MemoryPlan", "free_bytes", "plan_memory", "taking_memory"]

TRAIN_TOKENS = 1024
"""Of a train pass on a CPU, where the memory allows it."""
DEFAULT_BATCH = {"cpu": 16, "cuda": 1024}
_CPU_FULL = "can't allocate memory"
"""What torch says, in an error of no kind of its own, where a CPU has no memory left."""
QUESTION_BYTES = 2**32
"""Most that the questions of one train pass take beside its tokens, beyond one question's."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes of the engine's parts, and what they take."""

    batch_size: int
    """Sequences that run at once."""
    rows: int
    """Sequences that the cache holds: running ones and those kept for a train step."""
    capacity: int
    """Tokens a row holds."""
    slots: int
    """Adapters that are open at once."""
    hidden: int
    """Width of the hidden states that a row holds beside keys and values, 0 for none."""
    prefill_tokens: int
    """Tokens of one prefill pass."""
    train_tokens: int
    """Tokens of one train pass, whose activations are held for the gradient."""
    train_longest: int
    """Tokens of the longest target of a train step."""
    train_questions: int
    """Questions that take a step at once."""
    search_lanes: int
    """Beams, of one question or more, that are searched at once; 0 where none are asked for."""
    weight_bytes: int
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
            f"{self.batch_size} sequences at once, {self.rows} rows of {self.capacity} tokens, "
            f"{self.slots} adapters: weights {self.weight_bytes / gib:.2f} GiB, "
            f"cache {self.cache_bytes / gib:.2f}, adapters {self.adapter_bytes / gib:.2f}, "
            f"working {self.working_bytes / gib:.2f}, in all {self.total_bytes / gib:.2f}"
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
            f"{device} ran out of memory as the engine was made; lower --batch-size or "
            "--max-new-tokens, or end what else holds its memory."
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
) -> MemoryPlan:
    """Size the engine for sequences of ``max_length`` tokens.

    A batch size that was asked for is kept, or refused with the largest that fits; without one, as
    many sequences run as the free memory takes, 1,024 on a GPU and 16 on a CPU at most. Where train
    steps read rows, up to as many rows again hold finished sequences until then. Where methods
    search, there is room for the ``beams`` of one question at least. So many ``adapters`` as are
    wanted (``None``: one a question) are open at once, or as fit, ``least_adapters`` at least.

    Raises:
        UsageError: it does not fit; the sentence names the options to change.
    """
    device = torch.device(loaded.device)
    prefix = loaded.prefix.length if loaded.prefix else 0
    capacity = -(-(prefix + max_length + 8) // 16) * 16  # room for the steps between two looks
    needs = AdapterNeeds(0, 1, 1, 0, 0, 0.0, keeps=False)
    if adapter is not None:
        needs = bank_of(adapter).needs(loaded.model, adapter, activation_bytes(loaded.model))
    mixers = Mixers(loaded.model)
    row_bytes, layer_bytes = _row_bytes(loaded.model, needs.hidden, capacity)
    row_bytes += mixers.row_bytes
    most = (concurrency if adapters is None else max(adapters, least_adapters)) if adapter else 0
    passes, smaller = (
        _passes(loaded, device, needs, max_length, mixers.token_bytes, least, most)
        for least in (TRAIN_TOKENS, min(TRAIN_TOKENS // 4, max_length))
    )
    lane_bytes = _search_bytes(loaded, layer_bytes, max_length) if beams else 0
    free = free_bytes(device)
    _check_width(beams, batch_size)
    wanted = max(1, beams, min(batch_size or DEFAULT_BATCH[device.type], concurrency))
    rows = max(wanted, min(2 * wanted, concurrency)) if needs.keeps else wanted
    slots = most

    def needed(rows: int, slots: int, lanes: int, passes: _Passes) -> int:
        working = max(passes.working, lanes * lane_bytes)
        return int((rows + 1) * row_bytes + slots * needs.slot + working)

    def least(lanes: int) -> int:
        """What so many sequences need."""
        return needed(lanes, min(most, max(lanes, least_adapters)), lanes, smaller)

    while needed(rows, slots, wanted, passes) > free:
        if slots > max(rows, least_adapters):
            slots = max(rows, least_adapters, slots * 7 // 8)
        elif rows > wanted:
            rows = max(wanted, rows * 7 // 8)
        elif passes is not smaller:  # fewer feedback turns to a train pass
            passes = smaller
        elif batch_size is None and wanted > max(1, beams):
            wanted = rows = max(1, beams, wanted * 7 // 8)
        else:
            fit = bisect_right(range(1, wanted), free, key=least)
            held, total = (wanted, max_length), needed(rows, slots, wanted, passes)
            advice = _lower(fit, wanted, beams)
            raise _too_large(held, slots, needs.slot, total, free, device, advice)
    return MemoryPlan(
        batch_size=wanted,
        rows=rows,
        capacity=capacity,
        slots=slots,
        hidden=needs.hidden,
        prefill_tokens=passes.prefill_tokens,
        train_tokens=passes.train_tokens,
        train_longest=passes.train_longest,
        train_questions=passes.train_questions,
        search_lanes=wanted if beams else 0,
        weight_bytes=held_bytes(loaded.model),
        cache_bytes=(rows + 1) * row_bytes,
        adapter_bytes=slots * needs.slot,
        working_bytes=max(passes.working, wanted * lane_bytes),
    )


def _row_bytes(model: Any, hidden: int, capacity: int) -> tuple[int, int]:
    """What a row of this many tokens takes without states, and its part in the largest layer."""
    heads, itemsize = read_heads(model), next(model.parameters()).element_size()
    numbers = [own.numbers for layer, own in heads.items() if own.owner == layer]
    token_bytes = (sum(numbers) + hidden) * itemsize
    return token_bytes * capacity, max(numbers, default=0) * itemsize * capacity


def _check_width(beams: int, batch_size: int | None) -> None:
    """Refuse a search that is wider than the batch."""
    if batch_size is not None and beams > batch_size:
        raise UsageError(
            f"A search of {beams} beams does not fit --batch-size {batch_size}; raise that to "
            f"{beams}, or lower --trials."
        )


def _lower(fit: int, wanted: int, beams: int) -> str:
    """What to lower, where ``fit`` of the ``wanted`` sequences would fit."""
    if not fit:
        return "free some memory or lower"
    option = "--trials" if wanted == beams else "--batch-size"
    option += " and --trials" if fit < beams < wanted else ""
    return f"lower {option} to {fit}, which fits, or lower"


def _too_large(
    held: tuple[int, int],
    slots: int,
    slot: int,
    needed: int,
    free: int,
    device: torch.device,
    lower: str,
) -> UsageError:
    gib = 2.0**30
    adapters = f" and {_count(slots, 'adapter')} of {slot / 2**20:.0f} MiB" if slots else ""
    large = slots * slot > free / 2
    smaller = ", or take adapters of a lower rank or on fewer layers" if large else ""
    return UsageError(
        f"{_count(held[0], 'sequence')} of {held[1]} tokens{adapters} need "
        f"{needed / gib:.1f} GiB beside the model and "
        f"{max(free, 0) / gib:.1f} GiB are free on {device}; {lower} --max-new-tokens{smaller}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class _Passes:
    """Sizes of a prefill and of a train pass, and the bytes that the larger one holds."""

    prefill_tokens: int
    train_tokens: int
    train_longest: int
    train_questions: int
    working: int


def _passes(
    loaded: LoadedModel,
    device: torch.device,
    needs: AdapterNeeds,
    max_length: int,
    scanned: int,
    least: int,
    adapters: int,
) -> _Passes:
    """Size the passes by what each of their tokens and questions holds.

    A train pass has room for ``least`` tokens, however small the memory is. ``scanned`` is what a
    token takes in a layer that carries state; in a train pass such layers are run again one by one.
    """
    config: Any = loaded.model.config.get_text_config()
    layer_bytes = activation_bytes(loaded.model) + scanned
    longest = max_length + TRAIN_TOKENS  # what is said after an attempt is longer than a row
    if not needs.long_token:
        least = max(least, max_length)
    token_bytes = needs.token + 3 * scanned  # with what its gradient is taken of
    prefill, train = 2048, least
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        prefill = int(min(32768, max(2048, total * 0.05 // layer_bytes)))
        train = int(max(least, min(16384, total * needs.share // token_bytes)))
    questions = max(1, min(needs.questions, adapters))
    if needs.question:
        questions = max(1, min(questions, QUESTION_BYTES // needs.question))
    tokens = max(train * token_bytes, longest * (needs.long_token + 3 * scanned))
    logits = min(3 * LOGIT_BYTES, 12 * config.vocab_size * max(train, longest))
    # a quarter may be padding
    trains = 1.25 * tokens + logits + questions * needs.question if adapters else 0
    working = int(max(1.25 * prefill * layer_bytes, trains)) + 2**28
    working += max(_dequantized_bytes(loaded.model), default=0)
    return _Passes(prefill, train, max(train, longest), questions, working)


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


def _search_bytes(loaded: LoadedModel, layer_bytes: int, max_length: int) -> int:
    """What a step of a beam search holds of each beam, beside its row of the cache.

    Scores of the vocabulary in float32 and their copies; on a CPU, keys and values of one layer, as
    they are gathered; the tokens so far, of the beams and of the candidates to follow them.
    """
    config: Any = loaded.model.config.get_text_config()
    gathered = 0 if torch.device(loaded.device).type == "cuda" else 2 * layer_bytes
    return int(24 * config.vocab_size + gathered + 64 * max_length)


MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a control group: its limit, what it has taken, and which line of ``memory.stat`` says how much
of that is a cache of files, which is given back when it is wanted."""


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor could take on ``device`` now; on a CPU, within the container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return min(int(psutil.virtual_memory().available), *_left(MEMBERSHIP, MOUNT))


def _left(membership: Path, mount: Path) -> Iterator[int]:
    """What each control group leaves that this process is in and that has a limit.

    A container's processes may see their own group at the mount itself, and not where its name
    says; whatever is not there has no say.
    """
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in {"", "memory"}:
                continue
            files = FILES["v1" if controllers else "v2"]
            root = mount / controllers
            for group in (root / name.lstrip("/") / "x").parents:
                if not group.is_relative_to(root):
                    break
                with suppress(OSError, ValueError):
                    yield _group_left(group, *files)


def _group_left(group: Path, limit: str, used: str, cache: str) -> int:
    """Raises ValueError where the group has no limit (``max``)."""
    stat = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
    taken = int((group / used).read_text()) - int(stat.get(cache, 0))
    return max(0, int((group / limit).read_text()) - taken)
