"""Norms, sums, rotary positions and gates in few operations each, on a CPU.

A decode step there spends a third of its time between the products, on calls more than on numbers.

Axes: D features of a head or of a hidden state.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "gated_product", "rms_norm", "rotary", "sum_and_norm"]


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
    """``x / rms(x) * (offset + weight)`` over the last axis, in the weight's precision."""
    if x.dtype != weight_D.dtype:  # of a norm that was trained in float32
        return rms_norm(x.to(weight_D.dtype), weight_D, eps, offset).to(x.dtype)
    return F.rms_norm(x, weight_D.shape, weight_D + offset if offset else weight_D, eps)


def sum_and_norm(
    x: Tensor, y: Tensor, weight_D: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``x + y``, and its :func:`rms_norm`."""
    total = x + y
    return total, rms_norm(total, weight_D, eps, offset)


def rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate ``[1, heads, N, D]`` queries and keys by ``[1, N, D]`` angles, or fewer features."""
    width = cos.shape[-1]
    cos, signed = cos.unsqueeze(1), _signed(sin)
    return _rotated(query, width, cos, signed), _rotated(key, width, cos, signed)


def _rotated(x: Tensor, width: int, cos: Tensor, signed: Tensor) -> Tensor:
    if width < x.shape[-1]:
        turned = _rotated(x[..., :width], width, cos, signed)
        return torch.cat((turned, x[..., width:]), -1)
    return torch.addcmul(x * cos, x.roll(width // 2, -1), signed)


@lru_cache(maxsize=2)  # a pass has one pair of angles for all layers, or two
def _signed(sin: Tensor) -> Tensor:
    """Sines whose first half is negative, as halves that changed places are to be multiplied."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-first, second), -1).unsqueeze(1)


ACTIVATIONS = (0, 1, 2)
"""SiLU, GELU and its approximation by tanh."""
_FUNCTIONS = (F.silu, F.gelu, partial(F.gelu, approximate="tanh"))


def gated_product(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """``activation(gate) * up``."""
    return _FUNCTIONS[kind](gate) * up
