"""The factors of a gradient, and the change of a weight that is predicted from them.

The gradient of a loss by the weight ``W`` of ``y = W x`` is the sum over tokens of ``delta xᵀ``,
where ``delta`` is the gradient by ``y``. OpTune (arXiv 2502.15771, section 4) predicts its update
from these pairs.

Axes: N packed tokens, Q or B examples, F factor tokens of the longest, I inputs and O outputs of a
layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Delta", "FactoredDelta", "Factors"]


@dataclass(frozen=True, slots=True)
class Factors:
    """Inputs and output gradients of some linear layers, token by token, of one or more examples.

    Tokens are packed as they ran; the last of an example predicts nothing, and its gradients are
    zero.
    """

    x_NI: Mapping[str, Tensor]
    """Inputs by full layer name, in the model's dtype. Layers that were given one tensor (a
    layer's query and value projections, say) share one here."""
    delta_NO: Mapping[str, Tensor]
    """Gradients of each example's loss by the layer's outputs, float32."""
    lengths: tuple[int, ...]
    """Tokens of each example."""
    segment_N: Tensor
    """The example that each token belongs to."""
    loss_Q: Tensor
    """Each example's loss."""

    @property
    def examples(self) -> int:
        """Q."""
        return len(self.lengths)

    def groups(self, size: int) -> Iterator[Factors]:
        """The same in groups of ``size`` examples, the last one smaller; nothing is copied."""
        end = 0
        for first in range(0, self.examples, size):
            lengths = self.lengths[first : first + size]
            own = slice(end, end := end + sum(lengths))
            yield Factors(
                x_NI={name: x_NI[own] for name, x_NI in self.x_NI.items()},
                delta_NO={name: delta_NO[own] for name, delta_NO in self.delta_NO.items()},
                lengths=lengths,
                segment_N=self.segment_N[own] - first,
                loss_Q=self.loss_Q[first : first + size],
            )


@dataclass(frozen=True, slots=True)
class FactoredDelta:
    """``ΔW_b = sum_f left_bf right_bfᵀ``; shorter examples are padded with zeros."""

    left_BFO: Tensor
    right_BFI: Tensor

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """``[B, O, I]``, multiplied in the factors' dtype or another."""
        left_BFO, right_BFI = self.left_BFO, self.right_BFI
        if dtype is not None:
            left_BFO, right_BFI = left_BFO.to(dtype), right_BFI.to(dtype)
        return left_BFO.transpose(1, 2) @ right_BFI


Delta = Tensor | FactoredDelta
"""One layer's changes, ``[B, O, I]`` or factored."""
