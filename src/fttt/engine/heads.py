"""What each attention layer keeps of a token, read off one short pass of the model.

Configurations say it in many ways, and layers may differ: in their key-value heads, in the size of
keys, which need not be that of values, and in whether they have keys and values of their own at all
or read those of a layer below. So two tokens are run, with an attention that only looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from fttt.engine.batch import Current
from fttt.engine.families import attention_stand_ins, interface
from fttt.errors import UsageError

__all__ = ["Heads", "layer_of", "read_heads"]

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


def layer_of(module: Any) -> int:
    """The number of an attention module's layer."""
    number = getattr(module, "layer_idx", None)
    return int(module.layer_id if number is None else number)


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

    AttentionInterface.register(NAME, look)
    stand_ins = [*attention_stand_ins(model, look, Current()), *interface(model, NAME)]
    # norms may be kept in float32 between linear layers in half precision, to be trained
    dtypes = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16, torch.float32}
    mixed = len(dtypes) > 1
    half = torch.float16 if torch.float16 in dtypes else torch.bfloat16
    with (
        ExitStack() as stack,
        torch.no_grad(),
        torch.autocast(model.device.type, dtype=half, enabled=mixed),
    ):
        for owner, name, replacement in stand_ins:
            stack.enter_context(patch.object(owner, name, replacement))
        ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
        model(input_ids=ids, use_cache=False)
    return found
