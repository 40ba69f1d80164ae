"""The product of packed tokens with their own low-rank weights on a GPU, and its gradient.

Forward and backward are two kernels each, and each reads a layer's inputs or outputs once, in their
own dtype. A token's rank is small, so nothing is worth a matrix unit: products are sums in float32
in registers, where a block of a group's weights stays while a program goes over the group's tokens.
Dropout's factors are computed where they multiply, so that neither they nor a float32 copy of the
inputs is ever in memory. Sums are made in one order, whatever runs beside them.

Axes: N packed tokens, M tokens that have an adapter, group by group, U adapters, R rank, I inputs
and O outputs of a layer, P parts of a layer's width, S splits of a group's tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fttt.engine.ops.triton import keep_factor

if TYPE_CHECKING:
    from fttt.engine.adapters.product import InputScale
    from fttt.engine.batch import SlotGroups

__all__ = ["add_low_rank"]

_PROGRAMS = 512
"""Programs that keep a GPU busy; where there are fewer, several share a group's tokens."""
_TILES = 16
"""Tiles of tokens that a program of the forward pass goes over at the most: groups may be of very
different lengths, and its splits cost nothing."""

_PLACES = ["key_ptr", "token_ptr", "end_ptr", "where_ptr"]
"""Parts of other tensors, aligned as it comes: with an odd number of tokens all kernels would be
compiled anew, in a second or two."""


def add_low_rank(
    output: Tensor, x: Tensor, a_URI: Tensor, b_UOR: Tensor, groups: SlotGroups, scale: InputScale
) -> Tensor:
    """:func:`fttt.engine.adapters.product.add_low_rank`, the same arguments."""
    if torch.is_grad_enabled():
        apply: Any = _LowRankProduct.apply
        added: Tensor = apply(output, x, a_URI, b_UOR, groups, scale)
        return added
    hidden_MR = _hidden(_rows(x), _packed(a_URI), groups, scale)
    flat_NO = _rows(output)
    _add(flat_NO, flat_NO, hidden_MR, _packed(b_UOR), groups)
    return flat_NO.view(output.shape)


