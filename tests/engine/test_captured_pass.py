"""Captured train passes against plain ones, with a stand-in for a GPU's graphs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
    captured_pass,
)
from fttt.engine.adapters.lora import LoRALearner
from fttt.engine.captured_pass import CapturedPasses, HostCalls, round_up
from fttt.testing import tiny_model
from fttt.types import Teacher

SPEC = LoRASpec(dropout=0.2, lr=1e-2)


def learned(
    family: str,
    patch: pytest.MonkeyPatch,
    recorder: Any,
    *,
    capture: bool,
    page: Callable[[], None],
) -> tuple[list[float], torch.Tensor, list[CapturedPasses]]:
    """Losses of all steps of eight questions, and the weights after them."""
    loaded = tiny_model(family)
    made: list[CapturedPasses] = []
    init = LoRALearner.__init__

    def with_captures(self: Any, bank: Any, cache: Any, plan: Any, fill: Any) -> None:
        init(self, bank, cache, plan, fill)
        if capture:
            recorders: list[Any] = []

            def one(step: Callable[[], None]) -> Callable[[], None] | None:
                recorders.append(recorder())
                return recorders[-1](step)

            self._captured = CapturedPasses(bank, cache, 2**10, 2**30, lambda: one)
            self._captured.recorders = recorders
            made.append(self._captured)

    async def main() -> tuple[list[float], torch.Tensor]:
        engine = BatchedEngine(loaded, max_length=200, batch_size=8, concurrency=8, adapter=SPEC)
        slots = [await engine.open_adapter(SPEC, seed=n) for n in range(8)]
        for slot in slots:
            for _, b in slot.bank.factors(slot.index):
                torch.nn.init.normal_(
                    b, std=0.05, generator=torch.Generator().manual_seed(slot.index)
                )
        losses: list[float] = []
        for wave in range(8):
            count = (8, 7, 8, 3, 6, 8, 5, 7)[wave]
            asked = [
                GenerateRequest(tuple(range(20, 25 + 3 * n)), 4 + wave, adapter=slots[n], keep=True)
                for n in range(count)
            ]
            answers = await asyncio.gather(*map(engine.generate, asked))
            requests = []
            for n, answer in enumerate(answers):
                assert answer.kept is not None
                length = 9 if wave % 2 else 6 + (n + wave) % 5
                weights = [0.1 * (1 + t % 3) for t in range(length)]
                weights[2] = 0.0
                one = Target(tuple(range(40 + n, 40 + n + length)), tuple(weights))
                if wave == 4 and n == 1:  # which only a plain pass knows
                    teacher = Teacher(((5, 6),) * length, ((0.6, 0.3),) * length, (0.1,) * length)
                    one = replace(one, teacher=teacher)
                requests.append(TrainRequest(slots[n], (Lesson(answer.kept, (one,)),)))
            trained = await asyncio.gather(*map(engine.train, requests))
            losses += [one.loss for one in trained]
        weights_SP = slots[0].bank.weights_SP.clone()
        await engine.close()
        return losses, weights_SP

    with patch.context() as patched:
        patched.setattr(LoRALearner, "__init__", with_captures)
        patched.setattr(captured_pass, "AFTER", 1)
        page()
        losses, weights_SP = asyncio.run(main())
    return losses, weights_SP, made


@pytest.mark.parametrize(("family", "pages"), [("llama", None), ("gemma3", 16), ("gemma2", None)])
def test_replayed_passes_learn_what_plain_ones_do(
    family: str,
    pages: int | None,
    monkeypatch: pytest.MonkeyPatch,
    paged: Callable[..., None],
    graph_recorder: Any,
) -> None:
    """Fewer questions, shorter targets and shorter contexts than those of the capture included."""
    found = [
        learned(family, monkeypatch, graph_recorder, capture=capture, page=lambda: paged(pages))
        for capture in (False, True)
    ]
    (losses, weights_SP, _), (losses_captured, weights_captured_SP, (passes,)) = found
    assert losses_captured == pytest.approx(losses, rel=2e-4, abs=1e-5)
    torch.testing.assert_close(weights_captured_SP, weights_SP, rtol=2e-3, atol=1e-4)
    recorders: list[Any] = passes.recorders  # type: ignore[attr-defined]
    assert sum(recorder.replays for recorder in recorders) >= 4
    assert len(recorders) < 4


def test_a_step_that_asks_the_host_is_known_by_its_operations() -> None:
    x = torch.arange(6.0)
    for asks, step in (
        (False, lambda: x[2:].square().sum()),
        (False, lambda: x.index_select(0, x[:2].long())),
        (True, lambda: x[[1, 2]]),
        (True, lambda: x[x > 2]),
        (True, lambda: x * float(x.sum())),
    ):
        with HostCalls(gpu=False) as calls:
            step()
        assert bool(calls.names) == asks


@given(st.integers(1, 5000), st.sampled_from([1, 2, 4]))
def test_shapes_are_few_and_hold_what_they_are_for(number: int, sizes: int) -> None:
    rounded = round_up(number, sizes)
    assert number <= rounded <= max(number, (1 + 1 / sizes) * number)
    assert round_up(rounded, sizes) == rounded
    assert len({round_up(n, sizes) for n in range(1025, 2049)}) == sizes
