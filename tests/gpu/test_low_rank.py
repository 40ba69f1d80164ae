"""The adapters' products on a GPU, and their gradients, against plain float64 arithmetic.

They also run under Triton's interpreter (``TRITON_INTERPRET=1``), without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fttt.engine.adapters import product
from fttt.engine.adapters.product import InputScale
from fttt.engine.batch import Batch, Segment, SlotGroups
from fttt.engine.cache import Heads, KVCache
from fttt.engine.ops import sampling

pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of torch)")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or INTERPRETED), reason="no CUDA device on this machine"
    ),
    # of a gradient's thread whose first operation is a product
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA"),
]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SCALE, LAYERS, LAYER = 1.5, 5, 3
FARTHER = 3 if INTERPRETED else 2  # the interpreter cuts float32 off to bfloat16
GROUPS = {
    "one": [(0, 19)],
    "even": [(0, 8), (1, 8), (2, 8)],
    "ragged": [(0, 13), (1, 1), (2, 22)],
    "segments": [(1, 5), (0, 3), (1, 9), (0, 10), (2, 1)],
    "base": [(-1, 4), (0, 11), (-1, 2), (1, 3), (0, 6), (-1, 1)],
}
"""Segments: slots, and tokens."""


class Case(NamedTuple):
    """A layer's product: on the CPU, leaves in their dtypes."""

    output: Tensor
    x: Tensor
    a: Tensor
    b: Tensor
    up: Tensor
    segments: list[tuple[int, int]]
    key_N: Tensor | None
    token_N: Tensor
    rate: float

    def scale(self, device: torch.device) -> InputScale:
        key_N = None if self.key_N is None else self.key_N.to(device)
        scale_1 = torch.tensor([SCALE], device=device)
        return InputScale(scale_1, self.rate, key_N, self.token_N.to(device), LAYERS, LAYER)

    def groups(self, device: torch.device) -> SlotGroups:
        heads = {0: Heads(kv_heads=1, key_dim=8, value_dim=8, owner=0)}
        cache = KVCache(rows=1, capacity=8, heads=heads, dtype=torch.float32, device=device)
        segments = [Segment((1,) * n, -1, 0, slot) for slot, n in self.segments]
        return Batch.pack("train", segments, cache).groups

    def mask(self) -> Tensor:
        """Dropout's factors of each token, as the CPU draws them."""
        if self.key_N is None:
            return torch.ones(self.x.shape[1:])
        number_N1 = (self.token_N * LAYERS + LAYER)[:, None]
        return sampling.keep_mask(self.key_N, number_N1, self.x.shape[-1], self.rate)[:, 0]

    def leaves(self, device: torch.device) -> list[Tensor]:
        """Output, input, A and B, to be differentiated."""
        found = (self.output, self.x, self.a, self.b)
        return [leaf.detach().clone().to(device).requires_grad_() for leaf in found]


def make(
    kind: str, rank: int, inputs: int, outputs: int, dtype: torch.dtype, rate: float = 0.0
) -> Case:
    segments = GROUPS[kind]
    generator = torch.Generator().manual_seed(rank + inputs)
    tokens, slots = sum(n for _, n in segments), len({s for s, _ in segments if s >= 0})

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Case(
        draw(1, tokens, outputs).to(dtype),
        draw(1, tokens, inputs).to(dtype),
        draw(slots, rank, inputs) / inputs**0.5,
        draw(slots, outputs, rank),
        draw(1, tokens, outputs).to(dtype),
        segments,
        torch.arange(tokens) % 3 * -(2**59) - 7 if rate else None,
        torch.arange(tokens) * 11,
        rate,
    )


def defined(case: Case) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output and the gradients by definition, in float64, from the rounded numbers."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in case.leaves(DEVICE)]
    output, x, a, b = leaves
    groups = case.groups(torch.device("cpu"))
    slots = [g for g, (_, n) in zip(groups.group_of, case.segments, strict=True) for _ in range(n)]
    dropped = x[0] * case.mask().double().to(DEVICE)
    rows = [
        output[0, n] + (SCALE * (dropped[n] @ a[slot].T) @ b[slot].T if slot >= 0 else 0)
        for n, slot in enumerate(slots)
    ]
    out = torch.stack(rows)[None]
    return out.detach(), torch.autograd.grad(out, leaves, case.up.double().to(DEVICE))


