"""Attention of train and prefill passes, which reads cached keys and values in their pages.

Segments of any lengths lie end to end. Their queries see what their rows of the cache hold and,
causally, their own segment; the cache takes no gradient. Nothing is gathered or padded, no mask is
made, and every length is read from device memory, so that one captured graph serves rows of any
length.

The G query heads of a key-value head are rows of one tile: row ``f`` of a segment is its token
``f // G`` under head ``f % G`` of the group. Scores are computed block by block with a running
maximum (FlashAttention 2, Dao 2023, arXiv 2307.08691); the gradient computes them again.

Axes: N packed tokens, B segments, H query heads, K key-value heads, G = H / K, D head dimension of
queries and keys, E of values; within kernels F rows of queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from fttt.engine.batch import Batch

__all__ = ["train_attention"]

_LENGTHS = ["span_ptr", "row_ptr", "past_ptr"]
"""Parts of other tensors, aligned as it comes; kernels are not compiled anew for that."""


def train_attention(
    q_NHD: Tensor,
    k_NKD: Tensor,
    v_NKE: Tensor,
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
    """Attend to each segment's cached row and, causally, to the segment; returns ``[N, H, E]``.

    Queries, keys and values, which are of one dtype, take a gradient. What the options mean is said
    by :func:`fttt.engine.attention.attend`; sinks and slopes take none.
    """
    parts = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_NHD, k_NKD, v_NKE))
    layer_of_pass = _Layer(
        batch, layer, scaling, window or 0, chunk or 0, softcap or 0.0, sinks,
        None if slopes is None else slopes.float(),
    )  # fmt: skip
    out_NHE: Tensor = _TrainAttention.apply(*parts, layer_of_pass)  # type: ignore[no-untyped-call]
    return out_NHE


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the kernels are told beside queries, fresh keys and fresh values."""

    batch: Batch
    layer: int
    scaling: float
    window: int
    chunk: int
    softcap: float
    sinks_H: Tensor | None
    slopes_H: Tensor | None

    def grid(self, rows: int, size: int, kv_heads: int) -> tuple[int, int, int]:
        """Blocks of so many rows a segment; neighbours read the same keys."""
        return triton.cdiv(rows, size), kv_heads, len(self.batch.lengths)

    def arguments(self, q_NHD: Tensor, k_NKD: Tensor, v_NKE: Tensor) -> tuple[Any, ...]:
        """What all kernels are given first."""
        batch, cache = self.batch, self.batch.cache
        keys, values, table = cache.keys[self.layer], cache.values[self.layer], cache.table_RP
        slopes = q_NHD if self.slopes_H is None else self.slopes_H
        return (
            q_NHD, k_NKD, v_NKE, keys, values, batch.ragged.span_2B, batch.row_B, batch.past_B,
            table, slopes, self.scaling, len(batch.lengths), q_NHD.shape[1],
            *q_NHD.stride()[:2], *k_NKD.stride()[:2], *v_NKE.stride()[:2],
            *keys.stride()[:2], *values.stride()[:2], table.stride(0),
        )  # fmt: skip

    def constants(self, q_NHD: Tensor, v_NKE: Tensor, stages: int) -> dict[str, Any]:
        """What kernels are compiled for, with at most so many loads under way at once."""
        (_, heads, dim), (_, kv_heads, value_dim) = q_NHD.shape, v_NKE.shape
        dim_pad, value_pad = (max(16, triton.next_power_of_2(n)) for n in (dim, value_dim))
        row = max(dim_pad, value_pad) * q_NHD.element_size()  # bytes, of which a tile has BLOCK
        return {
            "SLOPED": self.slopes_H is not None, "WINDOW": self.window, "CHUNK": self.chunk,
            "SOFTCAP": self.softcap, "GROUPS": heads // kv_heads, "PAGE": self.batch.cache.page,
            "DIM": dim, "VALUE": value_dim, "DIM_PAD": dim_pad, "VALUE_PAD": value_pad,
            "BLOCK": _block(max(dim_pad, value_pad), q_NHD.element_size()),
            "num_warps": 4, "num_stages": stages if row <= 256 else 2 if row <= 512 else 1,
        }  # fmt: skip


