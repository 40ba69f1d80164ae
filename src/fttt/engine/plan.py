"""How much memory the engine takes, decided before the first token.

Rows are sized from what is free, so that a run either starts with room for what it may need or
says at once which option to change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from fttt.engine.adapters import count_parameters, layers_by_name
from fttt.engine.deltas import delta_bytes
from fttt.engine.heads import read_heads
from fttt.engine.memory import free_bytes
from fttt.engine.request import AdapterSpec, LoRASpec, WeightDeltaSpec
from fttt.engine.states import Mixers
from fttt.engine.upper import upper_part
from fttt.errors import RunError, UsageError
from fttt.models.loader import LoadedModel

__all__ = ["MemoryPlan", "plan_memory"]

TRAIN_TOKENS = 1024
"""Of a train pass on a CPU, where the memory allows it."""
DEFAULT_BATCH = {"cpu": 16, "cuda": 1024}
DELTA_BYTES = 2**32
"""Most that the predicted changes of weights of one train pass take, beyond one question's."""
LOGIT_BYTES = 2**28
"""Of float32 logits that are held at once where a loss is taken in chunks."""
STATE_BYTES = 12
"""Of each trained parameter: the weight and two moments, float32; 4 more in a train step."""


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
    train_questions: int
    """Questions whose changes of weights are predicted at once."""
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
        """What is said where it turns out to be too little."""
        return RunError(
            f"{device} ran out of memory beyond the plan ({self.describe()}); lower --batch-size "
            "or --max-new-tokens and resume."
        )


def hidden_width(model: Any, adapter: AdapterSpec | None) -> int:
    """Width of what is kept of the layers below the edited ones; 0 where there are none below."""
    if not isinstance(adapter, WeightDeltaSpec) or upper_part(model, adapter.layers) is None:
        return 0
    return int(model.config.get_text_config().hidden_size)


