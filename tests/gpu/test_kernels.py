"""The CUDA kernels against plain float64 arithmetic on fresh random inputs.

They also run under Triton's interpreter (``TRITON_INTERPRET=1``), without a GPU.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fttt.engine.batch import Batch
from fttt.engine.cache import Heads, KVCache
from fttt.engine.ops.sampling import Shape

pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of torch)")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or INTERPRETED), reason="no CUDA device on this machine"
    ),
]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm())


def paged(page: int, rows: int, capacity: int, heads: Heads, dtype: torch.dtype) -> KVCache:
    """A cache of noise whose rows have their pages in any order."""
    cache = KVCache(
        rows=rows, capacity=capacity, heads={0: heads}, dtype=dtype, device=DEVICE, page=page
    )
    cache.keys[0].normal_()
    cache.values[0].normal_()
    columns = cache.table_RP.shape[1]
    cache.table_RP[:rows] = torch.randperm(rows * columns, device=DEVICE).view(rows, columns)
    return cache


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "asked"),
    [
        (8, 2, 64, {}),
        (9, 3, 64, {}),
        (4, 4, 80, {"window": 100}),
        (4, 1, 256, {"softcap": 30.0}),
        (8, 1, 64, {"sinks": True}),
        (8, 2, 64, {"sinks": True, "window": 128}),
        (8, 2, 128, {"chunk": 96}),
        (4, 2, 64, {"chunk": 256, "window": 300}),
        (6, 6, 64, {"slopes": True}),
        (4, 4, 192, {"value_dim": 128}),
        (4, 2, 16, {"value_dim": 40, "sinks": True, "chunk": 64}),
        (4, 1, 512, {}),
        (40, 1, 64, {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("many", [False, True])
def test_decode_attention(
    heads: int, kv_heads: int, dim: int, asked: dict[str, Any], dtype: torch.dtype, splits: int,
    many: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if INTERPRETED and dtype is torch.bfloat16:
        pytest.skip("the interpreter's bfloat16 is not that of a GPU")
    from fttt.engine.ops import triton
    from fttt.engine.ops.triton import decode_attention

    monkeypatch.setattr(triton, "_PROGRAMS", splits * 8 * kv_heads)
    monkeypatch.setattr(triton, "_MANY", 1 if many else 10**6)
    torch.manual_seed(heads * dim)
    value_dim = asked.get("value_dim", dim)
    window, chunk, softcap = (asked.get(name) for name in ("window", "chunk", "softcap"))
    sinks = torch.randn(heads, device=DEVICE, dtype=dtype) * 3 if "sinks" in asked else None
    slopes = torch.rand(heads, device=DEVICE) if "slopes" in asked else None
    pasts = [0, 1, 63, 64, 65, 255, 256, 700]
    rows, capacity = len(pasts), 720
    page = {1: 64, 2: 16, 3: 256}[splits]
    cache = paged(page, rows, capacity, Heads(kv_heads, dim, value_dim, 0), dtype)
    before = cache.keys[0].clone(), cache.values[0].clone()
    row = torch.randperm(rows, device=DEVICE)
    past = torch.tensor(pasts, device=DEVICE)
    q, k, v = (
        torch.randn(1, rows, n * size, device=DEVICE, dtype=dtype)
        .view(1, rows, n, size)
        .transpose(1, 2)
        for n, size in ((heads, dim), (kv_heads, dim), (kv_heads, value_dim))
    )  # as a model makes them: strided
    batch = Batch(
        "decode", cache, past, past, row, past, past, lengths=(), pasts=(), rows=(), adapted=False
    )
    scale = dim**-0.5
    out = decode_attention(
        q[0], k[0], v[0], batch, 0, scale,
        window=window, chunk=chunk, softcap=softcap, sinks=sinks, slopes=slopes,
    )  # fmt: skip
    assert out.shape == (rows, heads, value_dim)
    for n, length in enumerate(pasts):
        r = int(row[n])
        untouched = torch.ones(capacity, dtype=torch.bool, device=DEVICE)
        untouched[length] = False
        now, old = (
            [cache.read(x, cache.table_RP[r : r + 1].long(), capacity)[0] for x in both]
            for both in ((cache.keys[0], cache.values[0]), before)
        )
        for held, fresh, past_KSD in zip(now, (k, v), old, strict=True):
            assert torch.equal(held[:, length], fresh[0, :, n])
            assert torch.equal(held[:, untouched], past_KSD[:, untouched])
        first = 0 if window is None else max(0, length + 1 - window)
        first = first if chunk is None else max(first, length // chunk * chunk)
        keys, values = (
            held[:, first : length + 1].double().repeat_interleave(heads // kv_heads, 0)
            for held in now
        )
        score = torch.einsum("hd,hsd->hs", q[0, :, n].double(), keys) * scale
        if softcap is not None:
            score = (score / softcap).tanh() * softcap
        if slopes is not None:
            away = length - torch.arange(first, length + 1, device=DEVICE)
            score = score - slopes[:, None].double() * away
        if sinks is not None:
            score = torch.cat([score, sinks[:, None].double()], 1)
        weight = score.softmax(-1)[:, : keys.shape[1]]
        expected = torch.einsum("hs,hsd->hd", weight, values)
        assert error(out[n], expected) < (1e-5 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(9, 3, None), (4, 1, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_attention_over_scattered_rows(
    heads: int, kv_heads: int, window: int | None, dtype: torch.dtype
) -> None:
    if INTERPRETED and dtype is torch.bfloat16:
        pytest.skip("the interpreter's bfloat16 is not that of a GPU")
    from fttt.engine.ops.triton import decode_attention

    torch.manual_seed(heads)
    pasts, capacity = [0, 1, 64, 300], 320
    cache = paged(64, 9, capacity, Heads(kv_heads, 64, 64, 0), dtype)
    own = torch.tensor([8, 2, 5, 0], device=DEVICE)
    past = torch.tensor(pasts, device=DEVICE)
    row_of = torch.randint(0, 9, (4, capacity), dtype=torch.int32, device=DEVICE)
    for length, row in zip(pasts, own.tolist(), strict=True):  # what a launch writes, nobody reads
        row_of[:, length][row_of[:, length] == row] = 1
    q, k, v = (
        torch.randn(n, 4, 64, device=DEVICE, dtype=dtype) for n in (heads, kv_heads, kv_heads)
    )
    batch = Batch(
        "decode", cache, past, past, own, past, past, lengths=(), pasts=(), rows=(), adapted=False,
        row_of_BS=row_of,
    )  # fmt: skip
    out = decode_attention(q, k, v, batch, 0, 0.125, window=window)
    for n, length in enumerate(pasts):
        holder = torch.cat([row_of[n, :length].long(), own[n : n + 1]])
        at = torch.arange(length + 1, device=DEVICE)[-(window or capacity) :]
        page = cache.table_RP[holder[at], at // cache.page].long()
        keys, values = (
            part[0][page, :, at % cache.page].double().repeat_interleave(heads // kv_heads, 1)
            for part in (cache.keys, cache.values)
        )
        assert torch.equal(cache.keys[0][page[-1], :, length % cache.page], k[:, n])
        score = torch.einsum("hd,shd->hs", q[:, n].double(), keys) * 0.125
        expected = torch.einsum("hs,shd->hd", score.softmax(-1), values)
        assert error(out[n], expected) < (1e-5 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize(("inputs", "rank"), [(576, 4), (2500, 5), (700, 64)])
def test_stacked_adapters(inputs: int, rank: int) -> None:
    from fttt.engine.ops.triton import add_lora, lora_inputs

    torch.manual_seed(0)
    outputs, scale = 1536, 4 / rank
    a_at = [10, 10 + rank * (inputs + outputs)]
    b_at = [at + rank * inputs for at in a_at]
    weights = torch.randn(5, b_at[-1] + rank * outputs + 3, device=DEVICE)
    x = torch.randn(7, inputs, device=DEVICE)
    slot = torch.tensor([0, -1, 4, 2, 2, -1, 3], device=DEVICE)
    hidden = lora_inputs(x, weights, slot, torch.tensor(a_at, device=DEVICE), rank)
    for own, at, b in zip(hidden, a_at, b_at, strict=True):
        out = torch.randn(7, outputs, device=DEVICE)
        expected = out.double()
        for n, s in enumerate(slot.tolist()):
            if s >= 0:
                a_RI = weights[s, at:b].view(rank, inputs).double()
                b_OR = weights[s, b : b + rank * outputs].view(outputs, rank).double()
                expected[n] += b_OR @ (a_RI @ x[n].double()) * scale
        add_lora(own, out, weights, slot, b_at=b, rank=rank, scale=scale)
        assert error(out, expected) < 1e-6


def kept_in_float64(
    logits_V: torch.Tensor, heat: float, top_p: float, top_k: int, min_p: float
) -> torch.Tensor:
    """The mass of each token that may be drawn, by sorting one row of float64."""
    if heat == 0:
        return F.one_hot(logits_V.argmax(), len(logits_V)).double()
    ordered_V = logits_V.sort(descending=True).values
    logits_V = logits_V.masked_fill(logits_V < ordered_V[(top_k or len(logits_V)) - 1], -torch.inf)
    probs_V = (logits_V / heat).softmax(-1)
    ordered_V = probs_V.sort(descending=True).values
    last = int((ordered_V.cumsum(-1) - ordered_V < top_p).sum()) - 1
    least = max(float(ordered_V[last]), float(ordered_V[0]) * min_p)
    return torch.where(probs_V >= least, probs_V, 0.0)


def drawn_in_float64(mass_V: torch.Tensor, noise: float) -> int:
    """The token whose mass, in the order of their numbers, reaches over ``noise``."""
    sum_V = mass_V.cumsum(-1)
    place = torch.searchsorted(sum_V, min(1 - 2.0**-24, max(0.0, noise)) * sum_V[-1:], right=True)
    return int(place.clamp(max=int(mass_V.nonzero().max())))


LOGITS = {
    "flat": lambda n: torch.randn(n) * 1.3,
    "sharp": lambda n: torch.randn(n) * 5 - 3,
    "one likely": lambda n: torch.randn(n).index_fill(0, torch.tensor([n // 2]), 15.0),
    "a few likely": lambda n: -1.5 * (torch.randperm(n) + 1.0).log() + 20,
    "ties": lambda n: (torch.randn(n) * 1.5).round(),
    "equal": torch.zeros,
    "around zero": lambda n: torch.randn(n) * 1e-4,
    "mostly impossible": lambda n: torch.where(torch.rand(n) < 0.9, -torch.inf, torch.randn(n)),
}


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [False, True])
def test_every_draw_is_that_of_sorting_in_float64(
    kind: str, dtype: torch.dtype, asked: bool
) -> None:
    from fttt.engine.ops.nucleus import sample

    rows = 4 if INTERPRETED else 16
    for vocab in (5, 700, 3000 if INTERPRETED else 128256):
        torch.manual_seed(vocab)
        logits = torch.stack([LOGITS[kind](vocab) for _ in range(rows)]).to(dtype)
        logits[:, vocab // 3] = 1.0
        heat, noise = torch.rand(rows) * 1.5 + 0.2, torch.rand(rows)
        top_p = 1 - torch.rand(rows) ** 3
        heat[0], top_p[1], noise[2], noise[3] = 0.0, 1.0, 0.0, 1 - 2.0**-24
        shape = Shape(
            torch.randint(0, vocab // 2, (rows,)) * (torch.rand(rows) < 0.7),
            torch.rand(rows) ** 4 * (torch.rand(rows) < 0.7),
            torch.tensor([1.3, 1.0, 0.8, 1.0]).repeat(rows // 4),
            torch.rand(rows, vocab) < 0.3,
        )
        own = Shape(*(getattr(shape, x).to(DEVICE) for x in Shape.__slots__)) if asked else None
        settings = (x.to(DEVICE) for x in (heat, top_p, noise))
        tokens, scores = sample(logits.to(DEVICE), *settings, own)
        expected = logits.double().log_softmax(-1).gather(1, tokens.cpu()[:, None])[:, 0]
        assert (scores.cpu().double() - expected).abs().max() < 1e-4
        wide = logits.float()
        if asked:
            penalty = shape.penalty_R[:, None]
            less = torch.where(wide < 0, wide * penalty, wide / penalty)
            wide = torch.where(shape.seen_RV, less, wide)
        for r in range(rows):
            token, reached = int(tokens[r]), []
            for p in (0, -1, 1):
                for m in (0, -1, 1) if asked else (0,):
                    mass_V = kept_in_float64(
                        wide[r].double(),
                        float(heat[r]),
                        min(1.0, float(top_p[r]) + p * 2e-6),
                        int(shape.top_k_R[r]) if asked else 0,
                        float(shape.min_p_R[r]) * (1 + m * 2e-6) if asked else 0.0,
                    )
                    first, last = (
                        drawn_in_float64(mass_V, float(noise[r]) + u * 2e-6) for u in (-1, 1)
                    )
                    reached.append(first <= token <= last and bool(mass_V[token] > 0))
            assert any(reached), (r, heat[r], top_p[r], noise[r])


def test_the_sampler_follows_the_noise() -> None:
    from fttt.engine.ops.nucleus import sample

    n = 256 if INTERPRETED else 20000
    probs = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15], device=DEVICE)
    logits = probs.log().expand(n, 5).contiguous()
    noise = (torch.arange(n, device=DEVICE) + 0.5) / n
    ones = torch.ones(n, device=DEVICE)
    token, _ = sample(logits, ones, ones * 0.8, noise)
    share = torch.bincount(token, minlength=5) / n
    expected = torch.tensor([0.0, 0.4, 0.0, 0.3, 0.15], device=DEVICE) / 0.85
    assert (share - expected).abs().max() < 2 / n + 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_norms_and_rotary_positions(dtype: torch.dtype) -> None:
    if INTERPRETED and dtype is torch.bfloat16:
        pytest.skip("the interpreter's bfloat16 is not that of a GPU")
    from fttt.engine.ops.fused import rms_norm, rotary

    torch.manual_seed(0)
    close = 1e-6 if dtype is torch.float32 else 5e-3
    x = torch.randn(2, 7, 96, device=DEVICE, dtype=dtype)
    weight = torch.randn(96, device=DEVICE, dtype=dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert error(rms_norm(x, weight, 1e-5, 0.0), expected * weight.double()) < close
    assert error(rms_norm(x, weight, 1e-5, 1.0), expected * (1 + weight.double())) < close
    heads = torch.randn(1, 7, 5 * 96, device=DEVICE, dtype=dtype)[..., 96:384].view(1, 7, 3, 96)
    for part in (heads, heads.transpose(1, 2)):  # as a part of a wider product
        apart = rms_norm(part.contiguous(), weight, 1e-5, 0.0)
        assert torch.equal(rms_norm(part, weight, 1e-5, 0.0), apart)
    q = torch.randn(1, 6, 3 * 80, device=DEVICE, dtype=dtype).view(1, 6, 3, 80).transpose(1, 2)
    k = torch.randn(1, 6, 80, device=DEVICE, dtype=dtype).view(1, 6, 1, 80).transpose(1, 2)
    cos, sin = (torch.randn(1, 6, 80, device=DEVICE, dtype=dtype) for _ in range(2))
    for out, x in zip(rotary(q, k, cos, sin), (q, k), strict=True):
        first, second = x.double().chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        assert (
            error(out, x.double() * cos[:, None].double() + turned * sin[:, None].double()) < close
        )


def test_gradients_through_fused_operations() -> None:
    from fttt.engine.ops.fused import rms_norm, rotary

    torch.manual_seed(0)
    x = torch.randn(7, 96, device=DEVICE, requires_grad=True)
    weight = torch.randn(96, device=DEVICE, requires_grad=True)
    up = torch.randn(7, 96, device=DEVICE)
    for offset in (0.0, 1.0):
        rms_norm(x, weight, 1e-5, offset).backward(up)
        wide, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
        norm = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (offset + wide_weight)
        norm.backward(up.double())
        for own, expected in ((x, wide), (weight, wide_weight)):
            assert own.grad is not None
            assert expected.grad is not None
            assert error(own.grad, expected.grad) < 1e-5
            own.grad = None
    q, k = (torch.randn(1, h, 5, 64, device=DEVICE, requires_grad=True) for h in (3, 1))
    cos, sin = (torch.randn(1, 5, 64, device=DEVICE) for _ in range(2))
    ups = [torch.randn_like(q), torch.randn_like(k)]
    torch.autograd.backward(rotary(q, k, cos, sin), ups)
    for x, up in zip((q, k), ups, strict=True):
        wide = x.detach().double().requires_grad_()
        first, second = wide.chunk(2, -1)
        plain = (
            wide * cos[:, None].double() + torch.cat([-second, first], -1) * sin[:, None].double()
        )
        plain.backward(up.double())
        assert x.grad is not None
        assert wide.grad is not None
        assert error(x.grad, wide.grad) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_with_the_norm_that_follows(dtype: torch.dtype) -> None:
    if INTERPRETED and dtype is torch.bfloat16:
        pytest.skip("the interpreter's bfloat16 is not that of a GPU")
    from fttt.engine.ops.fused import rms_norm, sum_and_norm

    torch.manual_seed(0)
    x, y = (torch.randn(1, 7, 96, device=DEVICE).to(dtype) for _ in range(2))
    weight = torch.randn(96, device=DEVICE).to(dtype)
    total, normed = sum_and_norm(x, y, weight, 1e-5, 1.0)
    assert torch.equal(total, x + y)
    close = 1e-6 if dtype is torch.float32 else 5e-3
    assert error(normed, rms_norm(x + y, weight, 1e-5, 1.0)) < close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_products(dtype: torch.dtype) -> None:
    from fttt.engine.ops.fused import GELU, GELU_TANH, SILU, gated_product

    torch.manual_seed(0)
    both = (torch.randn(1, 7, 2 * 1100, device=DEVICE) * 2).to(dtype)
    gradient = torch.randn(1, 7, 1100, device=DEVICE).to(dtype)
    close = 1e-6 if dtype is torch.float32 else 5e-3
    for kind, activation in (
        (SILU, F.silu), (GELU, F.gelu), (GELU_TANH, partial(F.gelu, approximate="tanh"))
    ):  # fmt: skip
        gate, up = (x.detach().requires_grad_() for x in both.split(1100, -1))  # of one product
        out = gated_product(gate, up, kind)
        assert out.is_contiguous()
        assert out.dtype == dtype
        wide = [x.detach().double().requires_grad_() for x in (gate, up)]
        expected = activation(wide[0]) * wide[1]
        assert error(out.detach(), expected.detach()) < close
        found = torch.autograd.grad(out, (gate, up), gradient)
        for mine, own in zip(
            found, torch.autograd.grad(expected, wide, gradient.double()), strict=True
        ):
            assert mine.dtype == dtype
            assert error(mine, own) < close


def test_dropout_is_that_of_the_cpu() -> None:
    from fttt.engine.ops import sampling
    from fttt.engine.ops.triton import keep_mask

    key = torch.tensor([5, -(2**60) - 3])
    token = torch.arange(2 * 9).view(2, 9) * 7
    plain = sampling.keep_mask(key, token, 100, 0.3)
    fused = keep_mask(key.to(DEVICE), token.to(DEVICE), 100, 0.3)
    assert torch.allclose(fused.cpu(), plain, rtol=1e-6)
    assert 0.6 < float((plain > 0).float().mean()) < 0.8


def test_fused_operations_are_found_and_leave_the_model_as_it_was(
    replaced_logits: Callable[..., tuple[torch.Tensor, ...]],
) -> None:
    from fttt.engine.ops import fused

    before, *with_forms = replaced_logits(fused, DEVICE)
    for logits in with_forms:
        assert error(logits, before) < 1e-5
