"""What prompts begin with in common is computed once, and changes nobody's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Generation,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
)
from fttt.engine.patience import Patience
from fttt.engine.prompts import common_beginning
from fttt.engine.scheduler import LEAST_SHARED, Beginnings, GenerateJob, Job, lane_for
from fttt.models import LoadedModel, Prefix
from fttt.testing import tiny_model
from fttt.testing.tiny_models import loaded_tiny

Paged = Callable[..., None]
SPEC = LoRASpec(lr=0.1, dropout=0.0)
START = tuple(range(20, 50))
PROMPTS = (
    (*START, 7, 9, 60, 61),
    (*START, *range(80, 120)),
    (*START, 7, 9, 62),
    START,
    START[:-1],
    (*START[: LEAST_SHARED - 1], *range(120, 140)),  # too short a beginning
    (9, *START),
)
COMPUTED = [34, 40, 3 - 2, 1, 1, 35, 31]
"""Tokens of each prompt, the first of them alone asked for before the others."""


def run(
    loaded: LoadedModel, requests: Sequence[GenerateRequest], rows: int, prefilled: list[int]
) -> list[Generation]:
    """Answers, and in ``prefilled`` what was computed for these alone."""

    async def main() -> list[Generation]:
        engine = BatchedEngine(loaded, max_length=100, batch_size=rows, concurrency=len(requests))
        prefilled.clear()  # of the check of a model that is new
        try:
            answers = list(await asyncio.gather(*map(engine.generate, requests)))
            given_back(engine)
            return answers
        finally:
            await engine.close()

    return asyncio.run(main())


def given_back(engine: BatchedEngine) -> None:
    cache = engine._cache
    assert (cache.free, cache.free_pages) == (engine.plan.rows, engine.plan.pages)


def requests_of(prompts: Sequence[tuple[int, ...]], **more: Any) -> list[GenerateRequest]:
    return [
        GenerateRequest(prompt, 10 + n, 0.9, 0.95, 31 * n, (2,), logprobs=True, **more)
        for n, prompt in enumerate(prompts)
    ]


def same(ours: Sequence[Generation], theirs: Sequence[Generation]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


FAMILIES = ("llama", "gemma2", "gemma3", "gpt_oss", "llama4_text", "deepseek_v3", "bloom")


@pytest.mark.parametrize("page", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_a_prompt_alone(
    family: str, page: int | None, paged: Paged, prefilled: list[int]
) -> None:
    """Windows, chunks, sinks, latent attention and slopes included; whole prompts also."""
    paged(page)
    loaded, requests = tiny_model(family), requests_of(PROMPTS)
    alone = run(loaded, requests, 1, prefilled)
    assert prefilled == [len(prompt) for prompt in PROMPTS]
    same(run(loaded, requests, len(PROMPTS), prefilled), alone)
    assert sorted(prefilled) == sorted(COMPUTED)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2", "mamba2", "dynamic", "longrope"])
def test_states_and_keys_that_depend_on_the_length_are_not_shared(
    family: str, prefilled: list[int]
) -> None:
    scaled = family in {"dynamic", "longrope"}
    loaded, requests = _rotary(family) if scaled else tiny_model(family), requests_of(PROMPTS)
    alone = run(loaded, requests, 1, prefilled)
    computed = sorted(prefilled)
    same(run(loaded, requests, len(PROMPTS), prefilled), alone)
    assert sorted(prefilled) == computed


def _rotary(kind: str) -> LoadedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    own = {"factor": 4.0} if kind == "dynamic" else {
        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0], "factor": 4.0,
        "original_max_position_embeddings": 48,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=272, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=2,
        max_position_embeddings=32 if kind == "dynamic" else 128,
        rope_parameters={"rope_type": kind, "rope_theta": 1000.0, **own},
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    return loaded_tiny(kind, model, 128)


@pytest.mark.parametrize("page", [None, 4])
def test_what_all_sequences_begin_with_comes_before_it(
    page: int | None, paged: Paged, prefilled: list[int]
) -> None:
    paged(page)
    generator = torch.Generator().manual_seed(3)
    keys, values = (
        tuple(torch.randn(2, 5, 8, generator=generator) for _ in range(2)) for _ in "kv"
    )
    loaded = replace(tiny_model(), prefix=Prefix(keys, values), max_context=2000)
    requests = requests_of(PROMPTS)
    alone = run(loaded, requests, 1, prefilled)
    same(run(loaded, requests, len(PROMPTS), prefilled), alone)
    assert sorted(prefilled) == sorted(COMPUTED)


@pytest.mark.parametrize("page", [None, 4])
def test_each_adapter_has_beginnings_of_its_own(
    page: int | None, paged: Paged, prefilled: list[int]
) -> None:
    """Kept rows that begin as another does teach what they teach alone."""
    paged(page)
    target = Target((7, 8), (0.5, 0.5))

    async def work(engine: BatchedEngine) -> Any:
        slots = [await engine.open_adapter(SPEC, n) for n in range(2)]
        for slot in slots:
            await engine.train(TrainRequest(slot, (Lesson((5, 6), (target,)),)))
        prefilled.clear()
        asked = [
            replace(request, adapter=slot, keep=True)
            for request in requests_of(PROMPTS[:3])
            for slot in (*slots, None)
        ]
        answers = await asyncio.gather(*map(engine.generate, asked))
        filled = sum(prefilled)
        losses = []
        for n, slot in enumerate(slots):
            kept = [answer.kept for answer in answers[n::3] if answer.kept]
            lessons = tuple(Lesson(held, (target,)) for held in kept)
            losses.append((await engine.train(TrainRequest(slot, lessons))).losses)
        for answer in answers:
            if answer.kept:
                answer.kept.close()
        given_back(engine)
        return filled, answers, losses

    def engine_of(rows: int) -> Any:
        async def main() -> Any:
            engine = BatchedEngine(
                tiny_model("gemma3"), max_length=100, batch_size=rows, concurrency=9, adapter=SPEC,
                adapters=2,
            )  # fmt: skip
            try:
                return await work(engine)
            finally:
                await engine.close()

        return asyncio.run(main())

    together, alone = engine_of(9), engine_of(1)
    assert together[0] == 3 * sum(COMPUTED[:3])
    assert alone[0] == 3 * sum(map(len, PROMPTS[:3]))
    same(together[1], alone[1])
    for ours, theirs in zip(together[2], alone[2], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prefill and train passes run as soon as anything waits for them."""
    monkeypatch.setattr(Patience, "ready", lambda patience, waiting, running: waiting > 0)


