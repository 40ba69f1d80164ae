"""Which requests a pass takes and when: a prompt is computed only where no row holds it yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    ScoreRequest,
    Target,
    TrainRequest,
)
from fttt.engine.adapters.bank import Slot
from fttt.engine.cache import KVCache
from fttt.engine.patience import Patience
from fttt.engine.scheduler import Job, LessonQueue, PrefillQueue, ScoreQueue
from fttt.models import LoadedModel
from fttt.testing import tiny_model

SPEC = LoRASpec()
TURN = (7, 8, 9)


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

    async def talk(engine: BatchedEngine, n: int, *, keep: bool) -> list[tuple[int, ...]]:
        prompt, held, said = tuple(range(20, 26 + n)), None, []
        for turn in range(4):
            answer = await engine.generate(
                GenerateRequest(
                    prompt, 6 + (n + turn) % 5, 0.8, 0.9, 31 * n + turn, (2,), keep=keep,
                    reuse=held, logprobs=True,
                )
            )  # fmt: skip
            said.append(answer.token_ids)
            if held is not None:
                held.close()  # it stays where there was a row for the longer one beside it
            prompt, held = prompt + answer.token_ids + TURN, answer.kept
        if held is not None:
            held.close()
        assert engine._cache.kept <= 4
        return said

    def all_of(*, keep: bool, batch_size: int) -> Any:
        async def work(engine: BatchedEngine) -> Any:
            talks = await asyncio.gather(*(talk(engine, n, keep=keep) for n in range(5)))
            assert engine._cache.free == batch_size
            return talks

        return run(loaded, work, batch_size=batch_size, concurrency=5)

    expected = all_of(keep=False, batch_size=5)
    whole = sum(prefilled)
    prefilled.clear()
    assert all_of(keep=True, batch_size=5) == expected
    first = sum(6 + n for n in range(5))
    assert sum(prefilled) == first + 5 * 3 * (len(TURN) + 1) < whole
    assert all_of(keep=True, batch_size=2) == expected  # rows are taken back between turns


def test_only_the_base_models_rows_are_gone_on_from(prefilled: list[int]) -> None:
    async def work(engine: BatchedEngine) -> None:
        slot = await engine.open_adapter(SPEC, 0)
        for n, (before, after) in enumerate([(slot, None), (None, slot), (slot, slot)]):
            kept = (
                await engine.generate(GenerateRequest((5, 6, n), 4, adapter=before, keep=True))
            ).kept
            assert kept is not None
            prompt = kept.token_ids + TURN
            prefilled.clear()
            await engine.generate(GenerateRequest(prompt, 4, adapter=after, reuse=kept))
            assert prefilled == [len(prompt)]
            kept.close()
        assert engine._cache.free == 2

    run(tiny_model(), work, batch_size=2, concurrency=2, adapter=SPEC)


def test_only_the_common_beginning_is_reused_and_only_most_of_a_prompt(
    prefilled: list[int],
) -> None:
    cases = {  # the kept sequence is a prompt of 8 and 4 new tokens, the last of which is not held
        (*range(20, 28),): 0,  # the same prompt: its last token is run in a decode step
        (*range(20, 26),): 1,
        (*range(20, 25), 9, 9, 9): 3,
        (*range(20, 23), 9, 9, 9, 9, 9): 8,
        (9, *range(21, 28)): 8,
    }

    async def alone(engine: BatchedEngine) -> list[tuple[int, ...]]:
        return [(await engine.generate(GenerateRequest(p, 6))).token_ids for p in cases]

    expected = run(tiny_model(), alone)

    async def work(engine: BatchedEngine) -> None:
        for n, (prompt, computed) in enumerate(cases.items()):
            answer = await engine.generate(GenerateRequest((*range(20, 28),), 4, keep=True))
            prefilled.clear()
            again = await engine.generate(GenerateRequest(prompt, 6, reuse=answer.kept))
            assert again.token_ids == expected[n]
            assert sum(prefilled) == computed
            assert answer.kept is not None
            answer.kept.close()

    run(tiny_model(), work, batch_size=2, concurrency=2)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_samples_of_one_prompt_are_prefilled_once(family: str, prefilled: list[int]) -> None:
    prompts = [(5, 6, 7, 8), (9, 5), (5, 6, 7)]
    requests = [
        GenerateRequest(prompt, 12, 0.9, 0.95, 100 * n + sample, logprobs=True)
        for sample in range(4)
        for n, prompt in enumerate(prompts)
    ]

    async def work(engine: BatchedEngine) -> Any:
        slot = await engine.open_adapter(SPEC, 0)  # its keys are its own
        asked = [*requests, GenerateRequest(prompts[0], 12, 0.9, 0.95, 7, adapter=slot)]
        return [a.token_ids for a in await asyncio.gather(*map(engine.generate, asked))]

    together = run(tiny_model(family), work, batch_size=13, concurrency=13, adapter=SPEC)
    assert sorted(prefilled) == [2, 3, 4, 4]
    prefilled.clear()
    alone = run(tiny_model(family), work, batch_size=1, concurrency=1, adapter=SPEC)
    assert len(prefilled) == 13
    assert together == alone


@pytest.mark.parametrize(("family", "page"), [("llama", None), ("gemma3", 4), ("qwen3_5", 4)])
def test_attempts_under_one_adapter_are_prefilled_once(
    family: str, page: int | None, prefilled: list[int], paged: Callable[..., None]
) -> None:
    """Each adapter's keys are its own; a step on a group's rows learns what it learns alone."""
    paged(page)
    prompt, target = (5, 6, 7, 8, 9, 5), Target((7, 8), (0.5, 0.5))
    spec = LoRASpec(lr=0.1)

    async def work(engine: BatchedEngine) -> Any:
        slots = [await engine.open_adapter(spec, n) for n in range(2)]
        for slot in slots:  # fresh ones are all the base model
            await engine.train(TrainRequest(slot, (Lesson((5, 6), (target,)),)))
        prefilled.clear()
        asked = [
            GenerateRequest(prompt, 9, 0.9, 0.95, n, adapter=slot, keep=slot is not None)
            for n, slot in enumerate((*slots, None) * 3)
        ]
        answers = await asyncio.gather(*map(engine.generate, asked))
        filled = list(prefilled)
        losses = [
            (
                await engine.train(
                    TrainRequest(slot, tuple(Lesson(a.kept, (target,)) for a in group if a.kept))
                )
            ).losses
            for slot, group in zip(slots, (answers[::3], answers[1::3]), strict=True)
        ]
        return filled, [a.token_ids for a in answers], losses

    together, alone = (
        run(tiny_model(family), work, batch_size=rows, concurrency=9, adapter=spec, adapters=2)
        for rows in (9, 1)
    )
    assert together[0] == [6, 6, 6]
    assert together[1] == alone[1]
    for ours, theirs in zip(together[2], alone[2], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert len({*together[1]}) > 3


def test_rows_held_for_a_next_turn_give_way_at_once(
    prefilled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no reason to let a lane stand idle; what was taken back is computed again."""
    # which else waits as long as the clock says, and the other sequence may end meanwhile
    monkeypatch.setattr(Patience, "ready", lambda patience, waiting, running: waiting > 0)

    async def work(engine: BatchedEngine) -> None:
        beside = asyncio.create_task(engine.generate(GenerateRequest((9, 4), 150)))
        kept = (await engine.generate(GenerateRequest((5, 6, 7), 4, keep=True))).kept
        assert kept is not None
        prompt = kept.token_ids + TURN
        alone = await engine.generate(GenerateRequest(prompt, 5))
        again = await engine.generate(GenerateRequest(prompt, 5, reuse=kept))
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
        trained = await engine.train(TrainRequest(slot, (Lesson(kept, (target,)),)))
        assert trained.trained_tokens == 1
        await asyncio.gather(*others)

    run(tiny_model(), work, batch_size=2, concurrency=2, adapter=SPEC)