class _LowRankProduct(torch.autograd.Function):
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
        x_NI, a_URI, b_UOR = _rows(x), _packed(a_URI), _packed(b_UOR)
        hidden_MR = _hidden(x_NI, a_URI, groups, scale)
        flat_NO = _rows(output)
        out_NO = torch.empty(flat_NO.shape, dtype=output.dtype, device=output.device)
        if groups.where_M is not None:  # the kernel passes over tokens without an adapter
            flat_NO = out_NO.copy_(flat_NO)
        _add(flat_NO, out_NO, hidden_MR, b_UOR, groups)
        ctx.save_for_backward(x_NI, a_URI, b_UOR, hidden_MR)
        ctx.others = groups, scale, x.shape
        return out_NO.view(output.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, a_URI, b_UOR, hidden_MR = ctx.saved_tensors
        groups, scale, shape = ctx.others
        down_MR, b_gradient = _through_b(_rows(gradients[0]), b_UOR, hidden_MR, groups, scale)
        x_gradient, a_gradient = _through_a(
            x_NI, a_URI, down_MR, groups, scale, wanted=ctx.needs_input_grad[1]
        )
        if x_gradient is not None:
            x_gradient = x_gradient.view(shape)
        return gradients[0], x_gradient, a_gradient, b_gradient, None, None


def _hidden(x_NI: Tensor, a_URI: Tensor, groups: SlotGroups, scale: InputScale) -> Tensor:
    """What A makes of the scaled inputs, ``[M, R]`` float32."""
    (_, rank, width), device = a_URI.shape, x_NI.device
    sizes = _sizes(rank)
    grid = _grid(width, groups, sizes, most=_TILES)
    count = groups.ragged.ends[-1]
    part_PMR = torch.empty(grid[0], count, rank, dtype=torch.float32, device=device)
    _hidden_kernel[grid](
        x_NI, a_URI, part_PMR, *_dropout(scale), *_places(groups), x_NI.stride(0), a_URI.stride(0),
        width, count, scale.rate, scale.layers, scale.layer,
        DROPS=scale.key_N is not None, WHERE=groups.where_M is not None, **sizes,
    )  # fmt: skip
    return _total(part_PMR)


def _add(
    old_NO: Tensor, out_NO: Tensor, hidden_MR: Tensor, b_UOR: Tensor, groups: SlotGroups
) -> None:
    """Write ``old + hidden Bᵀ`` to ``out``, which may be ``old``, where tokens have an adapter."""
    _, width, rank = b_UOR.shape
    sizes = _sizes(rank)
    _add_kernel[_grid(width, groups, sizes, most=_TILES)](
        old_NO, out_NO, hidden_MR, b_UOR, *_places(groups), old_NO.stride(0), out_NO.stride(0),
        b_UOR.stride(0), width, WHERE=groups.where_M is not None, **sizes,
    )  # fmt: skip


def _through_b(
    up_NO: Tensor, b_UOR: Tensor, hidden_MR: Tensor, groups: SlotGroups, scale: InputScale
) -> tuple[Tensor, Tensor]:
    """Gradients of the scaled product with A, ``[M, R]``, and of B, both float32."""
    slots, width, rank = b_UOR.shape
    sizes = _sizes(rank)
    grid = _grid(width, groups, sizes)
    part_PMR = hidden_MR.new_empty(grid[0], *hidden_MR.shape)
    gradient_SUOR = hidden_MR.new_empty(grid[2], slots, width, rank)
    _through_b_kernel[grid](
        up_NO, b_UOR, hidden_MR, part_PMR, gradient_SUOR, scale.scale_1, *_places(groups),
        up_NO.stride(0), b_UOR.stride(0), width, len(hidden_MR),
        WHERE=groups.where_M is not None, **sizes,
    )  # fmt: skip
    return _total(part_PMR), _total(gradient_SUOR)


def _through_a(
    x_NI: Tensor,
    a_URI: Tensor,
    down_MR: Tensor,
    groups: SlotGroups,
    scale: InputScale,
    *,
    wanted: bool,
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the inputs ``[N, I]`` in their dtype, where ``wanted``, and of A in float32."""
    slots, rank, width = a_URI.shape
    sizes = _sizes(rank)
    grid = _grid(width, groups, sizes)
    gradient_SURI = down_MR.new_empty(grid[2], slots, rank, width)
    out_NI = None
    if wanted:
        made = torch.empty if groups.where_M is None else torch.zeros
        out_NI = made(x_NI.shape, dtype=x_NI.dtype, device=x_NI.device)
    _through_a_kernel[grid](
        x_NI, a_URI, down_MR, x_NI if out_NI is None else out_NI, gradient_SURI, *_dropout(scale),
        *_places(groups), x_NI.stride(0), a_URI.stride(0), width,
        scale.rate, scale.layers, scale.layer,
        WANTED=wanted, DROPS=scale.key_N is not None, WHERE=groups.where_M is not None, **sizes,
    )  # fmt: skip
    return out_NI, _total(gradient_SURI)


def _rows(x: Tensor) -> Tensor:
    """``[..., D]`` as ``[N, D]`` whose rows are in one piece each."""
    x_ND = x.flatten(0, -2)
    return x_ND if x_ND.stride(1) == 1 else x_ND.contiguous()


def _packed(weights: Tensor) -> Tensor:
    """Stacked matrices in one piece each, as those in rows of flat weights are."""
    columns = weights.shape[2]
    return weights if weights.stride()[1:] == (columns, 1) else weights.contiguous()


def _places(groups: SlotGroups) -> tuple[Tensor, Tensor]:
    """Where each group's tokens end among those that have an adapter, and where these are."""
    end_U = groups.ragged.end_B
    return end_U, end_U if groups.where_M is None else groups.where_M


def _dropout(scale: InputScale) -> tuple[Tensor, Tensor, Tensor]:
    """The adapter's scale, and each token's stream and number in it."""
    if scale.key_N is None or scale.token_N is None:
        return scale.scale_1, scale.scale_1, scale.scale_1
    return scale.scale_1, scale.key_N, scale.token_N


def _sizes(rank: int) -> dict[str, int]:
    """Of a program's blocks: what it holds stays in registers, that of rank 32 too."""
    rank_pad = max(4, triton.next_power_of_2(rank))
    return {
        "RANK": rank,
        "RANK_PAD": rank_pad,
        "TOKENS": 8 if rank_pad == 4 else 4,
        "BLOCK": max(16, min(512, 4096 // rank_pad)),
        "num_warps": 4,
    }


def _grid(
    width: int, groups: SlotGroups, sizes: dict[str, int], most: int | None = None
) -> tuple[int, int, int]:
    """Parts of a layer's width, groups, and splits of a group's tokens.

    A split has every so manieth tile of tokens, ``most`` of them where that is given.
    """
    parts, slots = triton.cdiv(width, sizes["BLOCK"]), len(groups.slots)
    tiles = triton.cdiv(groups.ragged.longest, sizes["TOKENS"])
    splits = triton.cdiv(_PROGRAMS, parts * slots)
    if most is not None:
        splits = max(splits, triton.cdiv(tiles, most))
    return parts, slots, min(splits, tiles)


def _total(parts: Tensor) -> Tensor:
    """The sum over the first axis, whose order is fixed."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


# Products have the axes [TOKENS, RANK_PAD, BLOCK], of which a thread has all of the first two. What
# Triton would lay out otherwise, as it lies in memory, is loaded and stored without the axes that
# it lacks, and moved while it is small. Were Triton told that rows are aligned, it would also load
# these in another layout, and compute dropout's factors once in each.


@triton.jit
def _range(end_ptr, u, TOKENS: tl.constexpr):
    """The first token and the end of a program's part of a group's tokens."""
    first = tl.load(end_ptr + u - 1, mask=u > 0, other=0)
    return first + tl.program_id(2) * TOKENS, tl.load(end_ptr + u)


@triton.jit
def _row(where_ptr, m, there, WHERE: tl.constexpr):
    """The packed tokens that those with an adapter are."""
    n = m
    if WHERE:
        n = tl.load(where_ptr + m, mask=there, other=0)
    return n


@triton.jit
def _of_tokens(ptr, start, end, RANK: tl.constexpr, RANK_PAD: tl.constexpr, TOKENS: tl.constexpr):
    """Where a tile's numbers ``[TOKENS, RANK_PAD]`` of ``[M, R]`` lie, and which are there."""
    m = start + tl.arange(0, TOKENS)[:, None]
    r = tl.arange(0, RANK_PAD)[None, :]
    return ptr + m * RANK + r, (m < end) & (r < RANK)


@triton.jit
def _of_outputs(ptr, width, RANK: tl.constexpr, RANK_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """Where a block ``[RANK_PAD, BLOCK]`` of ``[O, R]`` lies, and which numbers are there."""
    r = tl.arange(0, RANK_PAD)[:, None]
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return ptr + o * RANK + r, (r < RANK) & (o < width)


@triton.jit
def _factor(key_ptr, token_ptr, n, there, i, width, dropout, layers, layer):
    """Dropout's factors of a tile, those of :func:`fttt.engine.ops.keep_mask`."""
    key = tl.load(key_ptr + n, mask=there, other=0)
    token = tl.load(token_ptr + n, mask=there, other=0) * layers + layer
    return keep_factor(key, token, i, width, dropout)


@triton.jit(
    do_not_specialize=["x_row", "a_slot", "width", "count", "layers", "layer"],
    do_not_specialize_on_alignment=_PLACES,
)
def _hidden_kernel(
    x_ptr, a_ptr, out_ptr, scale_ptr, key_ptr, token_ptr, end_ptr, where_ptr,
    x_row, a_slot, width, count, dropout, layers, layer,
    DROPS: tl.constexpr, WHERE: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    r = tl.arange(0, RANK_PAD)[None, :, None]
    in_i = i < width
    a = tl.load(a_ptr + u * a_slot + r * width + i, mask=(r < RANK) & in_i, other=0.0)
    scale = tl.load(scale_ptr)
    out_ptr += part * count * RANK
    first, end = _range(end_ptr, u, TOKENS)
    for start in range(first, end, tl.num_programs(2) * TOKENS):
        m = start + tl.arange(0, TOKENS)[:, None, None]
        there = m < end
        n = _row(where_ptr, m, there, WHERE)
        x = tl.load(x_ptr + n * x_row + i, mask=there & in_i, other=0.0).to(tl.float32)
        if DROPS:
            x *= _factor(key_ptr, token_ptr, n, there, i, width, dropout, layers, layer)
        to, mask = _of_tokens(out_ptr, start, end, RANK, RANK_PAD, TOKENS)
        tl.store(to, tl.sum(x * a, 2) * scale, mask=mask)


@triton.jit(
    do_not_specialize=["old_row", "out_row", "b_slot", "width"],
    do_not_specialize_on_alignment=_PLACES,
)
def _add_kernel(
    old_ptr, out_ptr, hidden_ptr, b_ptr, end_ptr, where_ptr, old_row, out_row, b_slot, width,
    WHERE: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    u = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    in_o = o < width
    b_at, in_b = _of_outputs(b_ptr + u * b_slot, width, RANK, RANK_PAD, BLOCK)
    b = tl.load(b_at, mask=in_b, other=0.0)[None, :, :]
    first, end = _range(end_ptr, u, TOKENS)
    for start in range(first, end, tl.num_programs(2) * TOKENS):
        m = start + tl.arange(0, TOKENS)[:, None, None]
        there = m < end
        n = _row(where_ptr, m, there, WHERE)
        old = tl.load(old_ptr + n * old_row + o, mask=there & in_o, other=0.0)
        at, mask = _of_tokens(hidden_ptr, start, end, RANK, RANK_PAD, TOKENS)
        hidden = tl.load(at, mask=mask, other=0.0)[:, :, None]
        new = old.to(tl.float32) + tl.sum(hidden * b, 1, keep_dims=True)
        tl.store(out_ptr + n * out_row + o, new.to(old.dtype), mask=there & in_o)


@triton.jit(
    do_not_specialize=["up_row", "b_slot", "width", "count"],
    do_not_specialize_on_alignment=_PLACES,
)
def _through_b_kernel(
    up_ptr, b_ptr, hidden_ptr, out_ptr, gradient_ptr, scale_ptr, end_ptr, where_ptr,
    up_row, b_slot, width, count,
    WHERE: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    in_o = o < width
    b_at, in_b = _of_outputs(b_ptr + u * b_slot, width, RANK, RANK_PAD, BLOCK)
    b = tl.load(b_at, mask=in_b, other=0.0)[None, :, :]
    scale = tl.load(scale_ptr)
    out_ptr += part * count * RANK
    gradient = tl.zeros([RANK_PAD, BLOCK], tl.float32)
    first, end = _range(end_ptr, u, TOKENS)
    for start in range(first, end, tl.num_programs(2) * TOKENS):
        m = start + tl.arange(0, TOKENS)[:, None, None]
        there = m < end
        n = _row(where_ptr, m, there, WHERE)
        up = tl.load(up_ptr + n * up_row + o, mask=there & in_o, other=0.0).to(tl.float32)
        at, mask = _of_tokens(hidden_ptr, start, end, RANK, RANK_PAD, TOKENS)
        gradient += tl.sum(up * tl.load(at, mask=mask, other=0.0)[:, :, None], 0)
        to, mask = _of_tokens(out_ptr, start, end, RANK, RANK_PAD, TOKENS)
        tl.store(to, tl.sum(up * b, 2) * scale, mask=mask)
    own = tl.program_id(2) * tl.num_programs(1) + u
    to, in_b = _of_outputs(gradient_ptr + own * width * RANK, width, RANK, RANK_PAD, BLOCK)
    tl.store(to, gradient, mask=in_b)


@triton.jit(
    do_not_specialize=["x_row", "a_slot", "width", "layers", "layer"],
    do_not_specialize_on_alignment=_PLACES,
)
def _through_a_kernel(
    x_ptr, a_ptr, down_ptr, out_ptr, gradient_ptr, scale_ptr, key_ptr, token_ptr, end_ptr,
    where_ptr, x_row, a_slot, width, dropout, layers, layer,
    WANTED: tl.constexpr, DROPS: tl.constexpr, WHERE: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    u = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    r = tl.arange(0, RANK_PAD)[None, :, None]
    in_i = i < width
    in_a = (r < RANK) & in_i
    a = tl.load(a_ptr + u * a_slot + r * width + i, mask=in_a, other=0.0)
    gradient = tl.zeros([1, RANK_PAD, BLOCK], tl.float32)
    first, end = _range(end_ptr, u, TOKENS)
    for start in range(first, end, tl.num_programs(2) * TOKENS):
        m = start + tl.arange(0, TOKENS)[:, None, None]
        there = m < end
        n = _row(where_ptr, m, there, WHERE)
        x = tl.load(x_ptr + n * x_row + i, mask=there & in_i, other=0.0).to(tl.float32)
        at, mask = _of_tokens(down_ptr, start, end, RANK, RANK_PAD, TOKENS)
        down = tl.load(at, mask=mask, other=0.0)[:, :, None]
        back = tl.sum(down * a, 1, keep_dims=True)
        if DROPS:
            factor = _factor(key_ptr, token_ptr, n, there, i, width, dropout, layers, layer)
            x *= factor
            back *= factor
        gradient += tl.sum(down * x, 0, keep_dims=True)
        if WANTED:
            back = back.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + n * width + i, back, mask=there & in_i)
    own = tl.program_id(2) * tl.num_programs(1) + u
    tl.store(gradient_ptr + (own * RANK + r) * width + i, gradient, mask=in_a)
