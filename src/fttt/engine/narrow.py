"""Linear layers for the few rows of a decode step on a CPU.

With up to 8 rows (16 for a large output layer) the weights are read faster as the left factor of
the product, and those of a large output layer in blocks (measured by ``benchmarks/linear.py``).
While an engine runs on a CPU, this form stands in for the model's own ``nn.Linear`` layers in
passes of so few rows; all other passes run as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["narrow_linear", "narrow_linears"]

FEW_ROWS, MOST_ROWS = 8, 16
"""Up to which it is faster for any layer, and for a large output layer."""
BLOCK = 2048
"""Output features of one product."""


def narrow_linears(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """A stand-in for the ``forward`` of each linear layer."""
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    return [(layer, "forward", _forward_of(layer)) for layer in layers]


def _forward_of(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // layer.in_features
        few = rows <= FEW_ROWS or (rows <= MOST_ROWS and layer.out_features > 4 * BLOCK)
        if not few or torch.is_grad_enabled():
            return F.linear(x, layer.weight, layer.bias)
        return narrow_linear(x, layer.weight, layer.bias)

    return forward


def narrow_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """``x @ weightᵀ + bias`` for 1 to 16 rows, as ``(weight @ xᵀ)ᵀ``.

    A product with one column takes longer than one with two, and 9 to 15 longer than 16, so zeros
    fill up to those.
    """
    outputs, inputs = weight_OI.shape
    x_RI = x.reshape(-1, inputs)
    rows = x_RI.shape[0]
    columns = 2 if rows == 1 else MOST_ROWS if rows > FEW_ROWS else rows
    if columns > rows:
        x_RI = torch.cat([x_RI, x_RI.new_zeros(columns - rows, inputs)])
    out_OR = x_RI.new_empty(outputs, columns)
    for start in range(0, outputs, BLOCK):
        block = weight_OI[start : start + BLOCK]
        torch.mm(block, x_RI.t(), out=out_OR[start : start + BLOCK])
    out_RO = out_OR[:, :rows].t()
    if bias_O is not None:
        out_RO = out_RO + bias_O
    return out_RO.contiguous().view(*x.shape[:-1], outputs)
