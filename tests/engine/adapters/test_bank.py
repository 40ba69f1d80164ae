"""Slots: who gets one, what is kept apart by them, and that none is lost on the way."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, GenerateRequest, Lesson, LoRASpec, Target, TrainRequest
from fttt.engine.adapters.bank import AdapterNeeds, Bank, Learner
from fttt.engine.adapters.draws import DrawnRow
from fttt.engine.batch import Batch
from fttt.errors import RunError
from fttt.testing import tiny_model


class Places(Bank):
    """A bank whose slots hold nothing."""

    spec = LoRASpec()

    @staticmethod
    def needs(model: Any, spec: Any, layer_bytes: int) -> AdapterNeeds:
        raise NotImplementedError

    def learner(self, *_: Any) -> Learner:
        raise NotImplementedError

    def fill(self, index: int, seed: int, row: DrawnRow | None = None) -> None:
        pass

    def copy(self, source: int, target: int) -> None:
        pass

    def applied(self, batch: Batch) -> AbstractContextManager[None]:
        raise NotImplementedError


def test_a_slot_that_was_given_to_somebody_who_goes_is_the_next_ones() -> None:
    async def main() -> None:
        bank = Places(None, LoRASpec(), 1, torch.device("cpu"))
        held = await bank.open(0)
        gone, next_one = (asyncio.create_task(bank.open(0)) for _ in range(2))
        await asyncio.sleep(0)
        held.close()  # the first of the two has it now,
        gone.cancel()  # and is cancelled before it runs again
        async with asyncio.timeout(120):
            assert (await next_one).index == held.index
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(main())


def test_who_waits_for_a_slot_is_told_that_the_engine_was_closed() -> None:
    spec = LoRASpec(rank=2)

    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=64, adapter=spec)  # of one question
        await engine.open_adapter(spec, 1)
        waiting = asyncio.create_task(engine.open_adapter(spec, 2))
        await asyncio.sleep(0)
        await engine.close()
        async with asyncio.timeout(120):
            with pytest.raises(RunError, match="engine was closed"):
                await waiting
        with pytest.raises(RunError, match="engine was closed"):
            await engine.open_adapter(spec, 3)

    asyncio.run(main())


def test_a_row_that_was_kept_for_somebody_who_goes_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=64)
        asked = GenerateRequest((5, 6, 7), 4, keep=True)
        task = asyncio.create_task(engine.generate(asked))
        keep = engine._cache.keep

        def and_cancel(*args: object, **more: object) -> object:
            asyncio.get_running_loop().call_soon(task.cancel)  # before the answer is looked at
            return keep(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(engine._cache, "keep", and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (engine._cache.free, engine._cache.kept) == (engine.plan.rows, 0)
        await engine.close()

    asyncio.run(main())


def test_an_adapter_and_the_base_model_share_no_prompt() -> None:
    spec = LoRASpec(rank=2)

    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=64, concurrency=4, adapter=spec)
        slot = await engine.open_adapter(spec, 1)
        for _, b in slot.bank.factors(slot.index):
            b.fill_(0.5)
        base = GenerateRequest((5, 6, 7, 8), 12)
        asked = [base, replace(base, adapter=slot), base, replace(base, adapter=slot)]
        together = await asyncio.gather(*map(engine.generate, asked))
        alone = [(await engine.generate(request)).token_ids for request in asked[:2]]
        assert alone[0] != alone[1]
        assert [answer.token_ids for answer in together] == alone * 2
        await engine.close()

    asyncio.run(main())


def test_steps_of_one_adapter_follow_one_another() -> None:
    spec = LoRASpec(rank=2, lr=1e-2, dropout=0.0)
    target = Target((9, 10, 11), (1 / 3,) * 3)

    async def losses(*, together: bool) -> list[float]:
        engine = BatchedEngine(tiny_model(), max_length=64, concurrency=4, adapter=spec)
        slot = await engine.open_adapter(spec, 1)
        request = TrainRequest(slot, (Lesson((5, 6, 7, 8), (target,)),))
        if together:
            found = list(await asyncio.gather(*(engine.train(request) for _ in range(3))))
        else:
            found = [await engine.train(request) for _ in range(3)]
        await engine.close()
        return [trained.loss for trained in found]

    one_by_one = asyncio.run(losses(together=False))
    assert one_by_one[0] > one_by_one[1] > one_by_one[2]
    assert asyncio.run(losses(together=True)) == pytest.approx(one_by_one, rel=1e-5)


@pytest.mark.parametrize("adapted", [True, False])
def test_outputs_that_are_no_numbers_end_all_with_one_sentence(adapted: bool) -> None:
    spec = LoRASpec(rank=2)
    says = "own weights have diverged" if adapted else "bfloat16 or float32"

    async def main() -> None:
        loaded = tiny_model()
        engine = BatchedEngine(loaded, max_length=64, concurrency=4, adapter=spec)
        slot = await engine.open_adapter(spec, 1)
        base = GenerateRequest((5, 6, 7, 8), 12)
        if adapted:
            for _, b in slot.bank.factors(slot.index):
                b.fill_(float("inf"))
        else:
            loaded.model.model.norm.weight.fill_(float("inf"))
        both = [base, replace(base, adapter=slot if adapted else None)]
        async with asyncio.timeout(120):
            answers = await asyncio.gather(*map(engine.generate, both), return_exceptions=True)
            assert isinstance(answers[1], RunError)
            assert says in str(answers[1])
            with pytest.raises(RunError, match=says):  # nor does a later one go on beside it
                await engine.generate(base)
        await engine.close()

    asyncio.run(main())