async def tokens_of(engine: BatchedEngine, count: int) -> None:
    """Wait until so many tokens were drawn."""
    for _ in range(10_000):
        if engine.generated_tokens >= count:
            return
        await asyncio.sleep(0)


@pytest.mark.parametrize("page", [None, 4])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_prompt_begins_as_one_that_runs_already(
    page: int | None,
    cancelled: bool,
    paged: Paged,
    prefilled: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where that one is cancelled at the same moment, or ends before the other."""
    at_once(monkeypatch)
    loaded, requests = tiny_model("gemma3"), requests_of(PROMPTS[:5])
    alone = run(loaded, requests, 1, prefilled)
    paged(page)

    async def main() -> list[Generation]:
        engine = BatchedEngine(loaded, max_length=100, batch_size=5, concurrency=5)
        prefilled.clear()
        first = asyncio.create_task(engine.generate(replace(requests[0], stop_ids=())))
        await tokens_of(engine, 5)
        others = [asyncio.create_task(engine.generate(request)) for request in requests[1:]]
        if cancelled:
            await asyncio.sleep(0)
            first.cancel()
        answers = await asyncio.gather(*others)
        if not cancelled:
            assert (await first).token_ids[:2] == alone[0].token_ids[:2]
        for _ in range(3):  # turns in which the engine gives a cancelled one's row back
            await asyncio.sleep(0)
        given_back(engine)
        await engine.close()
        return answers

    same(asyncio.run(main()), alone[1:])
    assert sorted(prefilled) == sorted(COMPUTED[:5])


def test_a_sequence_that_began_before_a_step_is_no_beginning(
    prefilled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are those of the weights before it; after another attempt they are there again."""
    at_once(monkeypatch)
    target = Target((7, 8), (0.5, 0.5))
    request, other = requests_of(PROMPTS[:2])

    async def main(*, beside: bool) -> Generation:
        engine = BatchedEngine(
            tiny_model(), max_length=100, batch_size=3, concurrency=3, adapter=SPEC, adapters=1
        )
        slot = await engine.open_adapter(SPEC, 0)
        running: list[asyncio.Task[Generation]] = []
        if beside:
            long = replace(request, max_new_tokens=60, stop_ids=(), adapter=slot)
            running.append(asyncio.create_task(engine.generate(long)))
            await tokens_of(engine, 5)
        await engine.train(TrainRequest(slot, (Lesson((5, 6), (target,)),)))
        prefilled.clear()
        answer = await engine.generate(replace(other, adapter=slot))
        assert prefilled == [len(other.prompt_ids)]
        assert not any(task.done() for task in running)
        await asyncio.gather(*running)
        given_back(engine)
        await engine.close()
        return answer

    same([asyncio.run(main(beside=True))], [asyncio.run(main(beside=False))])


def test_paused_sequences_are_resumed_behind_what_others_hold(
    paged: Paged, prefilled: list[int]
) -> None:
    """With pages for one sequence of full length and little more."""
    loaded = tiny_model("gemma3")
    requests = [replace(r, max_new_tokens=28, stop_ids=()) for r in requests_of(PROMPTS)]
    alone = run(loaded, requests, 1, prefilled)
    paged(4, 32, rows=14)
    same(run(loaded, requests, len(PROMPTS), prefilled), alone)
    assert len(prefilled) > len(PROMPTS)


def test_the_longest_common_beginning_is_found() -> None:
    """Among many, by comparing with each of them."""
    random = Random(0)

    def some_ids() -> tuple[int, ...]:
        return tuple(random.choices((1, 2, 3), k=random.randint(1, 9)))

    async def main() -> None:
        beginnings, jobs = Beginnings(), list[GenerateJob]()
        for row in range(300):
            job: GenerateJob = Job(
                GenerateRequest(some_ids(), 4), asyncio.get_running_loop().create_future()
            )
            job.lane = lane_for(job.request)
            job.lane.row, job.lane.slot = row, random.choice((-1, 0, 1))
            if row % 2:
                beginnings.add(job)
            jobs.append(job)
            if row % 40 == 39:
                jobs = random.sample(jobs, 25)
                beginnings.retain(jobs)
            held = jobs if row % 40 == 39 else beginnings._jobs
            slot, ids = random.choice((-1, 0, 1, 2)), some_ids()
            most = max(
                common_beginning(ids[:-1], one.request.prompt_ids)
                for one in held
                if one.lane and one.lane.slot == slot
            ) if any(one.lane and one.lane.slot == slot for one in held) else 0  # fmt: skip
            found, shared = beginnings.longest(slot, ids)
            assert shared == most
            if most:
                (own,) = (one for one in held if one.lane and one.lane.row == found)
                assert own.request.prompt_ids[:most] == ids[:most]

    asyncio.run(main())
    for _ in range(200):
        a, b = some_ids(), some_ids()
        plain = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        assert common_beginning(a, b) == (min(len(a), len(b)) if plain is None else plain)