def test_a_cancelled_request_lets_in_no_larger_one_behind_it() -> None:
    cache = KVCache(
        rows=4, capacity=16, heads={}, dtype=torch.float32, device=torch.device("cpu"), page=4,
        pages=4,
    )  # fmt: skip

    async def main() -> None:
        queue = PrefillQueue()
        for tokens in (3, 12):
            request = GenerateRequest(tuple(range(tokens)), 4)
            queue.append(Job(request, asyncio.get_running_loop().create_future()))
        assert queue.admissible(cache, [], lanes=2, rows=4, pages=2) == 2
        queue[0].answer.cancel()
        assert queue.admissible(cache, [], lanes=2, rows=4, pages=2) == 0

    asyncio.run(main())


def test_requests_fill_a_pass_by_their_prompts() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        prompts = [(5,) * 6, (5,) * 6, (7,) * 6, (5,) * 6]
        queue = PrefillQueue(Job(GenerateRequest(p, 4), loop.create_future()) for p in prompts)
        assert not PrefillQueue().fills(0, 1)
        assert not queue.fills(2, 7)  # the same prompt twice is computed once
        assert queue.fills(3, 12)
        assert not queue.fills(3, 13)
        assert queue.fills(4, 13)

    asyncio.run(main())


def test_requests_that_fill_passes_begin_one_pass_behind_the_other() -> None:
    """A turn lies between two full passes, so that all sequences run and end together; none while
    less than half of the lanes run.
    """

    async def steps(prompts: int) -> int:
        engine = BatchedEngine(tiny_model(), max_length=200, batch_size=8, concurrency=8)
        try:
            engine.plan = replace(engine.plan, prefill_tokens=20)
            engine._patience["prefill"].ran(20, 1e6)  # a pass that is dear enough to wait for long
            requests = [GenerateRequest((5 + n,) * 10, 12, noise_key=n) for n in range(prompts)]
            await asyncio.gather(*map(engine.generate, requests))
            return engine.decode_steps
        finally:
            await engine.close()

    together = asyncio.run(steps(2))
    assert asyncio.run(steps(4)) == together
    assert asyncio.run(steps(6)) == together + 1
    assert asyncio.run(steps(3)) == 2 * together  # the third could have company, and waits


