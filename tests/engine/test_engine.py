"""Generation against ``transformers.generate``, and its independence of the batch."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
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
    sequences,
)
from fttt.engine import engine as engine_module
from fttt.engine.batch import Segment
from fttt.engine.cache import KVCache
from fttt.errors import RunError, UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model
from fttt.testing.tiny_models import loaded_tiny, random_family

FAMILIES = ("llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3")
PROMPTS = ("Hello", "What is 2 + 2?", "A rather longer question, with more words in it.", "Hi!")


def run(
    loaded: LoadedModel, requests: Sequence[GenerateRequest], **settings: Any
) -> list[Generation]:
    async def main() -> list[Generation]:
        engine = BatchedEngine(
            loaded, **{"max_length": 256, "concurrency": len(requests), **settings}
        )
        try:
            return list(await asyncio.gather(*map(engine.generate, requests)))
        finally:
            await engine.close()

    return asyncio.run(main())


def reference(
    loaded: LoadedModel, prompt: tuple[int, ...], tokens: int, **more: Any
) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        eos_token_id=list(loaded.stop_ids),
        **more,
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_those_of_transformers(family: str) -> None:
    loaded = tiny_model(family)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]
    expected = [reference(loaded, p, 40) for p in prompts]
    requests = [GenerateRequest(p, 40, stop_ids=loaded.stop_ids) for p in prompts]
    for batch_size in (1, 3, 16):
        answers = run(loaded, requests, batch_size=batch_size)
        assert [a.token_ids for a in answers] == expected


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "lfm2", "jamba"])
def test_a_long_prompt_is_read_in_several_passes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, chunks and states included; no pass is longer than the plan's."""
    loaded = tiny_model(family)
    prompts = [tuple(range(40, 40 + n)) * m for n, m in [(50, 3), (7, 1), (90, 1)]]
    requests = [GenerateRequest(p, 12, stop_ids=loaded.stop_ids, logprobs=True) for p in prompts]
    whole = run(loaded, requests)
    longest: list[int] = []
    plan, run_pass = engine_module.plan_memory, sequences.Prefiller._run_pass

    def noted(self: sequences.Prefiller, segments: Sequence[Segment]) -> torch.Tensor:
        longest.append(max(len(segment.token_ids) for segment in segments))
        return run_pass(self, segments)

    monkeypatch.setattr(
        engine_module, "plan_memory", lambda *a, **k: replace(plan(*a, **k), prefill_tokens=32)
    )
    monkeypatch.setattr(sequences, "LEAST_PASS", 16)
    monkeypatch.setattr(sequences, "MASK_PLACES", 2500)
    monkeypatch.setattr(sequences.Prefiller, "_run_pass", noted)
    parts = run(loaded, requests)
    assert [a.token_ids for a in parts] == [a.token_ids for a in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert max(longest) == 27
    assert len(longest) > 12


def test_a_penalty_on_repetition_counts_prompt_and_answer_of_its_own_sequence() -> None:
    loaded = tiny_model()
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]
    penalties = (1.0, 1.5, 3.0, 1.2)
    expected = [
        reference(loaded, p, 40, repetition_penalty=x)
        for p, x in zip(prompts, penalties, strict=True)
    ]
    assert expected[2] != reference(loaded, prompts[2], 40)
    requests = [
        GenerateRequest(p, 40, stop_ids=loaded.stop_ids, repetition_penalty=x)
        for p, x in zip(prompts, penalties, strict=True)
    ]
    for batch_size in (1, 3):
        answers = run(loaded, requests, batch_size=batch_size)
        assert [a.token_ids for a in answers] == expected


def test_one_candidate_is_the_most_probable_token_whatever_the_temperature() -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello")
    ways = ({"top_k": 1}, {"min_p": 1.0})
    requests = [
        GenerateRequest(prompt, 20, 1.5, noise_key=n, logprobs=True, **way)
        for n, way in enumerate(ways)
    ]
    greedy = run(loaded, [GenerateRequest(prompt, 20, logprobs=True)])[0]
    for answer in run(loaded, requests):
        assert answer.token_ids == greedy.token_ids
        assert answer.logprobs == pytest.approx(greedy.logprobs, abs=1e-4)  # the model's own


def test_a_sample_does_not_depend_on_who_shares_the_batch() -> None:
    loaded = tiny_model()
    requests = [
        GenerateRequest(
            loaded.chat.prompt_ids(PROMPTS[n % 4]),
            12 + n % 7,
            temperature=0.8,
            top_p=0.9,
            noise_key=n * 0x9E3779B97F4A7C15,
            stop_ids=loaded.stop_ids,
        )
        for n in range(12)
    ]
    together = run(loaded, requests, batch_size=12)
    alone = [run(loaded, [r])[0] for r in requests]
    backwards = run(loaded, requests[::-1], batch_size=5)[::-1]
    ids = [a.token_ids for a in together]
    assert ids == [a.token_ids for a in alone] == [a.token_ids for a in backwards]
    assert len(set(ids)) > 8  # different keys draw differently


def test_a_stop_token_ends_the_answer_and_belongs_to_it() -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello")
    free = run(loaded, [GenerateRequest(prompt, 20)])[0]
    assert free.finish_reason == "length"
    assert len(free.token_ids) == 20
    stop = free.token_ids[7]
    ended = run(loaded, [GenerateRequest(prompt, 20, stop_ids=(stop,))])[0]
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]


