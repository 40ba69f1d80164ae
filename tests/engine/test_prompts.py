"""A prompt that a row holds is not computed again, and nobody's tokens depend on that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    BeamRequest,
    GenerateRequest,
    Generation,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
)
from fttt.engine.cache import Heads, KVCache
from fttt.engine.lane import Lane
from fttt.engine.patience import Patience
from fttt.engine.prompts import HeldPrompts, Prompt
from fttt.engine.request import ThoughtBudget
from fttt.engine.scheduler import GenerateJob, Job, PrefillQueue
from fttt.models import LoadedModel, Prefix
from fttt.testing import tiny_model

Paged = Callable[..., None]
SPEC = LoRASpec(lr=0.1, dropout=0.0, eps=1e-2)
PROMPT = tuple(range(20, 37))
LESSON = Target((7, 8), (0.5, 0.5))


def run(
    loaded: LoadedModel,
    work: Callable[[BatchedEngine], Awaitable[Any]],
    decoder: type[Any] | None = None,
    **settings: Any,
) -> Any:
    async def main() -> Any:
        engine = BatchedEngine(loaded, **{"max_length": 96, "concurrency": 6, **settings})
        if decoder is not None:
            engine._decoder = decoder(engine._model, engine._cache, engine._bank)
        try:
            found = await work(engine)
            for _ in range(200):  # in which cancelled ones are let go
                await asyncio.sleep(0)
            cache = engine._cache
            assert (cache.free, cache.free_pages) == (engine.plan.rows, engine.plan.pages)
            return found
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Prompts that sequences began behind."""
    seen: list[Prompt] = []
    begin = HeldPrompts.begin

    def counted(prompts: HeldPrompts, prompt: Prompt, tokens: int) -> int | None:
        row = begin(prompts, prompt, tokens)
        seen.extend([prompt] * (row is not None))
        return row

    monkeypatch.setattr(HeldPrompts, "begin", counted)
    return seen


def computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no row be known to hold a prompt."""
    monkeypatch.setattr(HeldPrompts, "note", lambda prompts, row, prompt: None)


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes run as soon as anything waits for them, whatever the clock says."""
    monkeypatch.setattr(Patience, "ready", lambda patience, waiting, running: waiting > 0)


def attempts(count: int, **more: Any) -> list[GenerateRequest]:
    return [
        GenerateRequest(PROMPT, 5 + n % 4, 0.9, 0.95, 31 * n, (2,), logprobs=True, **more)
        for n in range(count)
    ]


async def one_by_one(engine: BatchedEngine, asked: Sequence[GenerateRequest]) -> list[Generation]:
    return [await engine.generate(request) for request in asked]


