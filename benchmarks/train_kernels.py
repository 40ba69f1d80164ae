"""Attention of a train pass, forward and backward, by the engine's kernel and by gathered rows.

    python benchmarks/train_kernels.py       # one GPU, under a minute
    python benchmarks/train_kernels.py --segments 64 --tokens 37 --past 300 --heads 32 8 128

A line a case: milliseconds of one layer's forward, and of forward and backward, and the bytes that
are held for the gradient. It needs nothing but PyTorch, Triton and what the engine imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from fttt.engine import attention
from fttt.engine.attention import Reach
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import Heads, KVCache
from fttt.engine.memory_plan import PAGE
from fttt.engine.ops.train_attention import train_attention


def made(
    segments: int, tokens: int, past: int, heads: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Batch, list[Tensor]]:
    """A pass after rows whose pages lie in any order, and its queries, keys and values."""
    query, key_value, dim = heads
    cache = KVCache(
        rows=segments, capacity=past + tokens, heads={0: Heads(key_value, dim, dim, 0)},
        dtype=dtype, device=torch.device("cuda"), page=PAGE,
    )  # fmt: skip
    cache.keys[0].normal_()
    cache.values[0].normal_()
    columns = cache.table_RP.shape[1]
    pages = torch.randperm(segments * columns, device="cuda")
    cache.table_RP[:segments] = pages.view(segments, columns)
    own = [Segment([1] * tokens, row, past) for row in range(segments)]
    batch = Batch.pack("train", own, cache)
    shape = [(segments * tokens, n, dim) for n in (query, key_value, key_value)]
    return batch, [
        torch.randn(x, device="cuda", dtype=dtype).requires_grad_() for x in shape
    ]  # fmt: skip


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=37, help="of a segment")
    parser.add_argument("--past", type=int, default=300, help="cached tokens before it")
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 8, 128], help="q, kv, dim")
    parser.add_argument("--window", type=int)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "train_kernels.py: there is no GPU here, and it times Triton's kernels.\n")
    dtype, heads = getattr(torch, options.dtype), tuple(options.heads)
    batch, inputs = made(options.segments, options.tokens, options.past, heads, dtype)
    scaling = heads[2] ** -0.5
    own = attention._Own(batch, 0, scaling, Reach(options.window, None), None, None, None)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"{options.dtype}, {options.segments} segments of {options.tokens} after {options.past}, "
        f"heads {heads}"
    )
    ways: dict[str, Callable[..., Tensor]] = {
        "kernel": lambda *x: train_attention(*x, batch, 0, scaling, window=options.window),
        "gathered rows": lambda *x: attention._train(*x, own),
    }
    for name, attend in ways.items():
        before = torch.cuda.memory_allocated()
        out = attend(*inputs)  # the mask, too, which all layers share, is made here
        held = torch.cuda.memory_allocated() - before
        up = torch.randn_like(out)

        def both(attend: Callable[..., Tensor] = attend, up: Tensor = up) -> object:
            return torch.autograd.grad(attend(*inputs), inputs, up)

        forward, whole = (
            do_bench(run, warmup=20, rep=200, return_mode="median")
            for run in (lambda attend=attend: attend(*inputs), both)
        )
        print(
            f"{name:<16} forward {forward:7.3f} ms  with backward {whole:7.3f} ms  "
            f"held {held / 1e6:8.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
