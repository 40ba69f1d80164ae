"""Trained weights that keep what half precision would round away.

Where a change is small beside the weights, a merge in bfloat16 loses it, and so does adding it to
the layer's output, which has been rounded to as few digits by then. Here a merged weight is the sum
of two numbers of half precision, and one product takes both, so that the sum over the inputs is
rounded once, at its end, as the model's own layers round theirs.

Axes: O outputs and I inputs of a layer, J the numbers of an output (its weights; where there is a
bias, that and zeros), K = 2 J their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TwoPartLinear", "keep_in"]

ONES = 8
"""Inputs of 1 for a bias: two are used, and the others, times zero, keep rows aligned."""


class TwoPartLinear(nn.Linear):
    """A linear layer whose numbers are each the sum of two numbers of half precision.

    It takes twice the memory and twice the product of a plain layer.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        """Take the numbers of a float32 layer.

        Args:
            layer: stays as it is.
            dtype: of the parts, and of what the layer is given and gives.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # Both parts of a number lie side by side: where a product is summed in pieces, each of
        # them rounded, they are in the same piece.
        parts = [_two_parts(layer.weight.data, dtype).flatten(1)]
        if layer.bias is not None:  # as weights of inputs that are always 1
            parts.append(F.pad(_two_parts(layer.bias.data, dtype), (0, ONES - 2)))
        self.parts_OK = nn.Parameter(torch.cat(parts, 1))
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The first parts of the weights, ``[O, I]``."""
        return self.parts_OK[:, : 2 * self.in_features : 2]

    def forward(self, input: Tensor) -> Tensor:
        """As a plain layer; the argument has torch's own name."""
        twice_K = input[..., None].expand(*input.shape, 2).flatten(-2)
        ones = self.parts_OK.shape[1] - twice_K.shape[-1]
        return F.linear(F.pad(twice_K, (0, ones), value=1.0) if ones else twice_K, self.parts_OK)

    def numbers(self) -> dict[str, Tensor]:
        """The sums of the parts, in float32, as ``weight`` and ``bias``."""
        sum_OJ = self.parts_OK.data.float().unflatten(1, (-1, 2)).sum(-1)
        numbers = {"weight": sum_OJ[:, : self.in_features]}
        if sum_OJ.shape[1] > self.in_features:
            numbers["bias"] = sum_OJ[:, self.in_features]
        return numbers


def _two_parts(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 numbers, rounded, and what that leaves, rounded, along a new last axis."""
    first = numbers.to(dtype)
    return torch.stack([first, (numbers - first.float()).to(dtype)], -1)


def keep_in(dtype: torch.dtype, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Let a module whose parameters are float32 serve in a model of another dtype.

    A linear layer is replaced by a :class:`TwoPartLinear`. Any other module, a norm, keeps its
    float32 numbers and computes with them; what it gives has the dtype of what it is given.

    Args:
        dtype: the model's own; after float32 nothing is to be done.
        model: changed in place.
        name: the module's full name.

    Returns:
        The numbers that the module computes with from now on, in float32, by parameter.
    """
    module: Any = model.get_submodule(name)
    if dtype != torch.float32 and isinstance(module, nn.Linear):
        kept = TwoPartLinear(module, dtype)
        model.set_submodule(name, kept)
        return kept.numbers()
    if dtype != torch.float32:
        module.forward = _in_float32(module.forward)
    return {key: parameter.data for key, parameter in module.named_parameters()}


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def widened(x: Tensor) -> Tensor:
        return forward(x.float()).to(x.dtype)

    return widened