def plan_memory(
    loaded: LoadedModel,
    *,
    max_length: int,
    batch_size: int | None,
    concurrency: int,
    adapter: AdapterSpec | None,
    beams: int = 0,
) -> MemoryPlan:
    """Size the engine for sequences of ``max_length`` tokens.

    A batch size that was asked for is kept or refused, never lowered; without one, as many
    sequences run as the free memory takes, 1,024 on a GPU and 16 on a CPU at most. Where train
    steps read rows, up to as many rows again hold finished sequences until then. Where methods
    search, there is room for the ``beams`` of one question at least.

    Raises:
        UsageError: it does not fit; the sentence names the options to change.
    """
    device = torch.device(loaded.device)
    prefix = loaded.prefix.length if loaded.prefix else 0
    capacity = -(-(prefix + max_length + 8) // 16) * 16  # room for the steps between two looks
    slot_bytes = _slot_bytes(loaded, adapter)
    hidden = hidden_width(loaded.model, adapter)
    mixers = Mixers(loaded.model)
    row_bytes, layer_bytes = _row_bytes(loaded.model, hidden, capacity)
    row_bytes += mixers.row_bytes
    passes, smaller = (
        _passes(loaded, device, adapter, max_length, mixers.token_bytes, least)
        for least in (TRAIN_TOKENS, min(TRAIN_TOKENS, max_length))
    )
    lane_bytes = _search_bytes(loaded, layer_bytes, max_length) if beams else 0
    free = free_bytes(device)
    if batch_size is not None and beams > batch_size:
        raise UsageError(
            f"A search of {beams} beams does not fit --batch-size {batch_size}; raise that to "
            f"{beams}, or lower --trials."
        )
    wanted = max(1, beams, min(batch_size or DEFAULT_BATCH[device.type], concurrency))
    keeps = isinstance(adapter, LoRASpec) or hidden > 0
    rows = max(wanted, min(2 * wanted, concurrency)) if keeps else wanted
    slots = concurrency if adapter else 0

    def needed() -> int:
        working = max(passes.working, wanted * lane_bytes)
        return int((rows + 1) * row_bytes + slots * slot_bytes + working)

    while needed() > free:
        if slots > rows:
            slots = max(rows, slots * 7 // 8)
        elif rows > wanted:
            rows = max(wanted, rows * 7 // 8)
        elif passes is not smaller:  # fewer feedback turns to a train pass
            passes = smaller
        elif batch_size is None and wanted > max(1, beams):
            wanted = rows = max(1, beams, wanted * 7 // 8)
        else:
            held = f"{_count(wanted, 'sequence')} of {max_length} tokens"
            if adapter:
                held += f" and {_count(slots, 'adapter')} of {slot_bytes / 2**20:.0f} MiB"
            option = "--trials" if wanted == beams else "--batch-size"
            raise _too_large(held, needed(), free, device, None if wanted == 1 else option)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    return MemoryPlan(
        batch_size=wanted,
        rows=rows,
        capacity=capacity,
        slots=slots,
        hidden=hidden,
        prefill_tokens=passes.prefill_tokens,
        train_tokens=passes.train_tokens,
        train_questions=passes.train_questions,
        search_lanes=wanted if beams else 0,
        weight_bytes=weights,
        cache_bytes=(rows + 1) * row_bytes,
        adapter_bytes=slots * slot_bytes,
        working_bytes=max(passes.working, wanted * lane_bytes),
    )


def _row_bytes(model: Any, hidden: int, capacity: int) -> tuple[int, int]:
    """What a row of this many tokens takes without states, and its part in the largest layer."""
    heads, itemsize = read_heads(model), next(model.parameters()).element_size()
    numbers = [own.numbers for layer, own in heads.items() if own.owner == layer]
    token_bytes = (sum(numbers) + hidden) * itemsize
    return token_bytes * capacity, max(numbers, default=0) * itemsize * capacity


def _too_large(
    held: str, needed: int, free: int, device: torch.device, option: str | None
) -> UsageError:
    gib = 2.0**30
    lower = "free some memory or lower" if option is None else f"lower {option} or"
    return UsageError(
        f"{held} need {needed / gib:.1f} GiB beside the model and {max(free, 0) / gib:.1f} GiB are "
        f"free on {device}; {lower} --max-new-tokens."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class _Passes:
    """Sizes of a prefill and of a train pass, and the bytes that the larger one holds."""

    prefill_tokens: int
    train_tokens: int
    train_questions: int
    working: int


def _passes(
    loaded: LoadedModel,
    device: torch.device,
    adapter: AdapterSpec | None,
    max_length: int,
    scanned: int,
    least: int,
) -> _Passes:
    """Size the passes by what each of their tokens and questions holds.

    A train pass has room for ``least`` tokens, however small the memory is. ``scanned`` is what a
    token takes in a layer that carries state; in a train pass such layers are run again one by one.
    """
    config: Any = loaded.model.config.get_text_config()
    itemsize = next(loaded.model.parameters()).element_size()
    layer_bytes = (12 * config.hidden_size + 4 * _inner_width(config)) * itemsize
    if isinstance(adapter, WeightDeltaSpec):
        token_bytes, question_bytes = _delta_train_bytes(loaded, adapter, layer_bytes)
        share, least = 0.1, max(least, max_length)  # an attempt is run as a whole
    else:  # activations of all layers, what adapters on two linear layers of each read (in float32,
        # before and after dropout), and logits in float32 with their gradient
        held = layer_bytes + 16 * config.hidden_size
        token_bytes = held * config.num_hidden_layers + 12 * config.vocab_size
        question_bytes = 0
        share = 0.25
    layer_bytes += scanned
    token_bytes += 3 * scanned  # with what its gradient is taken of
    prefill, train, questions = 2048, least, 16
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        prefill = int(min(32768, max(2048, total * 0.05 // layer_bytes)))
        train = int(max(least, min(16384, total * share // token_bytes)))
        questions = 256
    trains = train * token_bytes if adapter else 0
    if question_bytes:
        questions = max(1, min(questions, DELTA_BYTES // question_bytes))
        trains += questions * question_bytes + min(3 * LOGIT_BYTES, 12 * config.vocab_size * train)
    working = int(1.25 * max(prefill * layer_bytes, trains)) + 2**28  # a quarter may be padding
    return _Passes(prefill, train, questions, working)


def _inner_width(config: Any) -> int:
    """The width of the layers' inner products; the widest, where layers differ."""
    names = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
    width = next(filter(None, (getattr(config, name, None) for name in names)), None)
    return max(width) if isinstance(width, list | tuple) else int(width or 4 * config.hidden_size)


def _slot_bytes(loaded: LoadedModel, adapter: AdapterSpec | None) -> int:
    """What one question's own weights take."""
    if adapter is None:
        return 0
    if isinstance(adapter, WeightDeltaSpec):
        return delta_bytes(loaded.model, adapter)
    return STATE_BYTES * count_parameters(loaded.model, adapter)


def _delta_train_bytes(
    loaded: LoadedModel, spec: WeightDeltaSpec, layer_bytes: int
) -> tuple[int, int]:
    """What a token and a question of a pass hold that takes factors and predicts changes.

    What the first edited layer is given, twice, and activations from there on; inputs and output
    gradients of the edited weights, as they are and as a network rewrites them, in float32; the
    changes in float32, twice.
    """
    config: Any = loaded.model.config.get_text_config()
    layers = layers_by_name(loaded.model, spec.layers)
    numbers = [int(n) for name in layers for n in re.findall(r"\.(\d+)\.", name)[:1]]
    above = config.num_hidden_layers - min(numbers, default=0)
    widths = [layer.in_features + layer.out_features for layer in layers.values()]
    given = 2 * config.hidden_size * next(loaded.model.parameters()).element_size()
    token_bytes = given + layer_bytes * above + 12 * (sum(widths) + max(widths))
    return token_bytes, 8 * sum(layer.weight.numel() for layer in layers.values())


def _search_bytes(loaded: LoadedModel, layer_bytes: int, max_length: int) -> int:
    """What a step of a beam search holds of each beam, beside its row of the cache.

    Scores of the vocabulary in float32 and their copies; on a CPU, keys and values of one layer, as
    they are gathered; the tokens so far, of the beams and of the candidates to follow them.
    """
    config: Any = loaded.model.config.get_text_config()
    gathered = 0 if torch.device(loaded.device).type == "cuda" else 2 * layer_bytes
    return int(24 * config.vocab_size + gathered + 64 * max_length)
