"""What each attention layer keeps of a token, read off one short pass of the model.

Configurations say it in many ways, and layers may differ: in their key-value heads, in the size of
keys, which need not be that of values, and in whether they have keys and values of their own at all
or read those of a layer below. So two tokens are run, with an attention that only looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from fttt.errors import UsageError

__all__ = ["Heads", "read_heads"]

NAME = "fttt-heads"


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


def _read(model: Any) -> dict[int, Heads]:
    found: dict[int, Heads] = {}
    keys: dict[int, Tensor] = {}
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
            model(input_ids=ids, use_cache=False, fttt_seen=(found, keys))
    finally:
        model.set_attn_implementation(before)
    return found


def _look(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    fttt_seen: tuple[dict[int, Heads], dict[int, Tensor]],
    **_: Any,
) -> tuple[Tensor, None]:
    """Note the shapes of a layer's keys and values; nothing is attended to."""
    found, keys = fttt_seen
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if layer in found:
        raise UsageError(f"Layer {layer} of the model attends twice.")
    owner = next((n for n, other in keys.items() if other is key), layer)
    keys[layer] = key
    found[layer] = Heads(key.shape[1], key.shape[3], value.shape[3], owner)
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(NAME, _look)
