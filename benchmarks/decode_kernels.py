"""The kernels of a decode step, each alone beside what it replaced.

    python benchmarks/decode_kernels.py      # one GPU, under a minute
    python benchmarks/decode_kernels.py --rows 64 512 --vocabulary 49152 --hidden 576 --inner 1536 \
        --heads 9 3 64 --lengths 128 1024

A line a case: milliseconds, the least bytes that it must move, the time these take at the measured
copy speed, and how many times that the kernel takes. Second-level caches are cleared before each
run. It needs nothing but PyTorch, Triton and what the engine imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

from fttt.engine.batch import Batch
from fttt.engine.cache import Heads, KVCache
from fttt.engine.memory_plan import PAGE
from fttt.engine.ops import sampling
from fttt.engine.ops.fused import SILU, gated_product, rms_norm, sum_and_norm
from fttt.engine.ops.nucleus import sample
from fttt.engine.ops.triton import decode_attention
from fttt.engine.workload import bandwidth

KINDS = ("sampler", "product", "gate", "sum", "attention")
Case = tuple[str, float, Callable[[], object]]
"""What it is, its least bytes, and what is timed."""


def sampler_cases(rows: int, vocabulary: int, dtype: torch.dtype) -> Iterator[Case]:
    """Draws at temperature 0.6 and top-p 0.95, from flat logits and from those of a real shape."""
    generator = torch.Generator("cuda").manual_seed(0)
    flat = torch.randn(rows, vocabulary, device="cuda", generator=generator) * 1.28
    rank = torch.rand(rows, vocabulary, device="cuda", generator=generator).argsort(-1) + 1
    zipf = 20 - 2 * rank.log() + flat / 2
    heat, mass = (torch.full((rows,), x, device="cuda") for x in (0.6, 0.95))
    noise = torch.rand(rows, device="cuda", generator=generator)
    for kind, logits in (("flat", flat.to(dtype)), ("zipf", zipf.to(dtype))):
        least = logits.numel() * logits.element_size()
        tokens, other = sample(logits, heat, mass, noise)[0], bisected(logits, heat, mass, noise)[0]
        same = float((tokens == other).float().mean())
        name = f"sampler, {kind}, {rows} x {vocabulary}"
        yield (
            f"{name} ({same:.4f} of the tokens equal)",
            least,
            lambda x=logits: sample(x, heat, mass, noise),
        )
        yield f"{name}, by bisection", least, lambda x=logits: bisected(x, heat, mass, noise)
    cold = torch.zeros(rows, device="cuda")
    yield (
        f"sampler, greedy, {rows} x {vocabulary}",
        least,
        lambda: sample(logits, cold, mass, noise),
    )
    shape = sampling.Shape(
        torch.full((rows,), 50, device="cuda"),
        torch.full((rows,), 0.02, device="cuda"),
        torch.full((rows,), 1.1, device="cuda"),
        rank <= 500,
    )
    name = f"sampler, top-k 50, min-p, penalty, {rows} x {vocabulary}"
    least *= 1 + 1 / logits.element_size()
    yield name, least, lambda: sample(logits, heat, mass, noise, shape)

    def sorted_first() -> object:
        shaped, rest = sampling.shaped(logits, heat, mass, shape)
        return sample(shaped, heat, rest, noise)

    yield f"{name}, by sorting", least, sorted_first


def product_cases(
    rows: int, hidden: int, inner: int, heads: tuple[int, int, int], dtype: torch.dtype
) -> Iterator[Case]:
    """q, k and v, gate and up: as products of their own and as one."""
    query, key_value, dim = heads
    x = torch.randn(rows, hidden, device="cuda", dtype=dtype)
    for name, outputs in (
        ("q, k, v", [query * dim, key_value * dim, key_value * dim]),
        ("gate, up", [inner, inner]),
    ):
        whole = torch.randn(sum(outputs), hidden, device="cuda", dtype=dtype)
        parts = whole.split(outputs)
        least = (whole.numel() + x.numel() + rows * sum(outputs)) * x.element_size()
        case = f"{name}, {rows} rows"
        yield f"{case}, one product", least, lambda w=whole: torch.mm(x, w.t())
        yield f"{case}, each", least, lambda p=parts: [torch.mm(x, w.t()) for w in p]


def gate_cases(rows: int, inner: int, dtype: torch.dtype) -> Iterator[Case]:
    """SiLU of the gate times the other half of one product."""
    gate, up = torch.randn(rows, 2 * inner, device="cuda", dtype=dtype).split(inner, -1)
    least = 3 * gate.numel() * gate.element_size()
    name = f"SiLU and product, {rows} x {inner}"
    yield name, least, lambda: gated_product(gate, up, SILU)
    yield f"{name}, by two kernels", least, lambda: F.silu(gate) * up


def sum_cases(rows: int, hidden: int, dtype: torch.dtype) -> Iterator[Case]:
    """A residual sum and the norm that follows it."""
    x, y = (torch.randn(rows, hidden, device="cuda", dtype=dtype) for _ in range(2))
    weight = torch.randn(hidden, device="cuda", dtype=dtype)
    least = 4 * x.numel() * x.element_size()
    name = f"sum and norm, {rows} x {hidden}"
    yield name, least, lambda: sum_and_norm(x, y, weight, 1e-5, 0.0)
    yield f"{name}, by two kernels", least, lambda: rms_norm(x + y, weight, 1e-5, 0.0)


def attention_cases(
    rows: int, length: int, capacity: int, heads: tuple[int, int, int], dtype: torch.dtype
) -> Iterator[Case]:
    """A decode step's attention over rows of one length, in a cache that holds more.

    In pages that lie in any order, as rows that grow side by side take them, and in rows in one
    piece.
    """
    query, key_value, dim = heads
    q, k, v = (
        torch.randn(rows, n, dim, device="cuda", dtype=dtype).transpose(0, 1)
        for n in (query, key_value, key_value)
    )
    least = rows * (2 * key_value * (length + 2) + 2 * query) * dim * q.element_size()
    row = torch.arange(rows, device="cuda")
    past = torch.full_like(row, length)
    name = f"attention, {rows} rows of {length} in {capacity}"
    for page, kind in ((PAGE, f"pages of {PAGE}"), (capacity, "rows in one piece")):
        cache = KVCache(
            rows=rows, capacity=capacity, heads={0: Heads(key_value, dim, dim, 0)}, dtype=dtype,
            device=torch.device("cuda"), page=page,
        )  # fmt: skip
        columns = cache.table_RP.shape[1]
        pages = torch.randperm(rows * columns, device="cuda")
        cache.table_RP[:rows] = pages.view(rows, columns)
        batch = Batch(
            "decode", cache, past, past, row, past, past, lengths=(), pasts=(), rows=(),
            adapted=False,
        )  # fmt: skip
        yield (
            f"{name}, {kind}",
            least,
            lambda batch=batch: decode_attention(q, k, v, batch, 0, dim**-0.5),
        )


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=14336)
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 8, 128], help="q, kv, dim")
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="these alone")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "decode_kernels.py: there is no GPU here, and it times Triton's kernels.\n")
    if options.capacity & (options.capacity - 1) or options.capacity <= max(options.lengths):
        parser.error(
            f"--capacity {options.capacity} is no power of two above the longest of --lengths"
        )
    dtype, heads = getattr(torch, options.dtype), tuple(options.heads)
    copy = bandwidth("cuda")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"{options.dtype}, copy {copy / 1e12:.3f} TB/s"
    )

    def cases() -> Iterator[Case]:
        wanted = set(options.only or KINDS)
        for rows in options.rows:
            if "sampler" in wanted:
                yield from sampler_cases(rows, options.vocabulary, dtype)
            if "product" in wanted:
                yield from product_cases(rows, options.hidden, options.inner, heads, dtype)
            if "gate" in wanted:
                yield from gate_cases(rows, options.inner, dtype)
            if "sum" in wanted:
                yield from sum_cases(rows, options.hidden, dtype)
            if "attention" in wanted:
                for length in options.lengths:
                    yield from attention_cases(rows, length, options.capacity, heads, dtype)

    for name, least, run in cases():
        milliseconds = do_bench(run, warmup=10, rep=60, return_mode="median")
        floor = least / copy * 1e3
        print(
            f"{name:<72} {milliseconds:7.3f} ms  {least / 1e6:7.1f} MB  floor {floor:6.3f} ms  "
            f"{milliseconds / floor:6.2f} times",
            flush=True,
        )


def bisected(
    logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, noise_R: Tensor
) -> tuple[Tensor, Tensor]:
    """The sampler until 2026-11-28: 31 passes over the vocabulary, one a bit of the threshold."""
    rows, vocab = logits_RV.shape
    token = torch.empty(rows, dtype=torch.int64, device=logits_RV.device)
    logprob = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
    block = min(8192, triton.next_power_of_2(vocab))
    bisection_kernel[(rows,)](
        logits_RV, temperature_R, top_p_R, noise_R, token, logprob, vocab, logits_RV.stride(0),
        BLOCK=block, num_warps=32 if block >= 8192 else 8,
    )  # fmt: skip
    return token, logprob


@triton.jit
def ordered(x):
    """Bits of a float32 as an int32 of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def bisection_kernel(
    logits_ptr, temperature_ptr, top_p_ptr, noise_ptr, token_ptr, logprob_ptr, vocab, stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * stride
    temperature = tl.load(temperature_ptr + row)
    v = tl.arange(0, BLOCK)
    best_V = tl.full([BLOCK], float("-inf"), tl.float32)
    at_V = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        x = tl.load(base + start + v, mask=start + v < vocab, other=float("-inf")).to(tl.float32)
        better = x > best_V
        best_V = tl.where(better, x, best_V)
        at_V = tl.where(better, start + v, at_V)
    best = tl.max(best_V, 0)
    token = tl.min(tl.where(best_V == best, at_V, vocab), 0)
    warm = temperature > 0
    inverse = 1.0 / tl.where(warm, temperature, 1.0)
    mass_V = tl.zeros([BLOCK], tl.float32)
    plain_V = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        x = tl.load(base + start + v, mask=start + v < vocab, other=float("-inf")).to(tl.float32)
        mass_V += tl.exp((x - best) * inverse)
        plain_V += tl.exp(x - best)
    total = tl.sum(mass_V, 0)
    log_total = tl.log(tl.sum(plain_V, 0))
    picked = best
    if warm:
        top_p = tl.load(top_p_ptr + row)
        # Tokens under (1 - top_p) / V of the mass weigh less than 1 - top_p together.
        share = tl.maximum((1.0 - top_p) / vocab, 1e-30)
        low = ordered(best + tl.log(share * total) * temperature - 1e-3).to(tl.int64)
        high = ordered(best).to(tl.int64) + 1
        # mass(>= low) reaches top_p, mass(>= high) does not: bisect to neighbours.
        while high - low > 1:
            middle = low + (high - low) // 2
            inside_V = tl.zeros([BLOCK], tl.float32)
            for start in range(0, vocab, BLOCK):
                x = tl.load(
                    base + start + v, mask=start + v < vocab, other=float("-inf")
                ).to(tl.float32)  # fmt: skip
                inside_V += tl.where(
                    ordered(x).to(tl.int64) >= middle, tl.exp((x - best) * inverse), 0.0
                )
            enough = tl.sum(inside_V, 0) >= top_p * total
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        kept_V = tl.zeros([BLOCK], tl.float32)
        for start in range(0, vocab, BLOCK):
            x = tl.load(
                base + start + v, mask=start + v < vocab, other=float("-inf")
            ).to(tl.float32)  # fmt: skip
            kept_V += tl.where(ordered(x).to(tl.int64) >= low, tl.exp((x - best) * inverse), 0.0)
        target = tl.load(noise_ptr + row) * tl.sum(kept_V, 0)
        before = 0.0
        found = False
        for start in range(0, vocab, BLOCK):
            x = tl.load(
                base + start + v, mask=start + v < vocab, other=float("-inf")
            ).to(tl.float32)  # fmt: skip
            inside = ordered(x).to(tl.int64) >= low
            mass = tl.where(inside, tl.exp((x - best) * inverse), 0.0)
            block_mass = tl.sum(mass, 0)
            if not found:
                last_inside = tl.max(tl.where(inside, start + v, -1), 0)
                if last_inside >= 0:
                    token = last_inside  # where rounding leaves the target past the end
                if before + block_mass > target:
                    reached = inside & (before + tl.cumsum(mass, 0) > target)
                    token = tl.min(tl.where(reached, start + v, token), 0)
                    found = True
            before += block_mass
        picked = tl.load(base + token).to(tl.float32)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, picked - best - log_total)


if __name__ == "__main__":
    main()
