"""The attention kernels of train passes against plain float64 arithmetic, and in whole steps.

They also run under Triton's interpreter (``TRITON_INTERPRET=1``), without a GPU; it has no
bfloat16, so that half precision there is float16.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fttt.engine import BatchedEngine, Lesson, LoRASpec, Target, TrainRequest, attention, ops
from fttt.engine.attention import Reach
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import Heads, KVCache
from fttt.testing import tiny_model

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
HALF = torch.float16 if INTERPRETED else torch.bfloat16
NAMES = ("out", "dq", "dk", "dv")


@dataclass
class Case:
    """Segments of several lengths, after nothing, within a page, at its end and far behind it."""

    heads: int
    kv_heads: int
    dim: int
    value_dim: int = 0
    page: int = 16
    lengths: tuple[int, ...] = (37, 1, 5, 90)
    pasts: tuple[int, ...] = (70, 0, 33, 64)
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sunk: bool = False
    sloped: bool = False

    def make(self, dtype: torch.dtype) -> tuple[Batch, list[Tensor], dict[str, Any]]:
        """A pass, its queries, keys and values as a model makes them (strided), and the options."""
        torch.manual_seed(0)
        capacity, count = (
            -(-max(map(sum, zip(self.lengths, self.pasts, strict=True))) // 20) * 20,
            5,
        )
        values = self.value_dim or self.dim
        cache = KVCache(
            rows=count, capacity=capacity, heads={0: Heads(self.kv_heads, self.dim, values, 0)},
            dtype=dtype, device=DEVICE, page=self.page,
        )  # fmt: skip
        cache.keys[0].normal_()
        cache.values[0].normal_()
        columns = cache.table_RP.shape[1]
        pages = torch.randperm(count * columns, device=DEVICE)
        cache.table_RP[:count] = pages.view(count, columns)
        rows = (3, 0, 4, 1)
        parts = zip(self.lengths, rows, self.pasts, strict=True)
        batch = Batch.pack("train", [Segment([1] * n, row, past) for n, row, past in parts], cache)
        inputs = [
            torch.randn(1, sum(self.lengths), n * size, device=DEVICE).to(dtype)
            .view(1, -1, n, size).transpose(1, 2).squeeze(0).transpose(0, 1).requires_grad_()
            for n, size in (
                (self.heads, self.dim), (self.kv_heads, self.dim), (self.kv_heads, values)
            )
        ]  # fmt: skip
        sinks = torch.randn(self.heads, device=DEVICE).to(dtype) * 2 if self.sunk else None
        slopes = torch.rand(self.heads, device=DEVICE) * 0.1 if self.sloped else None
        options = {"window": self.window, "chunk": self.chunk, "softcap": self.softcap}
        return batch, inputs, {**options, "sinks": sinks, "slopes": slopes}


def in_float64(batch: Batch, inputs: list[Tensor], scaling: float, asked: dict[str, Any]) -> Tensor:
    """Attention written out, segment by segment; ``inputs`` are float64."""
    q_NHD, k_NKD, v_NKE = inputs
    cache, groups, found = batch.cache, q_NHD.shape[1] // k_NKD.shape[1], []
    for b, (end, own) in enumerate(zip(batch.ends, batch.lengths, strict=True)):
        past, page_1P = batch.pasts[b], cache.table_RP[batch.row_B[b : b + 1]].long()
        k_HSD, v_HSE = (
            torch.cat([
                cache.read(held, page_1P, past)[0].double(), x[end - own : end].transpose(0, 1)
            ], 1).repeat_interleave(groups, 0)
            for held, x in ((cache.keys[0], k_NKD), (cache.values[0], v_NKE))
        )  # fmt: skip
        score = q_NHD[end - own : end].transpose(0, 1) @ k_HSD.transpose(1, 2) * scaling
        if asked["softcap"]:
            score = (score / asked["softcap"]).tanh() * asked["softcap"]
        key_at = torch.arange(past + own, device=DEVICE)
        query_at = key_at[past:, None]
        if asked["slopes"] is not None:
            score = score - asked["slopes"].double()[:, None, None] * (query_at - key_at)
        visible = Reach(asked["window"], asked["chunk"]).visible(key_at, query_at)
        score = score.masked_fill(~visible, -torch.inf)
        if asked["sinks"] is not None:
            sink = asked["sinks"].double()[:, None, None].expand(-1, own, 1)
            v_HSE = torch.nn.functional.pad(v_HSE, (0, 0, 0, 1))
            score = torch.cat([score, sink], -1)
        found.append((score.softmax(-1) @ v_HSE).transpose(0, 1))
    return torch.cat(found)


def with_gradients(
    attend: Callable[..., Tensor], inputs: list[Tensor], up_NHE: Tensor
) -> list[Tensor]:
    """What comes out, and the gradients of queries, keys and values."""
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, up_NHE.to(out.dtype))]


def errors(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    return {
        name: float((x.double() - y).norm() / y.norm())
        for name, x, y in zip(NAMES, found, expected, strict=True)
    }


CASES = {
    "d128-g4": Case(8, 2, 128),
    "d64-g3-page64": Case(9, 3, 64, page=64),
    "d16-g1": Case(2, 2, 16),
    "d80-page20": Case(3, 3, 80, page=20),
    "d96-e40": Case(4, 2, 96, 40),
    "d192-e128": Case(2, 2, 192, 128, lengths=(7, 1, 5, 40)),
    "d256-g2": Case(4, 2, 256, lengths=(7, 1, 5, 40)),
    "d512": Case(2, 1, 512, lengths=(7, 1, 5, 20)),
    "window20": Case(4, 2, 64, window=20),
    "window2": Case(4, 2, 64, window=2, lengths=(9, 1, 5, 17)),
    "chunk24": Case(4, 2, 64, chunk=24),
    "chunk64-window50": Case(8, 2, 128, chunk=64, window=50),
    "sinks": Case(8, 1, 64, sunk=True),
    "sinks-window20": Case(8, 2, 64, sunk=True, window=20),
    "softcap": Case(4, 2, 64, softcap=2.0),
    "slopes": Case(6, 6, 64, sloped=True),
    "fresh": Case(4, 2, 64, pasts=(0, 0, 0, 0), window=20),
    "far": Case(8, 2, 128, lengths=(37, 37, 37, 37), pasts=(300, 180, 400, 1), page=64),
}


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["float32", "half"])
@pytest.mark.parametrize("name", CASES)
def test_attention_and_its_gradient(name: str, dtype: torch.dtype) -> None:
    """In half precision no further from float64 than PyTorch's attention is, twice over."""
    kernels = import_module("fttt.engine.ops.train_attention")
    case = CASES[name]
    batch, inputs, asked = case.make(dtype)
    scaling = case.dim**-0.5
    up_NHE = torch.randn(len(inputs[0]), case.heads, case.value_dim or case.dim, device=DEVICE)
    up_NHE = up_NHE.to(dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(
        lambda *x: in_float64(batch, list(x), scaling, asked), wide, up_NHE.double()
    )
    # the host knows no more than a bound of what rows hold, as in a captured pass
    blind = replace(batch, pasts=(batch.cache.capacity,) * 4)
    found = with_gradients(
        lambda *x: kernels.train_attention(*x, blind, 0, scaling, **asked), inputs, up_NHE
    )
    for own, x in zip(found, (up_NHE, *inputs), strict=True):
        assert own.shape == x.shape
        assert own.dtype == dtype
        assert own.isfinite().all()
    off = errors(found, expected)
    if dtype is torch.float32:
        allowed = dict.fromkeys(NAMES, 5e-6)
    else:
        own = attention._Own(
            batch, 0, scaling, Reach(case.window, case.chunk), case.softcap, asked["sinks"],
            asked["slopes"],
        )  # fmt: skip
        plain = with_gradients(lambda *x: attention._train(*x, own), inputs, up_NHE)
        allowed = {name: 2 * x + 1e-3 for name, x in errors(plain, expected).items()}
    assert all(off[x] <= allowed[x] for x in NAMES), f"{name}: off {off}, allowed {allowed}"


def test_weights_without_a_gradient_of_keys() -> None:
    """As in a first layer whose queries alone are adapted."""
    kernels = import_module("fttt.engine.ops.train_attention")
    batch, (q, k, v), _ = CASES["d64-g3-page64"].make(torch.float32)
    whole = kernels.train_attention(q, k, v, batch, 0, 0.125)
    (expected,) = torch.autograd.grad(whole.square().sum(), q)
    out = kernels.train_attention(q, k.detach(), v.detach(), batch, 0, 0.125)
    (found,) = torch.autograd.grad(out.square().sum(), q)
    assert torch.equal(out, whole)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(kernels.train_attention(q, k, v, batch, 0, 0.125), whole)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no graphs")
def test_a_captured_pass_serves_rows_of_any_length() -> None:
    kernels = import_module("fttt.engine.ops.train_attention")
    batch, inputs, _ = CASES["far"].make(HALF)
    up_NHE = torch.randn_like(inputs[0])

    def step() -> list[Tensor]:
        return with_gradients(lambda *x: kernels.train_attention(*x, batch, 0, 0.1), inputs, up_NHE)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for past in ((0, 64, 17, 380), (400, 1, 250, 0)):
        batch.past_B.copy_(torch.tensor(past))
        batch.row_B.copy_(torch.tensor([1, 2, 0, 4]))
        graph.replay()
        for name, own, plain in zip(NAMES, found, step(), strict=True):
            assert torch.equal(own, plain), name


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt_oss"])
def test_steps_by_the_kernels_are_those_of_gathered_rows(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets after contexts of several lengths, and after a part of them."""
    spec = LoRASpec(dropout=0.0, lr=1e-2)
    model = tiny_model(family).model.to(DEVICE)
    loaded = replace(tiny_model(family), model=model, device=str(DEVICE))
    kernels = import_module("fttt.engine.ops.train_attention")
    calls: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[3].mode)
        return kernel(*args, **kwargs)

    async def main() -> tuple[list[float], Tensor]:
        engine = BatchedEngine(loaded, max_length=200, batch_size=4, concurrency=4, adapter=spec)
        slots = [await engine.open_adapter(spec, seed=n) for n in range(3)]
        losses: list[float] = []
        for wave in range(2):
            requests = []
            for n, slot in enumerate(slots):
                length = 6 + 9 * n + wave
                one = Target(tuple(range(40 + n, 40 + n + length)), (1 / length,) * length)
                context = tuple(range(20, 30 + 20 * n + wave))
                lesson = Lesson(context, (one, replace(one, after=4)))
                requests.append(TrainRequest(slot, (lesson,)))
            losses += [x.loss for x in await asyncio.gather(*map(engine.train, requests))]
        weights_SP = slots[0].bank.weights_SP.cpu()
        await engine.close()
        return losses, weights_SP

    kernel = kernels.train_attention
    found = []
    for in_place in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "train_attention", counted)
            patched.setattr(ops, "train_attention", kernels)
            patched.setattr(attention, "_in_place", lambda *_, own=in_place: own)
            found.append(asyncio.run(main()))
        assert bool(calls) == in_place
    assert set(calls) == {"prefill", "train"} or not INTERPRETED
    (losses, weights_SP), (losses_in_place, weights_in_place_SP) = found
    assert losses_in_place == pytest.approx(losses, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(weights_in_place_SP, weights_SP, rtol=1e-2, atol=1e-3)
