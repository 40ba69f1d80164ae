"""How much memory the engine takes, decided before the first token.

Rows are sized from what is free, so that a run either starts with room for what it may need or
says at once which option to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from fttt.engine.adapters import count_parameters
from fttt.engine.request import LoRASpec
from fttt.errors import UsageError
from fttt.models.loader import LoadedModel

__all__ = ["MemoryPlan", "kv_shape", "plan_memory"]

DEFAULT_BATCH = {"cpu": 16, "cuda": 1024}
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
    prefill_tokens: int
    """Tokens of one prefill pass."""
    train_tokens: int
    """Tokens of one train pass, whose activations are held for the gradient."""
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


def kv_shape(model: Any) -> tuple[int, int, int]:
    """Layers, key-value heads and head dimension of a model."""
    config: Any = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, kv_heads, dim


def plan_memory(
    loaded: LoadedModel,
    *,
    max_length: int,
    batch_size: int | None,
    concurrency: int,
    lora: LoRASpec | None,
    beams: int = 0,
) -> MemoryPlan:
    """Size the engine for sequences of ``max_length`` tokens.

    A batch size that was asked for is kept or refused, never lowered; without one, as many
    sequences run as the free memory takes, 1,024 on a GPU and 16 on a CPU at most. Where methods
    train, up to as many rows again hold finished sequences until their train step. Where methods
    search, there is room for the ``beams`` of one question at least.

    Raises:
        UsageError: it does not fit; the sentence names the options to change.
    """
    device = torch.device(loaded.device)
    dtype = next(loaded.model.parameters()).dtype
    layers, kv_heads, dim = kv_shape(loaded.model)
    prefix = loaded.prefix.length if loaded.prefix else 0
    capacity = -(-(prefix + max_length + 8) // 16) * 16  # room for the steps between two looks
    row_bytes = 2 * layers * kv_heads * dim * dtype.itemsize * capacity
    slot_bytes = STATE_BYTES * count_parameters(loaded.model, lora) if lora else 0
    prefill_tokens, train_tokens, working = _passes(loaded, device, trains=lora is not None)
    lane_bytes = _search_bytes(loaded, row_bytes // layers, max_length) if beams else 0
    free = free_bytes(device)
    if batch_size is not None and beams > batch_size:
        raise UsageError(
            f"A search of {beams} beams does not fit --batch-size {batch_size}; raise that to "
            f"{beams}, or lower --trials."
        )
    wanted = max(1, beams, min(batch_size or DEFAULT_BATCH[device.type], concurrency))
    rows = max(wanted, min(2 * wanted, concurrency)) if lora else wanted
    slots = concurrency if lora else 0

    def needed() -> int:
        passes = max(working, wanted * lane_bytes)
        return int((rows + 1) * row_bytes + slots * slot_bytes + passes)

    while needed() > free:
        if slots > rows:
            slots = max(rows, slots * 7 // 8)
        elif rows > wanted + 1:
            rows = max(wanted, rows * 7 // 8)
        elif batch_size is None and wanted > max(1, beams):
            wanted = rows = max(1, beams, wanted * 7 // 8)
        else:
            gib = 2.0**30
            option = "--trials" if wanted == beams else "--batch-size"
            raise UsageError(
                f"{wanted} sequences of {max_length} tokens need {needed() / gib:.1f} GiB beside "
                f"the model and {max(free, 0) / gib:.1f} GiB are free on {loaded.device}; lower "
                f"{option} or --max-new-tokens."
            )
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    return MemoryPlan(
        batch_size=wanted,
        rows=rows,
        capacity=capacity,
        slots=slots,
        prefill_tokens=prefill_tokens,
        train_tokens=train_tokens,
        search_lanes=wanted if beams else 0,
        weight_bytes=weights,
        cache_bytes=(rows + 1) * row_bytes,
        adapter_bytes=slots * slot_bytes,
        working_bytes=max(working, wanted * lane_bytes),
    )


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor could take on ``device`` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)


def _passes(loaded: LoadedModel, device: torch.device, *, trains: bool) -> tuple[int, int, int]:
    """Tokens of a prefill and of a train pass, and the bytes that the larger one holds.

    A train pass holds activations of all layers, what adapters on two linear layers of each read
    (in float32, before and after dropout), and logits in float32 with their gradient.
    """
    config: Any = loaded.model.config.get_text_config()
    itemsize = next(loaded.model.parameters()).element_size()
    prefill_bytes = (12 * config.hidden_size + 4 * config.intermediate_size) * itemsize
    layer_bytes = prefill_bytes + 16 * config.hidden_size
    train_bytes = layer_bytes * config.num_hidden_layers + 12 * config.vocab_size
    prefill, train = 2048, 1024
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        prefill = int(min(32768, max(2048, total * 0.05 // prefill_bytes)))
        train = int(min(16384, max(1024, total * 0.25 // train_bytes)))
    held = max(prefill * prefill_bytes, train * train_bytes if trains else 0)
    return prefill, train, int(1.25 * held) + 2**28  # a quarter of it may be padding


def _search_bytes(loaded: LoadedModel, layer_bytes: int, max_length: int) -> int:
    """What a step of a beam search holds of each beam, beside its row of the cache.

    Scores of the vocabulary in float32 and their copies; on a CPU, keys and values of one layer, as
    they are gathered; the tokens so far, of the beams and of the candidates to follow them.
    """
    config: Any = loaded.model.config.get_text_config()
    gathered = 0 if torch.device(loaded.device).type == "cuda" else 2 * layer_bytes
    return int(24 * config.vocab_size + gathered + 64 * max_length)