def same(ours: Sequence[Generation], theirs: Sequence[Generation]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


FAMILIES = ("llama", "gemma3", "gpt_oss", "llama4_text", "deepseek_v3", "bloom", "prefix")


def loaded_of(family: str) -> LoadedModel:
    """A model of a family, or one whose sequences begin with a prefix."""
    if family != "prefix":
        return tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    keys, values = (
        tuple(torch.randn(2, 5, 8, generator=generator) for _ in range(2)) for _ in "kv"
    )
    return replace(tiny_model(), prefix=Prefix(keys, values), max_context=2000)


@pytest.mark.parametrize("family", FAMILIES)
def test_attempts_one_after_another_compute_their_prompt_once(
    family: str,
    paged: Paged,
    gpu_like: type[Any],
    prefilled: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two at a time, with pages that end within the prompt, at its end and one token before."""
    loaded = loaded_of(family)

    async def work(engine: BatchedEngine, asked: Sequence[GenerateRequest]) -> list[Generation]:
        pairs = [one_by_one(engine, asked[::2]), one_by_one(engine, asked[1::2])]
        evens, odds = await asyncio.gather(*pairs)
        return [one for pair in zip(evens, odds, strict=True) for one in pair]

    for page, tokens in ((None, 17), (4, 17), (4, 16), (5, 16)):
        asked = [replace(one, prompt_ids=PROMPT[:tokens]) for one in attempts(12)]
        asked[5] = replace(asked[5], max_new_tokens=1)
        paged(page, rows=8)
        if page == 5:  # a layer at a time
            monkeypatch.setattr("fttt.engine.pages.COPIED", 1)
        prefilled.clear()
        found = run(loaded, partial(work, asked=asked), gpu_like)
        assert prefilled[-1:] == [tokens]
        assert sum(prefilled[-2:]) < 60  # no more than a model's check before
        with monkeypatch.context() as patched:
            computed_anew(patched)
            paged(None)
            prefilled.clear()
            same(found, run(loaded, partial(one_by_one, asked=asked)))
            assert prefilled.count(tokens) == 12


def test_greedy_attempts_are_those_of_the_model_itself(prefilled: list[int]) -> None:
    loaded = tiny_model()
    asked = [GenerateRequest(PROMPT, 20)] * 3
    run(loaded, partial(one_by_one, asked=asked[:1]))
    prefilled.clear()
    found = run(loaded, partial(one_by_one, asked=asked))
    assert prefilled == [len(PROMPT)]
    ids = torch.tensor([PROMPT])
    model: Any = loaded.model
    with torch.no_grad():
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
    assert [one.token_ids for one in found] == [tuple(expected[0, len(PROMPT) :].tolist())] * 3


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2"])
def test_a_state_is_no_held_prompt(family: str, prefilled: list[int], begun: list[Prompt]) -> None:
    loaded, asked = tiny_model(family), attempts(3)
    run(loaded, partial(one_by_one, asked=asked))
    assert prefilled[-3:] == [len(PROMPT)] * 3
    assert begun == []


def test_a_prompt_is_held_by_the_weights_that_read_it(
    begun: list[Prompt], paged: Paged, gpu_like: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's own until its next step; also where a row is kept, and a sequence runs on."""
    at_once(monkeypatch)
    paged(4)

    async def work(engine: BatchedEngine) -> Any:
        slots = [await engine.open_adapter(SPEC, n) for n in range(2)]
        found: list[Generation] = []
        counts: list[int] = []
        for turn in range(3):
            long = GenerateRequest(PROMPT, 270, 0.9, 0.95, 99 + turn, adapter=slots[0])
            beside = asyncio.create_task(engine.generate(long))
            for _ in range(6):
                await asyncio.sleep(0)
            for slot in (*slots, None):
                before = len(begun)
                found += await one_by_one(engine, attempts(3, adapter=slot, keep=slot is slots[1]))
                counts.append(len(begun) - before)
            for slot in slots:  # under which the long one is still written
                await engine.train(TrainRequest(slot, (Lesson((5, 6), (LESSON,)),)))
            assert not beside.done()
            found += await one_by_one(engine, attempts(2, adapter=slots[0]))
            await beside  # whose tokens follow the clock, as the steps do
        for one in found:
            if one.kept is not None:
                one.kept.close()
        return counts, [one.token_ids for one in found]

    settings: Any = {"adapter": SPEC, "adapters": 2, "concurrency": 12, "max_length": 300}
    counts, found = run(tiny_model(), work, gpu_like, **settings)
    assert counts == [3, 2, 2, 3, 2, 3, 3, 2, 3]
    with monkeypatch.context() as patched:
        computed_anew(patched)
        assert found == run(tiny_model(), work, **settings)[1]


async def _asked(engine: BatchedEngine, n: int) -> list[Any]:
    """One of many users, who asks some prompt again and again, learns from it, or goes away."""
    draw = Random(n)
    slot = await engine.open_adapter(SPEC, seed=n % 2) if n % 4 == 1 else None
    prompt = PROMPT[: 9 + n % 3] * (1 + n % 2)
    said: list[Any] = []
    for trial in range(4):
        request = GenerateRequest(
            prompt, draw.choice([1, 2, 9, 34]), draw.choice([0.0, 0.9]), 0.95, 77 * n + trial,
            (2, 40) if draw.random() < 0.5 else (), slot, logprobs=draw.random() < 0.5,
            keep=n % 3 == 0, awaited=n % 6 == 0,
            repetition_penalty=draw.choice([1.0, 1.0, 1.4]), top_k=draw.choice([0, 0, 7]),
        )  # fmt: skip
        if draw.random() < 0.3:
            thought = ThoughtBudget(draw.randint(1, 9), (), (250, 251), (11, 12, 13, 250, 251))
            request = replace(request, max_new_tokens=30, thought=thought)
        task = asyncio.create_task(engine.generate(request))
        if n % 5 == 4 and trial == 2:
            for _ in range(draw.randint(1, 20)):
                await asyncio.sleep(0)
            task.cancel()
        (one,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(one, asyncio.CancelledError):
            continue
        assert not isinstance(one, BaseException), one
        if not task.cancelling():
            said.append((one.token_ids, one.logprobs))
        if slot is not None and trial % 2:
            context = one.kept or (5, 6)
            await engine.train(TrainRequest(slot, (Lesson(context, (LESSON,)),)))
        if one.kept is not None:
            one.kept.close()
    if slot is not None:
        slot.close()
    return said if n % 5 != 4 else said[:2]  # whether it ended before it was cancelled may differ


@pytest.mark.parametrize(("page", "pages", "rows"), [(16, 8, 20), (4, 26, 24), (4, 40, 12)])
def test_a_crowd_in_few_pages_gets_what_it_would_get_alone(
    page: int,
    pages: int,
    rows: int,
    paged: Paged,
    gpu_like: type[Any],
    begun: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is paused, cancelled or evicted, and whoever begins while others' steps are run."""

    async def work(engine: BatchedEngine) -> Any:
        found = list(await asyncio.gather(*(_asked(engine, n) for n in range(20))))
        found.append([x.token_ids for x in await engine.beam(BeamRequest(PROMPT, 3, 9, (2,)))])
        return found, engine.pauses

    settings: Any = {"batch_size": 6, "adapter": SPEC, "adapters": 3, "beams": 3}
    with monkeypatch.context() as patched:
        computed_anew(patched)
        paged(None)
        expected, none = run(tiny_model(), work, **settings)
    assert begun == []
    paged(page, pages, rows=rows)
    found, pauses = run(tiny_model(), work, gpu_like, **settings)
    assert len(begun) > 10
    assert none == 0 < pauses
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            assert ours[0] == theirs[0]
            assert ours[1] == pytest.approx(theirs[1], abs=1e-3)


def test_a_sequence_joins_steps_that_have_begun(
    gpu_like: type[Any], begun: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of the others are not waited for, and attempts of one token end all the same."""
    at_once(monkeypatch)
    joined: list[Lane] = []
    launch = gpu_like.launch

    def noted(decoder: Any, lanes: Sequence[Lane]) -> bool:
        joined.extend(lane for lane in lanes if decoder.begun and not lane.tokens)
        return bool(launch(decoder, lanes))

    monkeypatch.setattr(gpu_like, "launch", noted)
    asked = [replace(one, max_new_tokens=1 + n % 3) for n, one in enumerate(attempts(9))]

    async def work(engine: BatchedEngine) -> list[Generation]:
        beside = [GenerateRequest((9, 4), 140, noise_key=n) for n in range(5)]
        long = asyncio.gather(*map(engine.generate, beside))
        found = await one_by_one(engine, asked)
        assert not long.done()
        found += await long
        assert engine.generated_tokens == sum(len(one.token_ids) for one in found)
        return found

    found = run(tiny_model(), work, gpu_like, max_length=160)
    assert len(begun) == 8
    assert not joined if gpu_like.ahead == 1 else len({*joined}) >= 4
    with monkeypatch.context() as patched:
        computed_anew(patched)
        expected = run(tiny_model(), work, max_length=160)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_prompts_without_a_sequence_are_evicted_first_and_cost_no_pause(
    paged: Paged, prefilled: list[int]
) -> None:
    paged(4, 24, rows=6)

    async def work(engine: BatchedEngine) -> None:
        cache = engine._cache
        turn = (await engine.generate(GenerateRequest((9, 4), 6, keep=True, awaited=False))).kept
        for n in range(8):  # more of them than there are rows
            await engine.generate(GenerateRequest((*PROMPT, n), 4))
            assert cache.free == cache.rows - 1
        assert cache.prompts.idle == 4
        prefilled.clear()
        await engine.generate(GenerateRequest((*PROMPT, 4), 4))
        assert prefilled == []
        await engine.generate(GenerateRequest(PROMPT, 70))  # takes 22 pages, and 2 are kept
        assert cache.prompts.idle == 1
        assert turn is not None
        assert turn.row is not None
        await engine.generate(GenerateRequest((*PROMPT, 4), 4))
        assert prefilled == [17, 18]
        turn.close()
        assert engine.pauses == 0

    run(tiny_model(), work)


def test_rows_that_are_read_where_they_lie_stay_low() -> None:
    """A new sequence takes the lowest row, though that held a prompt and others hold nothing."""
    for page, expected in ((None, 0), (4, 2)):
        cache = KVCache(
            rows=4, capacity=32, heads={0: Heads(1, 1, 1, 0)}, dtype=torch.float32,
            device=torch.device("cpu"), page=page,
        )  # fmt: skip
        for row in (0, 1):
            assert cache.take(9) == row
            cache.prompts.note(row, Prompt(-1, row, PROMPT[:8]))
        cache.prompts.release(0)
        assert cache.take(9) == expected
        assert cache.prompts.idle == (page is not None)


def test_requests_begin_in_their_order_whether_they_need_a_pass_or_not() -> None:
    """One that needs a pass keeps its lane and its pages from those that need none."""
    cache = KVCache(
        rows=8, capacity=32, heads={0: Heads(1, 1, 1, 0)}, dtype=torch.float32,
        device=torch.device("cpu"), page=4, pages=12,
    )  # fmt: skip
    row = cache.take(9)
    assert row == 0
    cache.prompts.note(row, Prompt(-1, 0, PROMPT[:8]))
    cache.prompts.release(row)

    async def begun_of(lanes: int, pages: int, *prompts: tuple[int, ...]) -> list[int]:
        jobs: list[GenerateJob] = [
            Job(GenerateRequest(ids, 4), asyncio.get_running_loop().create_future())
            for ids in prompts
        ]
        queue = PrefillQueue(jobs)
        taken = queue.next_held(cache, [], lanes, 8, pages)
        assert [job for job in jobs if job not in taken] == list(queue)
        for job in taken:
            assert job.lane is not None
            assert (job.lane.length, job.lane.next_token) == (7, PROMPT[7])
            cache.prompts.release(job.lane.row)
        return [jobs.index(job) for job in taken]

    held, other = PROMPT[:8], PROMPT[3:15]
    assert asyncio.run(begun_of(2, 12, held, held, held)) == [0, 1]
    assert asyncio.run(begun_of(1, 12, other, held)) == []
    assert asyncio.run(begun_of(2, 12, other, held)) == [1]
    assert asyncio.run(begun_of(2, 6, other, held)) == []  # four pages are the first one's
    assert asyncio.run(begun_of(2, 7, other, held)) == [1]
    assert asyncio.run(begun_of(3, 5, held, held, other)) == [0, 1]  # the second shares a page
    assert cache.free_pages == 12
