"""Linear layers on a CPU, without a gradient: the fastest product for the rows that there are.

- With one row or two the weights have to be read and little else. Where the processor is not one of
  Intel's, that is fastest if they are the left factor of the product; the library behind
  ``F.linear`` is made for Intel's, and reads them two to three times as fast as that there.
- With more rows, oneDNN's product over weights that were laid out for it takes 0.45 to 0.75 of the
  time of ``F.linear`` at 16 rows and 0.6 to 0.8 at 64, on a processor of AMD's, and 0.7 to 1.1 on
  one of Intel's (``benchmarks/linear.py``). So weights are held a second time, laid out so, where
  that takes no more than a part of the memory that is free (:mod:`fttt.engine.memory_plan` counts
  them). The first pass that needs them lays them out.
- Without that memory, weights are the left factor up to 8 rows (16 for a large output layer) on
  other processors than Intel's, and all other passes run as they are.

Axes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fttt.engine.free_memory import free_bytes
from fttt.engine.merged import merged_linears
from fttt.models.quantized import is_plain

__all__ = ["few_row_linear", "linear_replacements", "second_weights"]

FEW_ROWS, MOST_ROWS = 8, 16
"""Up to which weights are the left factor: of any layer, and of a large output layer."""
BLOCK = 2048
"""Output features of one such product."""
LAID_OUT_ROWS, LAID_OUT_ROWS_INTEL = 3, 4
"""From which laid out weights are faster."""
LEAST = 2**16
"""Weights of the smallest layer that is laid out; below, the call of it costs more."""
PART = 4
"""Of the free memory, what laid out weights may take is this part of it."""


def linear_replacements(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """A replacement for the ``forward`` of each linear layer that is no quantised one.

    Layers that are given one input are one product (:mod:`fttt.engine.merged`).
    """
    layers = [x for x in model.modules() if isinstance(x, nn.Linear) and is_plain(x)]
    product = _FastProduct(lay_out=_fits(_count(model)[1]), intel=_is_intel())
    merged = merged_linears(model, product)
    done = {id(layer) for layer, _, _ in merged}
    alone = [layer for layer in layers if id(layer) not in done]
    return [*merged, *((layer, "forward", product.alone(layer)) for layer in alone)]


class _FastProduct:
    """``x Wᵀ + b`` of one layer, or of several whose weights lie end to end."""

    def __init__(self, *, lay_out: bool, intel: bool) -> None:
        """``lay_out``: whether weights may be held a second time; ``intel``: whose processor."""
        self._lay_out, self._intel = lay_out, intel
        self._from = LAID_OUT_ROWS_INTEL if intel else LAID_OUT_ROWS

    def __call__(
        self, layers: Sequence[nn.Linear], x: Tensor, weight_OI: Tensor, bias_O: Tensor | None
    ) -> Tensor:
        """The output of all these layers, whose weights and biases are given as one."""
        if torch.is_grad_enabled():
            return F.linear(x, weight_OI, bias_O)
        rows = x.numel() // weight_OI.shape[1]
        if self._lay_out and rows >= self._from:
            made = _laid_out(layers, weight_OI)
            if made is not None:
                out: Tensor = torch.ops.mkldnn._linear_pointwise(x, made, bias_O, "none", [], "")
                return out
        few = rows <= FEW_ROWS or (rows <= MOST_ROWS and weight_OI.shape[0] > 4 * BLOCK)
        return (few_row_linear if few and not self._intel else F.linear)(x, weight_OI, bias_O)

    def alone(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        """The ``forward`` of one layer."""
        layers = (layer,)
        return lambda x: self(layers, x, layer.weight, layer.bias)


@cache
def _is_intel() -> bool:
    """Whether the processor is one that the library behind ``F.linear`` is made for."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return "Intel" in platform.processor()


def _gains(layers: Sequence[nn.Linear], weight_OI: Tensor) -> bool:
    """Whether a product over these weights gains from another layout, and they stay as they are."""
    large = weight_OI.numel() >= LEAST and weight_OI.dtype == torch.float32
    return large and not any(layer.weight.requires_grad for layer in layers)


_Seen = list[tuple[int, int]]
_made: WeakKeyDictionary[nn.Module, tuple[_Seen, Tensor]] = WeakKeyDictionary()
"""By the first of the layers: where their weights lay and how often those had been changed, and
what was made of them then. All engines of a model share it."""
_held: WeakSet[nn.Module] = WeakSet()
"""All of those layers."""


def _laid_out(layers: Sequence[nn.Linear], weight_OI: Tensor) -> Tensor | None:
    """The weights as oneDNN reads them, made anew where they were changed since.

    ``None`` where nothing is gained by that.
    """
    weights = [layer.weight for layer in layers]
    seen = [(weight.data_ptr(), weight._version) for weight in weights]
    made = _made.get(layers[0])
    if made is None or made[0] != seen:
        if not _gains(layers, weight_OI):
            return None
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), MOST_ROWS)
        made = _made[layers[0]] = (seen, packed)
        _held.update(layers)
    return made[1]


def second_weights(model: nn.Module) -> tuple[int, int]:
    """Bytes of weights that are held a second time, and of those that will be.

    The latter are 0 where they would take too much of the memory that is free.
    """
    held, missing = _count(model)
    return held, missing if _fits(missing) else 0


def _count(model: nn.Module) -> tuple[int, int]:
    """Bytes of weights that are held a second time, and of those that would gain from it."""
    layers = [x for x in model.modules() if isinstance(x, nn.Linear) and is_plain(x)]
    wanted = [x for x in layers if x.weight.device.type == "cpu" and _gains((x,), x.weight)]
    held, missing = (
        sum(x.weight.numel() * x.weight.element_size() for x in wanted if (x in _held) == there)
        for there in (True, False)
    )
    return held, missing


def _fits(needed: int) -> bool:
    cpu = torch.device("cpu")
    return torch.backends.mkldnn.is_available() and needed <= free_bytes(cpu) // PART


def few_row_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
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
