"""Slots: who gets one, and that none is lost where somebody goes in the wrong moment."""

import asyncio
from contextlib import AbstractContextManager

import pytest

from fttt.engine import BatchedEngine, GenerateRequest, LoRASpec
from fttt.engine.batch import Batch
from fttt.engine.slots import Bank
from fttt.errors import RunError
from fttt.testing import tiny_model


class Places(Bank):
    """A bank whose slots hold nothing."""

    spec = LoRASpec()

    def fill(self, index: int, seed: int) -> None:
        pass

    def applied(self, batch: Batch) -> AbstractContextManager[None]:
        raise NotImplementedError


def test_a_slot_that_was_given_to_somebody_who_goes_is_the_next_ones() -> None:
    async def main() -> None:
        bank = Places(1)
        held = await bank.open(0)
        gone, next_one = (asyncio.create_task(bank.open(0)) for _ in range(2))
        await asyncio.sleep(0)
        held.close()  # the first of the two has it now,
        gone.cancel()  # and is cancelled before it runs again
        async with asyncio.timeout(5):
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
        async with asyncio.timeout(5):
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
