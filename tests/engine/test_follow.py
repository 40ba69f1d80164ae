"""A prompt that goes on from a kept sequence is computed only from where that ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fttt.engine import BatchedEngine, GenerateRequest, LoRASpec, Target, TrainRequest
from fttt.engine.batch import Batch
from fttt.errors import RunError
from fttt.models import LoadedModel
from fttt.testing import tiny_model

SPEC = LoRASpec()
TURN = (7, 8, 9)


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each segment that is prefilled."""
    seen: list[int] = []
    pack = Batch.pack

    def counted(mode: Any, segments: Any, cache: Any) -> Batch:
        if mode == "prefill":
            seen.extend(len(segment.token_ids) for segment in segments)
        return pack(mode, segments, cache)

    monkeypatch.setattr(Batch, "pack", counted)
    return seen


def run(
    loaded: LoadedModel, work: Callable[[BatchedEngine], Awaitable[Any]], **settings: Any
) -> Any:
    async def main() -> Any:
        engine = BatchedEngine(loaded, max_length=200, **settings)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_growing_conversation_has_the_same_tokens(family: str, prefilled: list[int]) -> None:
    """Also beside others that follow nothing, and where a window has slid past the beginning."""
    loaded = tiny_model(family)

    async def talk(engine: BatchedEngine, n: int, *, reuse: bool) -> list[tuple[int, ...]]:
        prompt, held, said = tuple(range(20, 26 + n)), None, []
        for turn in range(4):
            answer = await engine.generate(
                GenerateRequest(
                    prompt, 6 + (n + turn) % 5, 0.8, 0.9, 31 * n + turn, (2,), keep=reuse,
                    follows=held, logprobs=True,
                )
            )  # fmt: skip
            said.append(answer.token_ids)
            prompt, held = prompt + answer.token_ids + TURN, answer.kept
        if held is not None:
            held.close()
        assert engine._cache.kept <= 4
        return said

    def all_of(*, reuse: bool, batch_size: int) -> Any:
        async def work(engine: BatchedEngine) -> Any:
            talks = await asyncio.gather(*(talk(engine, n, reuse=reuse) for n in range(5)))
            assert engine._cache.free == batch_size
            return talks

        return run(loaded, work, batch_size=batch_size, concurrency=5)

    expected = all_of(reuse=False, batch_size=5)
    whole = sum(prefilled)
    prefilled.clear()
    assert all_of(reuse=True, batch_size=5) == expected
    first = sum(6 + n for n in range(5))
    assert sum(prefilled) == first + 5 * 3 * (len(TURN) + 1) < whole
    assert all_of(reuse=True, batch_size=2) == expected  # rows are taken back between turns


def test_only_the_base_models_rows_are_gone_on_from(prefilled: list[int]) -> None:
    async def work(engine: BatchedEngine) -> None:
        slot = await engine.open_adapter(SPEC, 0)
        for before, after in [(slot, None), (None, slot), (slot, slot)]:
            kept = (
                await engine.generate(GenerateRequest((5, 6, 7), 4, adapter=before, keep=True))
            ).kept
            assert kept is not None
            prompt = kept.token_ids + TURN
            prefilled.clear()
            await engine.generate(GenerateRequest(prompt, 4, adapter=after, follows=kept))
            assert prefilled == [len(prompt)]
            kept.close()
        assert engine._cache.free == 2

    run(tiny_model(), work, batch_size=2, concurrency=2, adapter=SPEC)


def test_what_a_prompt_does_not_begin_with_is_refused() -> None:
    async def work(engine: BatchedEngine) -> None:
        kept = (await engine.generate(GenerateRequest((5, 6, 7), 4, keep=True))).kept
        with pytest.raises(RunError, match="does not begin with the kept sequence"):
            await engine.generate(GenerateRequest((5, 6, 8, 9, 9, 9, 9, 9), 4, follows=kept))

    run(tiny_model(), work)


def test_rows_held_for_a_next_turn_give_way_at_once(prefilled: list[int]) -> None:
    """They are no reason to let a lane stand idle; what was taken back is computed again."""

    async def work(engine: BatchedEngine) -> None:
        beside = asyncio.create_task(engine.generate(GenerateRequest((9, 4), 150)))
        kept = (await engine.generate(GenerateRequest((5, 6, 7), 4, keep=True))).kept
        assert kept is not None
        prompt = kept.token_ids + TURN
        alone = await engine.generate(GenerateRequest(prompt, 5))
        again = await engine.generate(GenerateRequest(prompt, 5, follows=kept))
        assert not beside.done()
        assert again.token_ids == alone.token_ids
        assert prefilled[-1] == len(prompt)
        await beside

    run(tiny_model(), work, batch_size=2, concurrency=2)


def test_a_lesson_whose_row_was_taken_back_waits_for_another() -> None:
    async def work(engine: BatchedEngine) -> None:
        slot = await engine.open_adapter(SPEC, 0)
        kept = (await engine.generate(GenerateRequest((5, 6, 7), 4, adapter=slot, keep=True))).kept
        assert kept is not None
        others = [
            asyncio.create_task(engine.generate(GenerateRequest((9, n), 40))) for n in range(3)
        ]
        await asyncio.sleep(0.05)
        target = Target(TURN, (1.0, 0.0, 0.0))
        trained = await engine.train(TrainRequest(slot, kept, (target,)))
        assert trained.trained_tokens == 1
        await asyncio.gather(*others)

    run(tiny_model(), work, batch_size=2, concurrency=2, adapter=SPEC)
