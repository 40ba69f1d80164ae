"""The adapters' product of a train pass, and its gradient, beside the same in plain PyTorch.

    python benchmarks/low_rank.py            # one GPU, under a minute
    python benchmarks/low_rank.py --rank 16 --groups 1 --tokens 4096

By default one q projection of Llama-3.1-8B's shape, 64 questions of 37 tokens. A line a case:
milliseconds, the least bytes that it must move, the time that these take at the measured copy
speed, and how many times that it takes; then what each holds for the gradient, and how far the two
are apart. Second-level caches are cleared before each run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from fttt.engine import ops
from fttt.engine.adapters import product
from fttt.engine.adapters.product import InputScale
from fttt.engine.batch import Ragged, SlotGroups
from fttt.engine.workload import bandwidth

Case = tuple[str, float, Callable[[], object]]
"""What it is, its least bytes, and what is timed."""


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=37, help="of each group")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "low_rank.py: there is no GPU here, and it times Triton's kernels.\n")
    copy = bandwidth("cuda")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"{options.dtype}, copy {copy / 1e12:.3f} TB/s; {options.inputs} -> {options.outputs}, "
        f"{options.groups} x {options.tokens} tokens, rank {options.rank}, "
        f"dropout {options.dropout:g}"
    )
    arguments = made(options)
    forms = {"kernels": ops.low_rank.add_low_rank, "torch": in_torch}
    for name, add in forms.items():
        for case, least, run in cases(add, arguments):
            milliseconds = do_bench(run, warmup=20, rep=100, return_mode="median")
            floor = least / copy * 1e3
            print(
                f"{name:<8} {case:<26} {milliseconds:7.3f} ms  {least / 1e6:6.1f} MB  "
                f"floor {floor:6.3f} ms  {milliseconds / floor:6.2f} times",
                flush=True,
            )
        print(f"{name:<8} held for the gradient       {held(add, arguments) / 1e6:7.1f} MB")
    names = ("output", "output's gradient", "x's gradient", "A's gradient", "B's gradient")
    found = [results(add, arguments) for add in forms.values()]
    for name, mine, other in zip(names, *found, strict=True):
        apart = float((mine.double() - other.double()).norm() / other.double().norm())
        print(f"{name}: {apart:.2e} apart")


Arguments = tuple[Tensor, Tensor, Tensor, Tensor, SlotGroups, InputScale]


def made(options: argparse.Namespace) -> Arguments:
    """A layer's output and input, stacked A and B, and what says whose tokens are whose."""
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    slots, tokens = options.groups, options.groups * options.tokens
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype).requires_grad_()

    key_N = None
    if options.dropout:
        key_N = torch.arange(slots, device=device).repeat_interleave(options.tokens)
    scale = InputScale(
        torch.full((1,), 4.0, device=device), options.dropout, key_N,
        torch.arange(tokens, device=device), 64, 33,
    )  # fmt: skip
    ragged = Ragged((options.tokens,) * slots, device)
    groups = SlotGroups(tuple(range(slots)), tuple(range(slots)), ragged, None, tokens)
    return (
        draw(1, tokens, options.outputs, dtype=dtype),
        draw(1, tokens, options.inputs, dtype=dtype),
        draw(slots, options.rank, options.inputs),
        draw(slots, options.outputs, options.rank),
        groups,
        scale,
    )


def cases(add: Any, arguments: Arguments) -> Iterator[Case]:
    """The pass forward, with and without its gradient."""
    output, x, a, b = arguments[:4]
    weights = 4 * (a.numel() + b.numel())
    forward = x.nbytes + 2 * output.nbytes + weights
    backward = 2 * x.nbytes + output.nbytes + 2 * weights

    def without_gradient() -> None:
        with torch.no_grad():
            add(*arguments)

    yield "forward, no gradient", forward, without_gradient
    yield "forward", forward, lambda: add(*arguments)
    out, up = add(*arguments), torch.randn_like(output)
    leaves = arguments[:4]
    yield (
        "backward",
        backward,
        lambda: torch.autograd.grad(out, leaves, up, retain_graph=True),
    )


def held(add: Any, arguments: Arguments) -> int:
    """Bytes that the graph keeps beside the arguments and the output."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = add(*arguments)
    return torch.cuda.memory_allocated() - before - out.nbytes


def results(add: Any, arguments: Arguments) -> list[Tensor]:
    """The output, and the gradients of output, input, A and B."""
    generator = torch.Generator("cuda").manual_seed(1)
    out = add(*arguments)
    up = torch.randn(out.shape, device="cuda", generator=generator).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, arguments[:4], up)]


def in_torch(*arguments: Any) -> Tensor:
    """What a CPU does (:mod:`fttt.engine.adapters.product`), on a GPU: its factors are held."""
    apply: Any = product._AddLowRank.apply
    added: Tensor = apply(*arguments)
    return added


if __name__ == "__main__":
    main()