def _block(width: int, itemsize: int) -> int:
    """Rows and keys of a tile, of which several must fit shared memory and registers.

    Products in float32 are no tensor core's, and are unrolled.
    """
    size = 64 if width <= 128 else 32 if width <= 256 else 16
    return size if itemsize == 2 else max(16, size // 2)


class _TrainAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NHD: Tensor, k_NKD: Tensor, v_NKE: Tensor, layer: _Layer) -> Tensor:
        tokens, heads, _ = q_NHD.shape
        _, kv_heads, value_dim = v_NKE.shape
        out_NHE = q_NHD.new_empty(tokens, heads, value_dim)
        lse_NH = torch.empty(tokens, heads, dtype=torch.float32, device=q_NHD.device)
        constants = layer.constants(q_NHD, v_NKE, stages=3)
        rows = layer.batch.longest * constants["GROUPS"]
        _forward_kernel[layer.grid(rows, constants["BLOCK"], kv_heads)](
            *layer.arguments(q_NHD, k_NKD, v_NKE),
            q_NHD if layer.sinks_H is None else layer.sinks_H, out_NHE, lse_NH,
            SUNK=layer.sinks_H is not None, **constants,
        )  # fmt: skip
        ctx.save_for_backward(q_NHD, k_NKD, v_NKE, out_NHE, lse_NH)
        ctx.layer = layer
        return out_NHE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        q_NHD, k_NKD, v_NKE, out_NHE, lse_NH = ctx.saved_tensors
        layer: _Layer = ctx.layer
        gradient_NHE = gradients[0].contiguous()
        longest, kv_heads = layer.batch.longest, v_NKE.shape[1]
        constants = layer.constants(q_NHD, v_NKE, stages=2)
        arguments = layer.arguments(q_NHD, k_NKD, v_NKE)
        size, rows = constants["BLOCK"], longest * constants["GROUPS"]
        delta_NH = torch.empty_like(lse_NH)
        dq_NHD = torch.empty(q_NHD.shape, dtype=q_NHD.dtype, device=q_NHD.device)
        _query_gradient_kernel[layer.grid(rows, size, kv_heads)](
            *arguments, out_NHE, lse_NH, gradient_NHE, delta_NH, dq_NHD, **constants
        )
        if not any(ctx.needs_input_grad[1:3]):
            return dq_NHD, None, None, None
        dk_NKD, dv_NKE = (
            torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k_NKD, v_NKE)
        )
        _key_gradient_kernel[layer.grid(longest, size, kv_heads)](
            *arguments, lse_NH, gradient_NHE, delta_NH, dk_NKD, dv_NKE, **constants
        )
        return dq_NHD, dk_NKD, dv_NKE, None


@triton.jit
def _segment(span_ptr, past_ptr, segments):
    """A segment's first packed token, its tokens, and the positions before it."""
    segment = tl.program_id(2)
    start = tl.load(span_ptr + segment).to(tl.int64)
    length = tl.load(span_ptr + segments + segment).to(tl.int32)
    return start, length, tl.load(past_ptr + segment).to(tl.int32)


