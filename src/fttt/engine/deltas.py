"""Changes of a few weights, one for each example or question, added to what the layers compute.

``y = W x`` becomes ``y = W x + ΔW x`` with a ``ΔW`` of the segment's own; the model's weights are
never touched. ``ΔW`` is dense, or a sum over tokens of ``left rightᵀ`` that is never multiplied
out.

Axes: B segments, T tokens of the longest, F factor tokens of the longest, I inputs and O outputs of
a layer, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from fttt.engine.adapters import layers_by_name
from fttt.engine.batch import Batch

__all__ = ["Delta", "FactoredDelta", "changed"]


@dataclass(frozen=True, slots=True)
class FactoredDelta:
    """``ΔW_b = sum_f left_bf right_bfᵀ``; shorter examples are padded with zeros."""

    left_BFO: Tensor
    right_BFI: Tensor

    def dense(self) -> Tensor:
        """``[B, O, I]``."""
        return self.left_BFO.transpose(1, 2) @ self.right_BFI


Delta = Tensor | FactoredDelta
"""One layer's changes, ``[B, O, I]`` or factored."""


@contextmanager
def changed(model: nn.Module, batch: Batch, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Add each segment's own change to the named layers while ``batch`` runs; gradients reach it.

    Args:
        model: whose layers are named in full.
        batch: whose segments the changes belong to, in turn.
        deltas: by layer name.

    Raises:
        UsageError: a layer that the model does not have.
    """
    layers = layers_by_name(model, list(deltas))

    def hook(delta: Delta):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            y_BTO = _product(batch.pad(inputs[0][0]), delta)
            return output + batch.unpad(y_BTO).to(output.dtype)

        return add

    hooks = [layers[name].register_forward_hook(hook(delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _product(x_BTI: Tensor, delta: Delta) -> Tensor:
    """``ΔW x``, in the change's dtype."""
    if isinstance(delta, FactoredDelta):
        x_BTI = x_BTI.to(delta.right_BFI.dtype)
        return (x_BTI @ delta.right_BFI.transpose(1, 2)) @ delta.left_BFO
    return x_BTI.to(delta.dtype) @ delta.transpose(1, 2)
