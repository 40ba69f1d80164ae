"""The draw from a nucleus as one kernel, by a histogram of masses over the logits.

See :mod:`fttt.engine.ops.sampling` for the definition, which is kept exactly but for rounding.

Axes: R rows, V vocabulary, K edges between buckets.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fttt.engine.ops.sampling import Shape

__all__ = ["sample"]

_EDGES = 8
"""Edges at which one pass over the vocabulary weighs it."""


def sample(
    logits_RV: Tensor,
    temperature_R: Tensor,
    top_p_R: Tensor,
    noise_R: Tensor,
    shape: Shape | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fttt.engine.ops.sample` in one kernel, a program a row, without sorting.

    The nucleus ends within one bucket of a histogram of masses over the logits: the one in which
    the mass from above crosses ``top_p``. A pass weighs eight buckets, the next one cuts the bucket
    of the crossing again, until it holds one value. Where the likeliest token is the nucleus there
    is no such pass, else 2 to 3 in bfloat16 and 2 to 6 in float32 (simulated); beside them one for
    the highest logit, one for the sums, and half a one for the draw.

    Least bytes: the logits once. 512 rows of 128,256 in bfloat16 are 131 MB, 44 us at 3 TB/s. The
    other passes read the second-level cache, at 25 to 50 us each, so 150 to 250 us are expected.
    """
    rows, vocab = logits_RV.shape
    token_R = torch.empty(rows, dtype=torch.int64, device=logits_RV.device)
    logprob_R = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
    settings = [temperature_R, top_p_R, noise_R]
    unused_bits = {torch.bfloat16: 16, torch.float16: 13}.get(logits_RV.dtype, 0)
    seen_RV = logits_RV
    if shape is not None:
        settings += [shape.min_p_R, shape.penalty_R, shape.top_k_R]
        seen_RV, unused_bits = shape.seen_RV.view(torch.uint8), 0  # a penalty needs all bits
    settings = [x.contiguous() for x in settings]
    block = max(1024, min(8192, triton.next_power_of_2(vocab)))
    _sample_kernel[(rows,)](
        logits_RV, seen_RV, *settings, *settings[: 6 - len(settings)], token_R, logprob_R,
        vocab, logits_RV.stride(0), seen_RV.stride(0),
        SHAPED=shape is not None, SHIFT=unused_bits, EDGES=_EDGES,
        BLOCK=block, num_warps=block // 256,
    )  # fmt: skip
    return token_R, logprob_R


@triton.jit
def _key_of(x, SHIFT: tl.constexpr):
    """The bits of a float32 as an int64 of the same order, but for its ``SHIFT`` unused bits."""
    bits = x.to(tl.int32, bitcast=True)
    return (tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> SHIFT).to(tl.int64)


