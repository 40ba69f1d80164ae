"""Train steps on a GPU: captured, plain, and those of a CPU."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, Lesson, LoRASpec, Target, TrainRequest, captured_pass
from fttt.models import LoadedModel
from fttt.testing import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
COUNTS = (8, 7, 8, 3, 8)


def learned(
    loaded: LoadedModel, after: int, patch: pytest.MonkeyPatch, spec: LoRASpec
) -> tuple[list[float], torch.Tensor, int]:
    """Losses of five waves of steps, the weights after them, and how many shapes were captured."""

    async def main() -> tuple[list[float], torch.Tensor, int]:
        engine = BatchedEngine(loaded, max_length=200, batch_size=8, concurrency=8, adapter=spec)
        slots = [await engine.open_adapter(spec, seed=n) for n in range(8)]
        losses: list[float] = []
        for wave, count in enumerate(COUNTS):
            requests = []
            for n in range(count):
                length = 9 if wave % 2 else 6 + (n + wave) % 5
                one = Target(tuple(range(40 + n, 40 + n + length)), (1 / length,) * length)
                context = tuple(range(20, 30 + 5 * n + wave))
                requests.append(TrainRequest(slots[n], (Lesson(context, (one,)),)))
            losses += [x.loss for x in await asyncio.gather(*map(engine.train, requests))]
        weights_SP = slots[0].bank.weights_SP.cpu()
        learner: Any = engine._learner
        captured = learner._captured
        shapes = len(captured._passes) if captured is not None else 0
        await engine.close()
        return losses, weights_SP, shapes

    with patch.context() as patched:
        patched.setattr(captured_pass, "AFTER", after)
        return asyncio.run(main())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_captured_steps_are_plain_ones_and_those_of_the_cpu(
    family: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = LoRASpec(dropout=dropout, lr=1e-2)
    cpu = tiny_model(family)
    gpu = replace(cpu, model=tiny_model(family).model.to("cuda"), device="cuda")
    found = [
        learned(loaded, after, monkeypatch, spec)
        for loaded, after in ((cpu, 0), (gpu, 10**9), (gpu, 0))
    ]
    assert [shapes for *_, shapes in found][:2] == [0, 0]
    least = 0 if family == "gemma2" else 1  # whose code may make a tensor of a number in each pass
    assert least <= found[2][2] < len(COUNTS)
    losses, weights_SP, _ = found[0]
    for other, other_SP, _ in found[1:]:
        assert other == pytest.approx(losses, rel=1e-3, abs=1e-4)
        torch.testing.assert_close(other_SP, weights_SP, rtol=1e-2, atol=1e-3)


def test_captured_steps_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose attention is another kernel, and whose products are rounded."""
    spec = LoRASpec(dropout=0.05, lr=1e-3, targets=("all-linear",))
    model = tiny_model().model.to("cuda", torch.bfloat16)
    gpu = replace(tiny_model(), model=model, device="cuda")
    plain, captured = (learned(gpu, after, monkeypatch, spec) for after in (10**9, 0))
    assert captured[2] >= 1
    assert captured[0] == pytest.approx(plain[0], rel=3e-2)
