"""The CUDA decode step's own kernels: attention over cached rows, stacked adapters.

Each reads only what it must: attention the filled part of each row, the adapters' weights by slot
without a gathered copy. All of them take lengths and slots from device memory, so that one captured
graph serves every step.

Axes: N lanes, H heads, K key-value heads, E value dimension, I inputs and O outputs of a layer, S
slots, P parameters of a slot, B segments, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from fttt.engine.batch import Batch

__all__ = ["add_delta", "add_lora", "decode_attention", "keep_factor", "keep_mask", "lora_inputs"]

_SPLIT = 256
"""Cached tokens that one program of the attention kernel reads at the least."""
_PROGRAMS = 1024
"""Programs of the attention kernel that keep a GPU busy; with more of them rows are not split."""
_MANY = 384
"""Rows times heads that are so many that programs of one warp, of which several run side by side on
a multiprocessor, are quicker, and that rows are split into parts twice as long."""


def decode_attention(
    query_HND: Tensor,
    key_KND: Tensor,
    value_KNE: Tensor,
    batch: Batch,
    layer: int,
    scaling: float,
    *,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Store one token's keys and values a row, and attend to the row; returns ``[N, H, E]``.

    What the options mean is said by :func:`fttt.engine.attention.attend`. Where there are few rows,
    each is cut into splits that run side by side and are merged by their log-sum-exp
    (flash-decoding): as many as keep the GPU busy, so that a captured step needs to know no length,
    and as long as the row then asks for. The pages of a row are read from the cache's table, which
    the host fills before each step; a block lies within one page, whose size is a power of two.
    Where the batch says so, each earlier token is read from the row that holds it.
    """
    heads, rows, dim = query_HND.shape
    kv_heads, _, value_dim = value_KNE.shape
    groups = heads // kv_heads
    cache = batch.cache
    k_cache, v_cache, table = cache.keys[layer], cache.values[layer], cache.table_RP
    dim_pad, value_pad = (max(16, triton.next_power_of_2(n)) for n in (dim, value_dim))
    groups_pad = max(16, triton.next_power_of_2(groups))
    width = max(dim_pad, value_pad) * k_cache.element_size()
    programs = rows * kv_heads
    many = programs >= _MANY and width <= 256
    split = 2 * _SPLIT if many else _SPLIT
    splits = min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(cache.capacity, split))
    large = width > 512  # few fit shared memory
    # one or two blocks in flight for a block's page, as many for its keys
    stages = 3 if large else 5
    if many and (splits > 1 or (width > 128 and programs >= _PROGRAMS)):
        stages = 4
    out = torch.empty(rows, heads, value_dim, dtype=query_HND.dtype, device=query_HND.device)
    partial = scale_sum = out
    if splits > 1:
        shape = (rows, heads, splits)
        partial = torch.empty(*shape, value_dim, dtype=torch.float32, device=out.device)
        scale_sum = torch.empty(*shape, 2, dtype=torch.float32, device=out.device)
    row_of = batch.row_B if batch.row_of_BS is None else batch.row_of_BS
    slope = out if slopes is None else slopes.float()
    sink = out if sinks is None else sinks
    _attention_kernel[(rows, kv_heads, splits)](
        query_HND, key_KND, value_KNE, k_cache, v_cache, batch.row_B, batch.past_B, table, row_of,
        slope, sink, partial, scale_sum, scaling, softcap or 0.0, window or 0, chunk or 0,
        query_HND.stride(0), query_HND.stride(1), key_KND.stride(0), key_KND.stride(1),
        value_KNE.stride(0), value_KNE.stride(1), k_cache.stride(0), k_cache.stride(1),
        v_cache.stride(0), v_cache.stride(1), table.stride(0), row_of.stride(0),
        heads, dim, value_dim,
        SCATTERED=batch.row_of_BS is not None, SLOPED=slopes is not None, SUNK=sinks is not None,
        GROUPS=groups, GROUPS_PAD=groups_pad, DIM_PAD=dim_pad, VALUE_PAD=value_pad,
        SPLITS=splits, SPLIT=split, PAGE=cache.page,
        BLOCK=min(32 if large or many else 64, cache.page),
        num_warps=min(4, groups_pad // 16) if many else 4, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows, heads)](
            partial, scale_sum, sink, out, splits, value_dim, SUNK=sinks is not None,
            SPLITS_PAD=triton.next_power_of_2(splits), DIM_PAD=triton.next_power_of_2(value_dim),
            num_warps=2,
        )  # fmt: skip
    return out


@triton.jit
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, k_cache, v_cache, row_ptr, past_ptr, table_ptr, row_of_ptr,
    slope_ptr, sink_ptr, partial_ptr, sum_ptr, scaling, softcap, window, chunk,
    q_head, q_row, k_head, k_row, v_head, v_row, k_page, k_page_head, v_page, v_page_head,
    table_row, row_of_lane, heads, dim, value_dim,
    SCATTERED: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr,
    GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr, DIM_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.load(row_ptr + lane).to(tl.int64)
    past = tl.load(past_ptr + lane).to(tl.int32)
    g = tl.arange(0, GROUPS_PAD)
    d = tl.arange(0, DIM_PAD)
    e = tl.arange(0, VALUE_PAD)
    head = kv_head * GROUPS + g
    in_d = d < dim
    in_e = e < value_dim
    q = tl.load(
        q_ptr + head[:, None] * q_head + lane * q_row + d[None, :],
        mask=(g < GROUPS)[:, None] & in_d[None, :], other=0.0,
    )  # fmt: skip
    best = tl.full([GROUPS_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS_PAD], tl.float32)
    acc = tl.zeros([GROUPS_PAD, VALUE_PAD], tl.float32)
    if SLOPED:
        slope = tl.load(slope_ptr + head, mask=g < GROUPS, other=0.0)
    oldest = past * 0
    if window > 0:
        oldest = tl.maximum(oldest, past + 1 - window)
    if chunk > 0:
        oldest = tl.maximum(oldest, past // chunk * chunk)
    first = oldest // BLOCK * BLOCK
    last = past
    if SPLITS > 1:
        share = tl.maximum(SPLIT, tl.cdiv(tl.cdiv(past - first, SPLITS), BLOCK) * BLOCK)
        first += split * share
        last = tl.minimum(first + share, past)
    for start in range(first, last, BLOCK):
        s = start + tl.arange(0, BLOCK)
        seen = (s >= oldest) & (s < past)
        holder = row
        if SCATTERED:
            holder = tl.load(row_of_ptr + lane * row_of_lane + s, mask=seen, other=0).to(tl.int64)
        page = tl.load(table_ptr + holder * table_row + start // PAGE).to(tl.int64)
        at = start % PAGE + tl.arange(0, BLOCK)
        k_at = page * k_page + kv_head * k_page_head + at * dim
        v_at = page * v_page + kv_head * v_page_head + at * value_dim
        k = tl.load(
            k_cache + k_at[:, None] + d[None, :], mask=seen[:, None] & in_d[None, :], other=0.0
        )
        v = tl.load(
            v_cache + v_at[:, None] + e[None, :], mask=seen[:, None] & in_e[None, :], other=0.0
        )
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        if softcap > 0:
            score = (2 * tl.sigmoid(2 * score / softcap) - 1) * softcap
        if SLOPED:
            score -= slope[:, None] * (past - s).to(tl.float32)[None, :]
        score = tl.where(seen[None, :], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, 1))
        safe = tl.where(new_best == float("-inf"), 0.0, new_best)
        shrink = tl.exp(best - safe)
        weight = tl.exp(score - safe[:, None])
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        best = new_best
    if split == 0:  # the new token: stored for later steps, read from registers in this one
        k_new = tl.load(k_ptr + kv_head * k_head + lane * k_row + d, mask=in_d, other=0.0)
        v_new = tl.load(v_ptr + kv_head * v_head + lane * v_row + e, mask=in_e, other=0.0)
        page_new = tl.load(table_ptr + row * table_row + past // PAGE).to(tl.int64)
        k_to = page_new * k_page + kv_head * k_page_head + past % PAGE * dim
        v_to = page_new * v_page + kv_head * v_page_head + past % PAGE * value_dim
        tl.store(k_cache + k_to + d, k_new, mask=in_d)
        tl.store(v_cache + v_to + e, v_new, mask=in_e)
        own = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], 1) * scaling
        if softcap > 0:
            own = (2 * tl.sigmoid(2 * own / softcap) - 1) * softcap
        new_best = tl.maximum(best, own)
        shrink = tl.exp(best - new_best)
        weight_own = tl.exp(own - new_best)
        total = total * shrink + weight_own
        acc = acc * shrink[:, None] + weight_own[:, None] * v_new.to(tl.float32)[None, :]
        best = new_best
    mask = g < GROUPS
    index = lane * heads + head
    if SPLITS == 1:
        if SUNK:
            sink = tl.load(sink_ptr + head, mask=mask, other=0.0).to(tl.float32)
            new_best = tl.maximum(best, sink)
            shrink = tl.exp(best - new_best)
            total = total * shrink + tl.exp(sink - new_best)
            acc = acc * shrink[:, None]
        out = (acc / total[:, None]).to(partial_ptr.dtype.element_ty)
        mask_GE = mask[:, None] & in_e[None, :]
        tl.store(partial_ptr + index[:, None] * value_dim + e[None, :], out, mask=mask_GE)
    else:
        index = index * SPLITS + split
        tl.store(sum_ptr + index * 2, best, mask=mask)
        tl.store(sum_ptr + index * 2 + 1, total, mask=mask)
        tl.store(
            partial_ptr + index[:, None] * value_dim + e[None, :], acc,
            mask=mask[:, None] & in_e[None, :] & (best > float("-inf"))[:, None],
        )  # fmt: skip


@triton.jit
def _merge_kernel(
    partial_ptr, sum_ptr, sink_ptr, out_ptr, splits, dim,
    SUNK: tl.constexpr, SPLITS_PAD: tl.constexpr, DIM_PAD: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    head = tl.program_id(1)
    index = lane * tl.num_programs(1) + head
    s = tl.arange(0, SPLITS_PAD)
    d = tl.arange(0, DIM_PAD)
    at = index * splits + s
    best = tl.load(sum_ptr + at * 2, mask=s < splits, other=float("-inf"))
    total = tl.load(sum_ptr + at * 2 + 1, mask=s < splits, other=0.0)
    highest = tl.max(best, 0)
    if SUNK:
        sink = tl.load(sink_ptr + head).to(tl.float32)
        highest = tl.maximum(highest, sink)
    scale = tl.exp(best - highest)
    whole = tl.sum(total * scale, 0)
    if SUNK:
        whole += tl.exp(sink - highest)
    used = (s < splits) & (best > float("-inf"))
    acc = tl.load(
        partial_ptr + at[:, None] * dim + d[None, :],
        mask=used[:, None] & (d < dim)[None, :], other=0.0,
    )  # fmt: skip
    out = tl.sum(acc * scale[:, None], 0) / whole
    tl.store(out_ptr + index * dim + d, out.to(out_ptr.dtype.element_ty), mask=d < dim)


_SPAN = 1024
"""Inputs of which a program sums up ``x Aᵀ``: short enough that a batch of a few rows has work for
all of a GPU."""


def lora_inputs(
    x_NI: Tensor, weights_SP: Tensor, slot_N: Tensor, a_at_G: Tensor, rank: int
) -> Tensor:
    """``x Aᵀ`` of each row under each of G matrices A ``[rank, I]``, by the row's slot.

    Returns:
        ``[G, N, parts, rank]`` float32, the rank padded to a power of two: sums over a part of the
        inputs each, to be added up. Rows of slot -1 hold anything.
    """
    rows, inputs = x_NI.shape
    rank_pad, parts = triton.next_power_of_2(rank), triton.cdiv(inputs, _SPAN)
    out = torch.empty(len(a_at_G), rows, parts, rank_pad, dtype=torch.float32, device=x_NI.device)
    block = min(_SPAN, triton.next_power_of_2(inputs), 8192 // rank_pad)
    _lora_inputs_kernel[(rows, parts, len(a_at_G))](
        x_NI, out, weights_SP, slot_N, a_at_G, x_NI.stride(0), weights_SP.stride(0), inputs,
        RANK=rank, RANK_PAD=rank_pad, SPAN=_SPAN, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _lora_inputs_kernel(
    x_ptr, out_ptr, weights_ptr, slot_ptr, at_ptr, x_row, slot_row, inputs,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    slot = tl.load(slot_ptr + lane).to(tl.int64)
    if slot >= 0:
        r = tl.arange(0, RANK_PAD)
        base = weights_ptr + slot * slot_row + tl.load(at_ptr + group)
        hidden = tl.zeros([RANK_PAD], tl.float32)
        for start in range(0, SPAN, BLOCK):
            i = part * SPAN + start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + lane * x_row + i, mask=i < inputs, other=0.0).to(tl.float32)
            a = tl.load(
                base + r[:, None] * inputs + i[None, :],
                mask=(r < RANK)[:, None] & (i < inputs)[None, :], other=0.0,
            )  # fmt: skip
            hidden += tl.sum(a * x[None, :], 1)
        row = (group * tl.num_programs(0) + lane) * tl.num_programs(1) + part
        tl.store(out_ptr + row * RANK_PAD + r, hidden)


def add_lora(
    hidden_NSR: Tensor,
    out_NO: Tensor,
    weights_SP: Tensor,
    slot_N: Tensor,
    *,
    b_at: int,
    rank: int,
    scale: float,
) -> None:
    """Add ``(x Aᵀ) Bᵀ · scale`` to each row's output in place, by the row's slot.

    ``hidden_NSR`` is one matrix's part of what :func:`lora_inputs` returns; B ``[O, rank]`` begins
    at ``b_at`` of a slot's flat weights.
    """
    rows, parts, rank_pad = hidden_NSR.shape
    outputs = out_NO.shape[1]
    chunk = min(512, 16384 // rank_pad)
    _lora_kernel[(rows, triton.cdiv(outputs, chunk))](
        hidden_NSR, out_NO, weights_SP, slot_N, scale, out_NO.stride(0), weights_SP.stride(0),
        b_at, outputs, parts,
        RANK=rank, RANK_PAD=rank_pad, PARTS_PAD=triton.next_power_of_2(parts), CHUNK=chunk,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _lora_kernel(
    hidden_ptr, out_ptr, weights_ptr, slot_ptr, scale, out_row, slot_row, b_at, outputs, parts,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, PARTS_PAD: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    slot = tl.load(slot_ptr + lane).to(tl.int64)
    if slot >= 0:
        r = tl.arange(0, RANK_PAD)
        s = tl.arange(0, PARTS_PAD)
        hidden_SR = tl.load(
            hidden_ptr + (lane * parts + s[:, None]) * RANK_PAD + r[None, :],
            mask=(s < parts)[:, None], other=0.0,
        )  # fmt: skip
        hidden = tl.sum(hidden_SR, 0)
        o = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        b = tl.load(
            weights_ptr + slot * slot_row + b_at + o[:, None] * RANK + r[None, :],
            mask=(o < outputs)[:, None] & (r < RANK)[None, :], other=0.0,
        )  # fmt: skip
        delta = tl.sum(b * hidden[None, :], 1) * scale
        at = out_ptr + lane * out_row + o
        old = tl.load(at, mask=o < outputs, other=0.0)
        delta = delta.to(old.dtype).to(tl.float32)
        tl.store(at, (old.to(tl.float32) + delta).to(old.dtype), mask=o < outputs)


def keep_mask(key_B: Tensor, token_BT: Tensor, width: int, dropout: float) -> Tensor:
    """:func:`fttt.engine.ops.keep_mask`, the same numbers, in one kernel."""
    segments, tokens = token_BT.shape
    out = torch.empty(segments, tokens, width, dtype=torch.float32, device=token_BT.device)
    _keep_kernel[(segments * tokens, triton.cdiv(width, 1024))](
        key_B.contiguous(), token_BT.contiguous(), out, tokens, width, dropout, BLOCK=1024
    )
    return out


@triton.jit
def _keep_kernel(key_ptr, token_ptr, out_ptr, tokens, width, dropout, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = keep_factor(
        tl.load(key_ptr + at // tokens), tl.load(token_ptr + at), i, width, dropout
    )
    tl.store(out_ptr + at * width + i, factor, mask=i < width)


@triton.jit
def keep_factor(key, token, i, width, dropout):
    """Dropout's factors of features of a token, whose counters are ``token * width + i``.

    The generator's product with a counter is made of the token's and the feature's, of which there
    are fewer.
    """
    first = (token * width).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    x = key.to(tl.uint64, bitcast=True) + first
    x = x + i.to(tl.int64).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    # 24 bits, which a GPU converts several times as fast as it converts 64
    noise = (x >> 40).to(tl.uint32).to(tl.float32) * (1.0 / 16777216.0)
    return tl.where(noise >= dropout, 1.0 / (1.0 - dropout), 0.0)


_OUTPUTS, _INPUTS = 16, 512
"""The block of a matrix that a program reads at once."""


def add_delta(x_NI: Tensor, out_NO: Tensor, delta_SOI: Tensor, slot_N: Tensor) -> None:
    """Add ``ΔW x`` to each lane's output in place, by the lane's slot; a slot of -1 adds nothing.

    Slots are read on the device, so that a captured graph can be replayed with others.
    """
    (lanes, inputs), outputs = x_NI.shape, out_NO.shape[1]
    _delta_kernel[(triton.cdiv(outputs, _OUTPUTS), lanes)](
        x_NI, out_NO, delta_SOI, slot_N, x_NI.stride(0), out_NO.stride(0), delta_SOI.stride(0),
        inputs, outputs,
        OUTPUTS=_OUTPUTS, INPUTS=min(_INPUTS, triton.next_power_of_2(inputs)), num_warps=4,
    )  # fmt: skip


@triton.jit
def _delta_kernel(
    x_ptr, out_ptr, delta_ptr, slot_ptr, x_row, out_row, slot_stride, inputs, outputs,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(1)
    slot = tl.load(slot_ptr + lane).to(tl.int64)
    if slot >= 0:
        o = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        in_o = o < outputs
        base = delta_ptr + slot * slot_stride + o.to(tl.int64)[:, None] * inputs
        total = tl.zeros([OUTPUTS, INPUTS], tl.float32)
        for start in range(0, inputs, INPUTS):
            i = start + tl.arange(0, INPUTS)
            in_i = i < inputs
            x = tl.load(x_ptr + lane * x_row + i, mask=in_i, other=0.0).to(tl.float32)
            delta = tl.load(
                base + i[None, :], mask=in_o[:, None] & in_i[None, :], other=0.0
            ).to(tl.float32)  # fmt: skip
            total += delta * x[None, :]
        at = out_ptr + lane * out_row + o
        old = tl.load(at, mask=in_o, other=0.0)
        new = old.to(tl.float32) + tl.sum(total, 1)
        tl.store(at, new.to(old.dtype), mask=in_o)