@triton.jit
def _value_of(key, SHIFT: tl.constexpr):
    """The float32 of such a key."""
    bits = ((key << SHIFT) + tl.where(key < 0, (1 << SHIFT) - 1, 0)).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _logits_at(base, seen, penalty, v, vocab, SHAPED: tl.constexpr):
    """A row's logits of these tokens, of the seen ones with the repetition penalty."""
    x = tl.load(base + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    if SHAPED:
        noted = tl.load(seen + v, mask=v < tl.where(penalty == 1.0, 0, vocab), other=0)
        x = tl.where(noted != 0, tl.where(x < 0, x * penalty, tl.div_rn(x, penalty)), x)
    return x


@triton.jit
def _mass_above(
    base, seen, penalty, vocab, best, scale, edge_K,
    SHAPED: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mass of a row's logits that are not less than each edge; a scale of 0 counts them."""
    v = tl.arange(0, BLOCK // 2)[None, :]  # in half a block, which the registers hold
    mass_KV = tl.zeros([EDGES, BLOCK // 2], tl.float32)
    for start in range(0, vocab, BLOCK // 2):
        x = _logits_at(base, seen, penalty, start + v, vocab, SHAPED)
        away = x - best
        if SHAPED:
            away = tl.maximum(away, -1e30)  # minus infinity times a scale of 0 is NaN
        # Times 1 or 0: two instructions an edge, where a choice and a sum are three.
        mass_KV += tl.where(x >= edge_K[:, None], 1.0, 0.0) * tl.exp2(away * scale)
    return tl.sum(mass_KV, 1)


@triton.jit
def _threshold(
    base, seen, penalty, vocab, best, scale, ties, total, target, floor,
    SHAPED: tl.constexpr, SHIFT: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The highest value such that what is not less weighs ``target``, and what that weighs.

    ``ties`` is what the highest logits weigh, ``total`` what all do; what is less than ``floor``
    weighs less than their difference to the target. Of the values between two neighbouring logits
    any may come, since the search ends where one logit is left between its bounds.
    """
    k = tl.arange(0, EDGES)
    high = _key_of(best, SHIFT)  # what is not less than that weighs too little
    low = tl.minimum(_key_of(floor, SHIFT), high - 1)
    mass_low, mass_high = total, ties
    if ties >= target:
        low, mass_low = high, ties
    step = 0
    several = low < high
    while several:
        low_x, high_x = _value_of(low, SHIFT), _value_of(high, SHIFT)
        share = (k + 1).to(tl.float32) / EDGES
        if step > 0:  # interpolate the logarithm of the mass above or below, the smaller one
            upper = target < 0.5 * total
            least = 1e-7 * total
            part = tl.maximum(tl.where(upper, target, total - target), least)
            part_low = tl.maximum(tl.where(upper, mass_low, total - mass_low), least)
            part_high = tl.maximum(tl.where(upper, mass_high, total - mass_high), least)
            way = tl.log(part_high / part_low)
            guess = tl.where(tl.abs(way) > 1e-4, tl.log(part / part_low) / way, 0.5)
            guess = tl.minimum(tl.maximum(guess, 0.02), 0.98)
            off = tl.where((k == 0) | (k == 6), 0.625, tl.where((k == 1) | (k == 5), 0.25, 0.0625))
            side = tl.where(k < 3, guess - guess * off, guess + (1.0 - guess) * off)
            share = tl.where(k == 3, guess, side)
        edge_K = _key_of(low_x + (high_x - low_x) * share, SHIFT)
        edge_K = tl.where(k == EDGES - 1, low + (high - low) // 2, edge_K)
        edge_K = tl.minimum(tl.maximum(edge_K, low + 1), high - 1)
        edge_K = tl.where((k == EDGES - 1) & (step == 0), low, edge_K)  # not weighed before
        mass_K = _mass_above(
            base, seen, penalty, vocab, best, scale, _value_of(edge_K, SHIFT), SHAPED, EDGES, BLOCK
        )
        enough = (mass_K >= target) | (edge_K <= low)
        low = tl.max(tl.where(enough, edge_K, low), 0)
        high = tl.min(tl.where(enough, high, edge_K), 0)
        mass_low = tl.min(tl.where(enough, mass_K, mass_low), 0)
        mass_high = tl.max(tl.where(enough, mass_high, mass_K), 0)
        step += 1
        lightest = tl.exp2((_value_of(low, SHIFT) - best) * scale)
        several = (high - low > 1) & (mass_low - mass_high >= 1.9 * lightest)
    return _value_of(low, SHIFT), mass_low


@triton.jit
def _sample_kernel(
    logits_ptr, seen_ptr, temperature_ptr, top_p_ptr, noise_ptr, min_p_ptr, penalty_ptr, top_k_ptr,
    token_ptr, logprob_ptr, vocab, stride, seen_stride,
    SHAPED: tl.constexpr, SHIFT: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * stride
    seen = seen_ptr + row * seen_stride
    penalty = 1.0
    if SHAPED:
        penalty = tl.load(penalty_ptr + row)
    temperature = tl.load(temperature_ptr + row)
    warm = temperature > 0
    scale = 1.4426950408889634 / tl.where(warm, temperature, 1.0)
    v = tl.arange(0, BLOCK)
    k = tl.arange(0, EDGES)
    best_V = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocab, BLOCK):
        best_V = tl.maximum(best_V, _logits_at(base, seen, penalty, start + v, vocab, SHAPED))
    best = tl.max(best_V, 0)
    top = best  # of the logits without penalty
    if SHAPED:
        top_V = tl.full([BLOCK], float("-inf"), tl.float32)
        least_V = tl.full([BLOCK], float("inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            top_V = tl.maximum(top_V, _logits_at(base, seen, 1.0, start + v, vocab, False))
            x = _logits_at(base, seen, penalty, start + v, vocab, SHAPED)
            least_V = tl.minimum(least_V, tl.where(x == float("-inf"), float("inf"), x))
        top = tl.max(top_V, 0)
        least = tl.min(least_V, 0)
        top_k = tl.load(top_k_ptr + row)
        if warm & (top_k > 0) & (top_k < vocab):
            count_K = _mass_above(
                base, seen, penalty, vocab, best, 0.0, tl.where(k == 0, best, least),
                SHAPED, EDGES, BLOCK,
            )  # fmt: skip
            many = tl.max(count_K, 0)
            least, many = _threshold(
                base, seen, penalty, vocab, best, 0.0, tl.min(count_K, 0), many,
                tl.minimum(top_k.to(tl.float32), many), least, SHAPED, SHIFT, EDGES, BLOCK,
            )  # fmt: skip
    mass_V = tl.zeros([BLOCK], tl.float32)
    ties_V = tl.zeros([BLOCK], tl.float32)
    plain_V = tl.zeros([BLOCK], tl.float32)
    at_V = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    for start in range(0, vocab, BLOCK):
        x = _logits_at(base, seen, penalty, start + v, vocab, SHAPED)
        mass = tl.exp2((x - best) * scale)
        if SHAPED:
            mass = tl.where(x >= least, mass, 0.0)
        mass_V += mass
        ties_V += tl.where(x == best, 1.0, 0.0)
        at_V = tl.where(x == best, tl.minimum(at_V, start + v), at_V)
        if SHAPED:
            x = _logits_at(base, seen, 1.0, start + v, vocab, False)
        plain_V += tl.exp2((x - top) * 1.4426950408889634)
    total = tl.sum(mass_V, 0)
    token = tl.minimum(tl.min(at_V, 0), vocab - 1)  # logits that are NaN have none
    if warm:
        top_p = tl.load(top_p_ptr + row)
        # Tokens under (1 - top_p) / V of the mass weigh less than 1 - top_p together.
        share = tl.maximum((1.0 - top_p) / vocab, 1e-30)
        floor = best + tl.log2(share * total) / scale - 1e-3
        if SHAPED:
            floor = tl.maximum(floor, least)
        kept = total
        if top_p < 1:
            floor, kept = _threshold(
                base, seen, penalty, vocab, best, scale, tl.sum(ties_V, 0), total, top_p * total,
                floor, SHAPED, SHIFT, EDGES, BLOCK,
            )  # fmt: skip
        if SHAPED:
            floor = tl.maximum(floor, least)
            min_p = tl.load(min_p_ptr + row)
            if min_p > 0:
                floor = tl.maximum(floor, best + tl.log2(min_p) / scale)
                kept = tl.max(_mass_above(
                    base, seen, penalty, vocab, best, scale, tl.where(k >= 0, floor, floor),
                    SHAPED, EDGES, BLOCK,
                ), 0)  # fmt: skip
        token = _drawn(
            base, seen, penalty, vocab, best, scale, floor, tl.load(noise_ptr + row) * kept,
            SHAPED, BLOCK,
        )  # fmt: skip
    picked = tl.load(base + token).to(tl.float32)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, picked - top - tl.log(tl.sum(plain_V, 0)))


@triton.jit
def _drawn(
    base, seen, penalty, vocab, best, scale, floor, target,
    SHAPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first token at which the mass of what is not less than ``floor`` exceeds ``target``."""
    v = tl.arange(0, BLOCK)
    before = 0.0
    first = 0
    seeking = True
    while seeking & (first < vocab):  # several blocks at once, since a sum over one waits
        mass_V = tl.zeros([BLOCK], tl.float32)
        for start in range(first, tl.minimum(first + 4 * BLOCK, vocab), BLOCK):
            x = _logits_at(base, seen, penalty, start + v, vocab, SHAPED)
            mass_V += tl.where(x >= floor, tl.exp2((x - best) * scale), 0.0)
        mass = tl.sum(mass_V, 0)
        seeking = before + mass <= target
        before += tl.where(seeking, mass, 0.0)
        first += tl.where(seeking, 4 * BLOCK, 0)
    if seeking:  # rounding left the target past the end: the last one that is kept
        before = 0.0
        first = 0
    token = 0
    seeking = True
    while seeking & (first < vocab):
        x = _logits_at(base, seen, penalty, first + v, vocab, SHAPED)
        mass = tl.where(x >= floor, tl.exp2((x - best) * scale), 0.0)
        all_of_it = tl.sum(mass, 0)
        token = tl.maximum(token, tl.max(tl.where(x >= floor, first + v, 0), 0))
        if before + all_of_it > target:
            reached = (x >= floor) & (before + tl.cumsum(mass, 0) > target)
            token = tl.min(tl.where(reached, first + v, token), 0)
            seeking = False
        before += all_of_it
        first += BLOCK
    return token