def test_lessons_fill_a_pass_by_tokens_questions_and_adapters() -> None:
    """And never by the rows that they hold themselves: who ends next brings its own."""
    cache = KVCache(
        rows=3, capacity=16, heads={}, dtype=torch.float32, device=torch.device("cpu"), page=4,
        pages=6,
    )  # fmt: skip

    bank: Any = None
    slots = [Slot(bank, n) for n in range(4)]

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def queue(*adapters: int, context: int = 3) -> LessonQueue:
            lesson = Lesson((5,) * context, (Target(TURN, (1.0,) * 3),))
            asked = (TrainRequest(slots[n], (lesson,)) for n in adapters)
            return LessonQueue(Job(request, loop.create_future()) for request in asked)

        def taken(waiting: LessonQueue, tokens: int = 99, questions: int = 99) -> tuple[bool, int]:
            full = waiting.fills(cache, tokens, questions)
            return full, len(waiting.next_pass(cache, tokens, questions))

        assert taken(queue()) == (False, 0)
        assert taken(queue(0, 1), tokens=6) == (True, 2)
        assert taken(queue(0, 1, 2), tokens=6) == (True, 2)
        assert taken(queue(0, 1), tokens=7) == (False, 2)
        assert taken(queue(0, 1), questions=2) == (True, 2)
        assert taken(queue(0, 1), questions=3) == (False, 2)
        assert taken(queue(0, 1, 0)) == (True, 2)
        assert taken(queue(0, 1, 2)) == (False, 3)  # all rows
        assert taken(queue(0, 1, 2, 3)) == (True, 3)
        assert taken(queue(0, 1, context=12)) == (False, 2)  # all pages
        assert taken(queue(0, 1, 2, context=12)) == (True, 2)
        assert taken(queue(0, context=40)) == (False, 1)  # takes its contexts one after the other

    asyncio.run(main())


def test_sequences_fill_a_pass_of_scores() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def queue(*tokens: int) -> ScoreQueue:
            asked = (ScoreRequest((5,) * (n - 1), (7,)) for n in tokens)
            return ScoreQueue(Job(request, loop.create_future()) for request in asked)

        def taken(waiting: ScoreQueue, tokens: int) -> tuple[bool, int]:
            return waiting.fills(tokens), len(waiting.next_pass(tokens))

        assert taken(queue(), 9) == (False, 0)
        assert taken(queue(4, 4), 9) == (False, 2)
        assert taken(queue(4, 5), 9) == (True, 2)
        assert taken(queue(4, 6), 9) == (True, 1)
        assert taken(queue(12), 9) == (True, 1)
        cancelled = queue(6, 4, 4)
        cancelled[0].answer.cancel()
        assert taken(cancelled, 9) == (False, 2)
        assert not cancelled

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["train", "score"])
def test_full_passes_run_in_one_turn_after_the_other(kind: str) -> None:
    """What does not fill one waits; a decode step lies between two, and no result changes."""
    lesson = Lesson((5, 6), (Target(TURN, (0.4, 0.3, 0.3)),))
    beside = GenerateRequest((9, 4), 150)

    async def ask(engine: BatchedEngine, slot: Slot) -> Any:
        if kind == "train":
            return (await engine.train(TrainRequest(slot, (lesson,)))).losses
        return (await engine.score(ScoreRequest((5, 6), TURN, slot))).logprobs

    async def together(engine: BatchedEngine, asked: int, *, dear: bool) -> Any:
        slots = [await engine.open_adapter(SPEC, n) for n in range(asked)]
        running = asyncio.create_task(engine.generate(beside))
        before = engine.decode_steps
        for _ in range(8):
            await asyncio.sleep(0)
        assert engine.decode_steps > before
        if dear:
            engine._patience[kind].ran(6, 1e6)  # so dear that nobody waits so long
        begun = engine.decode_steps
        at = []

        async def timed(slot: Slot) -> Any:
            found = await ask(engine, slot)
            at.append(engine.decode_steps - begun)
            return found

        found = await asyncio.gather(*map(timed, slots))
        tokens = (await running).token_ids
        for slot in slots:
            slot.close()
        return at, found, tokens

    async def work(engine: BatchedEngine) -> None:
        engine.plan = small = replace(engine.plan, train_tokens=6, prefill_tokens=10)
        assert engine._bank is not None
        engine._learner = engine._bank.learner(engine._cache, small, engine._prefiller.fill)
        at, found, tokens = await together(engine, 6, dear=True)
        assert at == [at[0] + n for n in (0, 0, 1, 1, 2, 2)]
        assert at[0] <= 2
        at, same, _ = await together(engine, 3, dear=True)
        assert at[1] <= 2 < 100 < at[2]  # it could have company, and waits for all of the other
        _, alone, same_tokens = await together(engine, 1, dear=False)
        for one, other in zip(found[:3], same, strict=True):
            assert one == pytest.approx(other, abs=2e-6)  # who shares a pass changes rounding
        assert found[0] == pytest.approx(alone[0], abs=2e-6)
        assert tokens == same_tokens

    run(tiny_model(), work, batch_size=2, concurrency=7, adapter=SPEC, adapters=6)