def computed(case: Case, add: Any, device: torch.device) -> list[Tensor]:
    """The output, and the gradients of output, input, A and B."""
    leaves = case.leaves(device)
    out = add(*leaves, case.groups(device), case.scale(device))
    found = [out.detach(), *torch.autograd.grad(out, leaves, case.up.to(device))]
    assert [x.dtype for x in found] == [x.dtype for x in (leaves[0], *leaves)]
    assert [x.shape for x in found] == [x.shape for x in (leaves[0], *leaves)]
    return found


def kernels(*arguments: Any) -> Tensor:
    # not fttt.engine.ops.low_rank, which is None where there is no GPU
    out: Tensor = import_module("fttt.engine.ops.low_rank").add_low_rank(*arguments)
    return out


def errors(found: list[Tensor], expected: list[Tensor]) -> Iterator[float]:
    for mine, own in zip(found, expected, strict=True):
        yield float((mine.cpu().double() - own.cpu()).norm() / own.norm().cpu().clamp(min=1e-30))


def check(case: Case) -> None:
    """About as near to the definition as plain PyTorch on a CPU."""
    out, gradients = defined(case)
    expected = [out, *gradients]
    plain = errors(computed(case, product.add_low_rank, torch.device("cpu")), expected)
    mine = errors(computed(case, kernels, DEVICE), expected)
    names = ("output", "output's gradient", "x's gradient", "A's gradient", "B's gradient")
    table = [(name, *pair) for name, *pair in zip(names, mine, plain, strict=True)]
    said = "; ".join(f"{name}: {own:.2e}, plain {other:.2e}" for name, own, other in table)
    assert all(own <= FARTHER * other + 3e-7 for _, own, other in table), said


DTYPES = [
    pytest.param(torch.float32, id="f32"),
    pytest.param(torch.bfloat16, id="bf16"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3, 4, 8, 16, 32])
def test_products_of_any_rank(rank: int, dtype: torch.dtype) -> None:
    check(make("ragged", rank, 600, 300, dtype, 0.05))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(GROUPS))
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_products_of_any_groups(kind: str, rate: float, dtype: torch.dtype) -> None:
    check(make(kind, 4, 640, 520, dtype, rate))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 515), (512, 16), (1030, 33)])
