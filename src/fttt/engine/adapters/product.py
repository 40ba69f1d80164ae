"""The product of packed tokens with their own low-rank weights, and its gradient.

Autograd's own way through it takes three times as many operations. On a GPU the kernels of
:mod:`fttt.engine.ops.low_rank` compute the same.

Axes: N packed tokens, M tokens that have an adapter, U adapters, T tokens of the longest of them,
R rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fttt.engine import ops
from fttt.engine.batch import SlotGroups

__all__ = ["InputScale", "add_low_rank"]


@dataclass(frozen=True, slots=True)
class InputScale:
    """What a layer's inputs are multiplied by before its low-rank product.

    That is the adapter's scale, and in a train step dropout's factors, drawn by question, update,
    layer, position and feature.
    """

    scale_1: Tensor
    """float32, ``[1]``."""
    rate: float = 0.0
    """Of dropout."""
    key_N: Tensor | None = None
    """Dropout's stream of each token; ``None``: there is no dropout."""
    token_N: Tensor | None = None
    """A token's number in that stream is ``token * layers + layer``."""
    layers: int = 1
    layer: int = 0

    def factors(self, x_NI: Tensor) -> Tensor | None:
        """All factors of these inputs; ``None``: all are the adapter's scale."""
        if self.key_N is None or self.token_N is None:
            return None
        return self.mask(self.key_N, self.token_N[:, None], x_NI.shape[1])[:, 0] * self.scale_1

    def mask(self, key_B: Tensor, token_BT: Tensor, width: int) -> Tensor:
        """Dropout's factors of tokens in the streams of their segments, ``[B, T, width]``."""
        return ops.keep_mask(key_B, token_BT * self.layers + self.layer, width, self.rate)

    def times(self, x_NI: Tensor, factor_NI: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The product with :meth:`factors`, computed in float32, in one launch."""
        out_NI = torch.empty(x_NI.shape, dtype=dtype, device=x_NI.device)
        return torch.mul(x_NI, self.scale_1 if factor_NI is None else factor_NI, out=out_NI)


def add_low_rank(
    output: Tensor, x: Tensor, a_URI: Tensor, b_UOR: Tensor, groups: SlotGroups, scale: InputScale
) -> Tensor:
    """``output + (scale x Aᵀ) Bᵀ`` of each token's own A and B.

    Without gradients the output is changed in place.

    Args:
        output: of a layer, ``[1, N, O]`` or ``[N, O]``, as is ``x`` with ``I``.
        a_URI: float32, in the order of ``groups``, as is ``b_UOR``.
    """
    added: Tensor
    if x.is_cuda:
        added = ops.low_rank.add_low_rank(output, x, a_URI, b_UOR, groups, scale)
        return added
    if torch.is_grad_enabled():
        apply: Any = _AddLowRank.apply
        added = apply(output, x, a_URI, b_UOR, groups, scale)
        return added
    x_NI = x.flatten(0, -2)
    _, hidden = _hidden(x_NI, scale.factors(x_NI), a_URI, groups, scale, most=4.0)
    return _add(output, hidden, b_UOR, groups, in_place=True)


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        a_URI: Tensor,
        b_UOR: Tensor,
        groups: SlotGroups,
        scale: InputScale,
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        factor_NI = scale.factors(x_NI)
        # what is padded is held for the gradient
        blocks, hidden = _hidden(x_NI, factor_NI, a_URI, groups, scale, most=1.5)
        ctx.save_for_backward(a_URI, b_UOR, factor_NI, *blocks, *hidden)
        ctx.others = groups, scale, x.shape, x.dtype
        return _add(output, hidden, b_UOR, groups, in_place=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a_URI, b_UOR, factor_NI, *held = ctx.saved_tensors
        groups, scale, shape, dtype = ctx.others
        blocks, hidden = held[: len(held) // 2], held[len(held) // 2 :]
        up_MO = groups.select(gradients[0].flatten(0, -2)).float()
        ups = groups.blocks(up_MO, apart=len(blocks) > 1, zeros=True)
        parts = _parts(blocks)
        downs = [up @ b_UOR[part] for part, up in zip(parts, ups, strict=True)]
        b_gradients = [up.transpose(1, 2) @ h for up, h in zip(ups, hidden, strict=True)]
        a_gradients = [down.transpose(1, 2) @ x for down, x in zip(downs, blocks, strict=True)]
        x_gradient = None
        if ctx.needs_input_grad[1]:
            x_MI = groups.join([d @ a_URI[part] for part, d in zip(parts, downs, strict=True)])
            x_gradient = scale.times(groups.spread(x_MI), factor_NI, dtype).view(shape)
        return gradients[0], x_gradient, _cat(a_gradients), _cat(b_gradients), None, None


def _hidden(
    x_NI: Tensor,
    factor_NI: Tensor | None,
    a_URI: Tensor,
    groups: SlotGroups,
    scale: InputScale,
    *,
    most: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The scaled inputs ``[U, T, I]`` and what A makes of them, ``[U, T, R]``, block by block.

    All groups are one block, unless that would be padding to more than ``most`` times their tokens.
    """
    x_MI = groups.select(scale.times(x_NI, factor_NI, torch.float32))
    blocks = groups.blocks(x_MI, apart=groups.padded > most * len(x_MI) + 1024)
    a_URI = a_URI.transpose(1, 2)
    return blocks, [x @ a_URI[part] for part, x in zip(_parts(blocks), blocks, strict=True)]


def _add(
    output: Tensor, hidden: Sequence[Tensor], b_UOR: Tensor, groups: SlotGroups, *, in_place: bool
) -> Tensor:
    b_URO = b_UOR.transpose(1, 2)
    delta_MO = groups.join([h @ b_URO[p] for p, h in zip(_parts(hidden), hidden, strict=True)])
    if groups.where_M is not None:
        flat_NO = output.flatten(0, -2)
        return flat_NO.index_add(0, groups.where_M, delta_MO.to(output.dtype)).view_as(output)
    out = output
    if not in_place:
        out = torch.empty(output.shape, dtype=output.dtype, device=output.device)
    return torch.add(output, delta_MO.view(output.shape), out=out)


def _parts(blocks: Sequence[Tensor]) -> list[slice]:
    """Which groups each block has."""
    if len(blocks) == 1:
        return [slice(None)]
    return [slice(n, n + 1) for n in range(len(blocks))]


def _cat(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))