@triton.jit
def _oldest(at, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first position that a query at a position sees."""
    oldest = at * 0
    if WINDOW > 0:
        oldest = tl.maximum(oldest, at + 1 - WINDOW)
    if CHUNK > 0:
        oldest = tl.maximum(oldest, at // CHUNK * CHUNK)
    return oldest


@triton.jit
def _tile(x_ptr, row, there, c, SIZE: tl.constexpr):
    """Rows of a matrix by where each begins; zeros where a row is not there."""
    mask = there[:, None] & (c < SIZE)[None, :]
    return tl.load(x_ptr + row[:, None] + c[None, :], mask=mask, other=0.0)


@triton.jit
def _cached(
    k_cache, v_cache, table, s, past, kv_head, k_page, k_page_head, v_page, v_page_head, d, e,
    PAGE: tl.constexpr, DIM: tl.constexpr, VALUE: tl.constexpr,
):  # fmt: skip
    """Keys and values of positions of a row, from the pages that its table names."""
    page = tl.load(table + s // PAGE, mask=s < past, other=0).to(tl.int64)
    k_at = page * k_page + kv_head * k_page_head + s % PAGE * DIM
    v_at = page * v_page + kv_head * v_page_head + s % PAGE * VALUE
    return _tile(k_cache, k_at, s < past, d, DIM), _tile(v_cache, v_at, s < past, e, VALUE)


@triton.jit
def _capped(product, scaling, SOFTCAP: tl.constexpr):
    """Scores as the model makes them of products."""
    score = product * scaling
    if SOFTCAP > 0:
        score = (2 * tl.sigmoid(2 * score / SOFTCAP) - 1) * SOFTCAP
    return score


@triton.jit
def _hidden(
    score, key_at, query_at, there, slope,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scores of what is seen, less the slopes' part, and ``-inf`` elsewhere."""
    if SLOPED:
        score -= slope * (query_at - key_at).to(tl.float32)
    seen = there & (key_at <= query_at)
    if WINDOW > 0:
        seen = seen & (key_at > query_at - WINDOW)
    if CHUNK > 0:
        seen = seen & (key_at // CHUNK == query_at // CHUNK)
    return tl.where(seen, score, float("-inf"))


@triton.jit
def _step(best, total, acc, score, v):
    """One block of an online softmax; a row may have seen nothing yet."""
    new_best = tl.maximum(best, tl.max(score, 1))
    safe = tl.where(new_best == float("-inf"), 0.0, new_best)
    shrink = tl.exp(best - safe)
    weight = tl.exp(score - safe[:, None])
    acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return new_best, total * shrink + tl.sum(weight, 1), acc


@triton.jit(do_not_specialize=["segments"], do_not_specialize_on_alignment=_LENGTHS)
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, k_cache, v_cache, span_ptr, row_ptr, past_ptr, table_ptr, slope_ptr,
    scaling, segments, heads, q_token, q_head, k_token, k_head, v_token, v_head,
    k_page, k_page_head, v_page, v_page_head, table_row, sink_ptr, out_ptr, lse_ptr,
    SUNK: tl.constexpr, SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr, GROUPS: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, VALUE: tl.constexpr, DIM_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    kv_head = tl.program_id(1)
    start, length, past = _segment(span_ptr, past_ptr, segments)
    if first >= length * GROUPS:
        return
    f = first + tl.arange(0, BLOCK)
    d = tl.arange(0, DIM_PAD)
    e = tl.arange(0, VALUE_PAD)
    there_F = f < length * GROUPS
    token_F = start + f // GROUPS
    head_F = kv_head * GROUPS + f % GROUPS
    at_F = past + f // GROUPS
    q = _tile(q_ptr, token_F * q_token + head_F * q_head, there_F, d, DIM)
    slope = 0.0
    if SLOPED:
        slope = tl.load(slope_ptr + head_F, mask=there_F, other=0.0)[:, None]
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, VALUE_PAD], tl.float32)
    if SUNK:  # a key of its own score whose value is zero
        best = tl.load(sink_ptr + head_F, mask=there_F, other=0.0).to(tl.float32)
        total += 1.0
    table = table_ptr + tl.load(row_ptr + tl.program_id(2)).to(tl.int64) * table_row
    oldest = _oldest(past + first // GROUPS, WINDOW, CHUNK)
    for begin in range(oldest // BLOCK * BLOCK, past, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        k, v = _cached(
            k_cache, v_cache, table, s, past, kv_head, k_page, k_page_head, v_page, v_page_head,
            d, e, PAGE, DIM, VALUE,
        )  # fmt: skip
        k, v = k.to(q.dtype), v.to(q.dtype)
        score = _capped(tl.dot(q, tl.trans(k), input_precision="ieee"), scaling, SOFTCAP)
        score = _hidden(
            score, s[None, :], at_F[:, None], (s < past)[None, :], slope, SLOPED, WINDOW, CHUNK
        )
        best, total, acc = _step(best, total, acc, score, v)
    last = tl.minimum((first + BLOCK - 1) // GROUPS + 1, length)
    for begin in range(tl.maximum(oldest - past, 0) // BLOCK * BLOCK, last, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        k = _tile(k_ptr, (start + s) * k_token + kv_head * k_head, s < length, d, DIM)
        v = _tile(v_ptr, (start + s) * v_token + kv_head * v_head, s < length, e, VALUE)
        score = _capped(tl.dot(q, tl.trans(k), input_precision="ieee"), scaling, SOFTCAP)
        score = _hidden(
            score, past + s[None, :], at_F[:, None], (s < length)[None, :], slope,
            SLOPED, WINDOW, CHUNK,
        )  # fmt: skip
        best, total, acc = _step(best, total, acc, score, v)
    total = tl.where(total > 0, total, 1.0)  # of rows that are not there
    index_F = token_F * heads + head_F
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    mask = there_F[:, None] & (e < VALUE)[None, :]
    tl.store(out_ptr + index_F[:, None] * VALUE + e[None, :], out, mask=mask)
    tl.store(lse_ptr + index_F, best + tl.log(total), mask=there_F)


@triton.jit
def _score_gradient(
    product, into_weight, key_at, query_at, there, slope, lse, delta, scaling,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """A block's weights, and the gradient of its products, but for the scaling."""
    score = _capped(product, scaling, SOFTCAP)
    weight = tl.exp(
        _hidden(score, key_at, query_at, there, slope, SLOPED, WINDOW, CHUNK) - lse
    )  # fmt: skip
    gradient = weight * (into_weight - delta)
    if SOFTCAP > 0:
        gradient *= 1 - score / SOFTCAP * (score / SOFTCAP)
    return weight, gradient


@triton.jit(do_not_specialize=["segments"], do_not_specialize_on_alignment=_LENGTHS)
def _query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, k_cache, v_cache, span_ptr, row_ptr, past_ptr, table_ptr, slope_ptr,
    scaling, segments, heads, q_token, q_head, k_token, k_head, v_token, v_head,
    k_page, k_page_head, v_page, v_page_head, table_row,
    out_ptr, lse_ptr, gradient_ptr, delta_ptr, dq_ptr,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr, GROUPS: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, VALUE: tl.constexpr, DIM_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    kv_head = tl.program_id(1)
    start, length, past = _segment(span_ptr, past_ptr, segments)
    if first >= length * GROUPS:
        return
    f = first + tl.arange(0, BLOCK)
    d = tl.arange(0, DIM_PAD)
    e = tl.arange(0, VALUE_PAD)
    there_F = f < length * GROUPS
    token_F = start + f // GROUPS
    head_F = kv_head * GROUPS + f % GROUPS
    at_F1 = (past + f // GROUPS)[:, None]
    index_F = token_F * heads + head_F
    q = _tile(q_ptr, token_F * q_token + head_F * q_head, there_F, d, DIM)
    gradient = _tile(gradient_ptr, index_F * VALUE, there_F, e, VALUE)
    out = _tile(out_ptr, index_F * VALUE, there_F, e, VALUE)
    delta_F = tl.sum(out.to(tl.float32) * gradient.to(tl.float32), 1)
    tl.store(delta_ptr + index_F, delta_F, mask=there_F)
    lse = tl.load(lse_ptr + index_F, mask=there_F, other=0.0)[:, None]
    delta = delta_F[:, None]
    slope = 0.0
    if SLOPED:
        slope = tl.load(slope_ptr + head_F, mask=there_F, other=0.0)[:, None]
    dq = tl.zeros([BLOCK, DIM_PAD], tl.float32)
    table = table_ptr + tl.load(row_ptr + tl.program_id(2)).to(tl.int64) * table_row
    oldest = _oldest(past + first // GROUPS, WINDOW, CHUNK)
    for begin in range(oldest // BLOCK * BLOCK, past, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        k, v = _cached(
            k_cache, v_cache, table, s, past, kv_head, k_page, k_page_head, v_page, v_page_head,
            d, e, PAGE, DIM, VALUE,
        )  # fmt: skip
        k, v = k.to(q.dtype), v.to(q.dtype)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        into_weight = tl.dot(gradient, tl.trans(v), input_precision="ieee")
        _, ds = _score_gradient(
            product, into_weight, s[None, :], at_F1, (s < past)[None, :], slope, lse, delta,
            scaling, SLOPED, WINDOW, CHUNK, SOFTCAP,
        )  # fmt: skip
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    last = tl.minimum((first + BLOCK - 1) // GROUPS + 1, length)
    for begin in range(tl.maximum(oldest - past, 0) // BLOCK * BLOCK, last, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        k = _tile(k_ptr, (start + s) * k_token + kv_head * k_head, s < length, d, DIM)
        v = _tile(v_ptr, (start + s) * v_token + kv_head * v_head, s < length, e, VALUE)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        into_weight = tl.dot(gradient, tl.trans(v), input_precision="ieee")
        _, ds = _score_gradient(
            product, into_weight, past + s[None, :], at_F1, (s < length)[None, :], slope, lse,
            delta, scaling, SLOPED, WINDOW, CHUNK, SOFTCAP,
        )  # fmt: skip
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    mask = there_F[:, None] & (d < DIM)[None, :]
    dq = (dq * scaling).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + index_F[:, None] * DIM + d[None, :], dq, mask=mask)


@triton.jit(do_not_specialize=["segments"], do_not_specialize_on_alignment=_LENGTHS)
def _key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, k_cache, v_cache, span_ptr, row_ptr, past_ptr, table_ptr, slope_ptr,
    scaling, segments, heads, q_token, q_head, k_token, k_head, v_token, v_head,
    k_page, k_page_head, v_page, v_page_head, table_row,
    lse_ptr, gradient_ptr, delta_ptr, dk_ptr, dv_ptr,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr, GROUPS: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, VALUE: tl.constexpr, DIM_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    kv_head = tl.program_id(1)
    start, length, past = _segment(span_ptr, past_ptr, segments)
    if first >= length:
        return
    s = first + tl.arange(0, BLOCK)
    d = tl.arange(0, DIM_PAD)
    e = tl.arange(0, VALUE_PAD)
    there_S = s < length
    k = _tile(k_ptr, (start + s) * k_token + kv_head * k_head, there_S, d, DIM)
    v = _tile(v_ptr, (start + s) * v_token + kv_head * v_head, there_S, e, VALUE)
    dk = tl.zeros([BLOCK, DIM_PAD], tl.float32)
    dv = tl.zeros([BLOCK, VALUE_PAD], tl.float32)
    newest = tl.minimum(first + BLOCK, length) - 1
    end = length  # of the tokens that see one of these
    if WINDOW > 0:
        end = tl.minimum(end, newest + WINDOW)
    if CHUNK > 0:
        end = tl.minimum(end, ((past + newest) // CHUNK + 1) * CHUNK - past)
    for begin in range(first * GROUPS, end * GROUPS, BLOCK):
        f = begin + tl.arange(0, BLOCK)
        there_F = f < length * GROUPS
        token_F = start + f // GROUPS
        head_F = kv_head * GROUPS + f % GROUPS
        index_F = token_F * heads + head_F
        q = _tile(q_ptr, token_F * q_token + head_F * q_head, there_F, d, DIM)
        gradient = _tile(gradient_ptr, index_F * VALUE, there_F, e, VALUE)
        lse = tl.load(lse_ptr + index_F, mask=there_F, other=0.0)[None, :]
        delta = tl.load(delta_ptr + index_F, mask=there_F, other=0.0)[None, :]
        slope = 0.0
        if SLOPED:
            slope = tl.load(slope_ptr + head_F, mask=there_F, other=0.0)[None, :]
        product = tl.dot(k, tl.trans(q), input_precision="ieee")
        into_weight = tl.dot(v, tl.trans(gradient), input_precision="ieee")
        weight, ds = _score_gradient(
            product, into_weight, past + s[:, None], (past + f // GROUPS)[None, :],
            there_S[:, None] & there_F[None, :], slope, lse, delta, scaling,
            SLOPED, WINDOW, CHUNK, SOFTCAP,
        )  # fmt: skip
        dv += tl.dot(weight.to(gradient.dtype), gradient, input_precision="ieee")
        dk += tl.dot(ds.to(q.dtype), q, input_precision="ieee")
    index_S = (start + s) * tl.num_programs(1) + kv_head
    dk = (dk * scaling).to(dk_ptr.dtype.element_ty)
    mask_SD = there_S[:, None] & (d < DIM)[None, :]
    mask_SE = there_S[:, None] & (e < VALUE)[None, :]
    tl.store(dk_ptr + index_S[:, None] * DIM + d[None, :], dk, mask=mask_SD)
    dv = dv.to(dv_ptr.dtype.element_ty)
    tl.store(dv_ptr + index_S[:, None] * VALUE + e[None, :], dv, mask=mask_SE)