def test_products_of_any_width(inputs: int, outputs: int) -> None:
    check(make("base", 4, inputs, outputs, torch.float32, 0.3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["ragged", "base"])
@pytest.mark.parametrize("programs", [1, 12])
def test_a_program_goes_over_several_tiles(
    programs: int, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are many groups; few tiles are split among as many programs otherwise."""
    module = import_module("fttt.engine.ops.low_rank")
    monkeypatch.setattr(module, "_PROGRAMS", programs)
    check(make(kind, 4, 640, 520, dtype, 0.05))
    check(make(kind, 8, 640, 520, dtype, 0.05))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_a_wider_product_are_changed_in_place(dtype: torch.dtype) -> None:
    """As q and v are, where no gradient is wanted; tokens of the base model stay what they are."""
    case = make("base", 4, 640, 520, dtype)
    wide = torch.randn(1, case.x.shape[1], 1100).to(DEVICE, dtype)
    before = wide.clone()
    part = wide[..., 100:620]
    with torch.no_grad():
        part.copy_(case.output)
        found = kernels(
            part, case.x.to(DEVICE), case.a.to(DEVICE), case.b.to(DEVICE), case.groups(DEVICE),
            case.scale(DEVICE),
        )  # fmt: skip
    assert found.data_ptr() == part.data_ptr()
    assert torch.equal(found, computed(case, kernels, DEVICE)[0])
    base = [n for n, slot in enumerate(s for s, n in case.segments for _ in range(n)) if slot < 0]
    assert torch.equal(found[0, base].cpu(), case.output[0, base])
    assert torch.equal(wide[..., :100], before[..., :100])
    assert torch.equal(wide[..., 620:], before[..., 620:])


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_is_that_of_the_mask_bit_for_bit(rate: float) -> None:
    """Read from the products: of one input of 1 with an A of 1, and of its gradient."""
    case = make("one", 1, 530, 1, torch.float32, rate)
    case = case._replace(x=torch.ones_like(case.x), up=torch.ones_like(case.up))
    number_N1 = (case.token_N * LAYERS + LAYER)[:, None].to(DEVICE)
    drawn = import_module("fttt.engine.ops.triton").keep_mask
    mask = drawn(case.scale(DEVICE).key_N, number_N1, 530, rate)[:, 0].cpu()
    torch.testing.assert_close(mask, case.mask(), rtol=1e-6, atol=0)  # a GPU's 1 / (1 - rate)
    scale = replace(case.scale(DEVICE), scale_1=torch.ones(1, device=DEVICE))
    output, x, _, b = case.leaves(DEVICE)
    ones = torch.ones(1, 1, 530, device=DEVICE, requires_grad=True)
    out = kernels(output, x, ones, torch.ones_like(b), case.groups(DEVICE), scale)
    gradient, a_gradient = torch.autograd.grad(out, (x, ones), case.up.to(DEVICE))
    assert torch.equal(gradient[0].cpu(), mask)
    torch.testing.assert_close(a_gradient[0, 0].cpu(), mask.sum(0))
    for at in (0, 17, 511, 512, 529):
        one = torch.zeros(1, 1, 530, device=DEVICE)
        one[..., at] = 1
        with torch.no_grad():
            found = kernels(
                torch.zeros_like(output), x, one, torch.ones_like(b), case.groups(DEVICE), scale
            )
        assert torch.equal(found[0, :, 0].cpu(), mask[:, at])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_numbers_each_time(dtype: torch.dtype) -> None:
    case = make("ragged", 4, 640, 520, dtype, 0.05)
    first, second = (computed(case, kernels, DEVICE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_group_alone_gets_what_it_gets_among_others() -> None:
    """Bit for bit, where its tokens are split as before."""
    case = make("ragged", 4, 640, 520, torch.float32, 0.05)
    alone = case._replace(
        output=case.output[:, 14:], x=case.x[:, 14:], a=case.a[2:], b=case.b[2:],
        up=case.up[:, 14:], segments=[(0, 22)], token_N=case.token_N[14:],
        key_N=None if case.key_N is None else case.key_N[14:],
    )  # fmt: skip
    among = computed(case, kernels, DEVICE)
    mine = computed(alone, kernels, DEVICE)
    for found, own in zip(among[:3], mine[:3], strict=True):
        assert torch.equal(found[:, 14:], own)
    for found, own in zip(among[3:], mine[3:], strict=True):
        torch.testing.assert_close(found[2:], own)


def test_inputs_without_a_gradient() -> None:
    case = make("base", 4, 64, 48, torch.float32, 0.05)
    output, x, a, b = case.leaves(DEVICE)
    out = kernels(output, x.detach(), a, b, case.groups(DEVICE), case.scale(DEVICE))
    found = torch.autograd.grad(out, (a, b), case.up.to(DEVICE))
    expected = computed(case, kernels, DEVICE)[3:]
    assert all(torch.equal(mine, own) for mine, own in zip(found, expected, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="a graph is captured on a GPU alone")
def test_captured_with_its_gradient() -> None:
    case = make("even", 4, 640, 520, torch.bfloat16, 0.05)
    groups, scale = case.groups(DEVICE), case.scale(DEVICE)
    leaves, up = case.leaves(DEVICE), case.up.to(DEVICE)
    found: list[Tensor] = []

    def step() -> None:
        out = kernels(*leaves, groups, scale)
        found[:] = [out.detach(), *torch.autograd.grad(out, leaves, up)]

    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    graph.replay()
    torch.cuda.synchronize()
    expected = computed(case, kernels, DEVICE)
    assert all(torch.equal(mine, own) for mine, own in zip(found, expected, strict=True))