def test_log_probabilities_are_those_of_the_whole_sequence() -> None:
    loaded = tiny_model("gemma3")
    prompt = loaded.chat.prompt_ids("Hello")
    request = GenerateRequest(prompt, 15, temperature=1.3, noise_key=5, logprobs=True)
    answer = run(loaded, [request])[0]
    ids = torch.tensor([prompt + answer.token_ids])
    logits = loaded.model(ids).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    assert answer.logprobs is not None
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_more_requests_than_rows_all_end() -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello")
    requests = [GenerateRequest(prompt, 5, noise_key=n, temperature=1.0) for n in range(40)]
    answers = run(loaded, requests, batch_size=4)
    assert [len(a.token_ids) for a in answers] == [5] * 40


def test_what_does_not_fit_is_refused_by_name() -> None:
    loaded = tiny_model(max_context=128)
    with pytest.raises(UsageError, match="--max-new-tokens"):
        run(loaded, [GenerateRequest((1, 2, 3), 126)], max_length=128)
    with pytest.raises(UsageError, match="context of 128"):
        run(loaded, [GenerateRequest((1,), 1)], max_length=129)
    with pytest.raises(UsageError, match="--batch-size"):
        run(
            loaded,
            [GenerateRequest((1,), 1)] * 10**5,
            max_length=128,
            batch_size=10**9,
            concurrency=10**9,
        )


def test_closing_fails_what_waits_and_frees_the_model() -> None:
    loaded = tiny_model()
    before = loaded.model.config._attn_implementation

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=2048)
        task = asyncio.create_task(engine.generate(GenerateRequest((5, 6, 7), 2000)))
        await asyncio.sleep(0.05)
        await engine.close()
        with pytest.raises(RunError, match="closed"):
            await task

    asyncio.run(main())
    assert loaded.model.config._attn_implementation == before


def test_a_failed_engine_refuses_what_comes_later_and_says_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=200)
        engine._fail(RunError("The device is lost."))
        with pytest.raises(RunError, match="lost"):
            await engine.generate(GenerateRequest((5, 6, 7), 3))
        await engine.close()

    asyncio.run(main())
    gc.collect()
    assert not caplog.records  # as asyncio writes of errors that nobody asked for


def test_a_cancelled_request_gives_its_row_back() -> None:
    loaded = tiny_model()

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=2048, batch_size=1)
        task = asyncio.create_task(engine.generate(GenerateRequest((5, 6, 7), 2000)))
        await asyncio.sleep(0.05)
        task.cancel()
        answer = await engine.generate(GenerateRequest((5, 6, 7), 4))
        assert len(answer.token_ids) == 4
        await engine.close()

    asyncio.run(main())


def test_a_closed_engine_holds_no_memory() -> None:
    """The next one of the process plans with what is free, and no collection comes before it."""

    async def main() -> weakref.ref[KVCache]:
        spec = LoRASpec()
        engine = BatchedEngine(tiny_model(), max_length=64, concurrency=2, adapter=spec)
        slot = await engine.open_adapter(spec, seed=0)
        answer = await engine.generate(GenerateRequest((5, 6, 7), 4, adapter=slot, keep=True))
        assert answer.kept is not None
        lesson = Lesson(answer.kept, (Target((7, 8), (0.5, 0.5)),))
        await engine.train(TrainRequest(slot, (lesson,)))
        await engine.close()
        return weakref.ref(engine._cache)

    gc.disable()
    try:
        cache = asyncio.run(main())
        assert cache() is None
    finally:
        gc.enable()


def test_two_engines_of_one_model_may_be_closed_in_any_order() -> None:
    loaded = tiny_model()
    ids = torch.arange(5, 17)[None]
    expected = loaded.model(ids).logits
    request = GenerateRequest((5, 6, 7, 8), 8)

    async def main() -> None:
        first, second = (BatchedEngine(loaded, max_length=64) for _ in range(2))
        before = [(await engine.generate(request)).token_ids for engine in (first, second)]
        await first.close()
        after = (await second.generate(request)).token_ids
        assert before == [after, after]
        await second.close()

    asyncio.run(main())
    assert torch.equal(loaded.model(ids).logits, expected)


def test_an_engine_that_cannot_be_made_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = tiny_model()
    ids = torch.arange(5, 17)[None]
    expected = loaded.model(ids).logits
    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "BeamSearcher", None)
        with pytest.raises(TypeError):
            BatchedEngine(loaded, max_length=64, adapter=LoRASpec())
    assert torch.equal(loaded.model(ids).logits, expected)


@pytest.mark.parametrize("family", ["jamba", "mpt"])
def test_two_engines_of_one_kind_of_model_live_in_one_process(family: str) -> None:
    """Whichever is closed first, the other runs as before, and nothing that they share changes."""
    if family == "jamba":
        loaded = [tiny_model(family) for _ in range(2)]
    else:
        loaded = [loaded_tiny("tiny", random_family(family, seed=n), 512) for n in range(2)]
    homes = [sys.modules[type(one.model).__module__] for one in loaded]
    before = [dict(vars(home)) for home in homes]
    ids = torch.tensor([range(60, 90)])
    expected = [one.model(ids).logits for one in loaded]
    requests = [GenerateRequest(tuple(range(60, 80 + n)), 8, logprobs=True) for n in range(2)]
    alone = [run(one, requests) for one in loaded]

    async def main() -> list[list[Generation]]:
        engines = [BatchedEngine(one, max_length=64, concurrency=2) for one in loaded]
        tasks = [asyncio.gather(*map(engine.generate, requests)) for engine in engines]
        first, _ = [list(await task) for task in tasks]
        await engines[0].close()
        second = list(await asyncio.gather(*map(engines[1].generate, requests)))
        assert [dict(vars(home)) for home in homes] == before
        await engines[1].close()
        return [first, second]

    for together, own in zip(asyncio.run(main()), alone, strict=True):
        assert [a.token_ids for a in together] == [a.token_ids for a in own]
        for a, b in zip(together, own, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, rel=1e-5)
    for one, logits in zip(loaded, expected, strict=True):
        assert torch.equal(one.model(ids).logits, logits)
