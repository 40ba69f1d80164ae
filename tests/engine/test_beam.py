"""Beam search against ``transformers.generate``, and beside other work of the engine."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, BeamRequest, GenerateRequest, Generation, LoRASpec
from fttt.engine.beam import Beams
from fttt.engine.memory_plan import plan_memory
from fttt.errors import DivergedError, RunError, UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model

PROMPTS = ("Hello", "What is 2 + 2?", "A rather longer question, with more words in it.")
GREEDY = [GenerateRequest((5, 6, 7, n), 30, noise_key=n, temperature=0.9) for n in range(4)]


def untied(family: str) -> LoadedModel:
    """A head of its own, so that a family that ties it to the embedding does not just repeat."""
    loaded = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(loaded.model.lm_head.weight.shape, generator=generator)
    loaded.model.lm_head.weight = torch.nn.Parameter(0.3 * weight, requires_grad=False)
    return loaded


def run(
    loaded: LoadedModel,
    searches: Sequence[BeamRequest],
    others: Sequence[GenerateRequest] = (),
    **settings: Any,
) -> tuple[list[tuple[Generation, ...]], list[Generation]]:
    """Searches and generations asked for in the same moment."""
    planned = {"max_length": 256, "beams": max((s.beams for s in searches), default=0)}

    async def main() -> tuple[list[tuple[Generation, ...]], list[Generation]]:
        engine = BatchedEngine(loaded, **{**planned, "concurrency": 16, **settings})
        try:
            found = await asyncio.gather(*map(engine.generate, others), *map(engine.beam, searches))
            assert engine.generated_tokens == sum(
                len(g.token_ids) for f in found for g in (f if isinstance(f, tuple) else (f,))
            )
            return list(found[len(others) :]), list(found[: len(others)])
        finally:
            await engine.close()

    return asyncio.run(main())


def searches(loaded: LoadedModel, beams: int, tokens: int = 12) -> list[BeamRequest]:
    stops = (*loaded.stop_ids, *range(60, 100))  # frequent enough that beams end at all lengths
    return [BeamRequest(loaded.chat.prompt_ids(p), beams, tokens, stops) for p in PROMPTS]


def test_scores_that_are_not_finite_end_the_search_in_one_sentence() -> None:
    loaded = untied("llama")
    (first, *_) = asked = searches(loaded, beams=2)
    weight = loaded.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[first.prompt_ids[-2]] = float("inf")
    with pytest.raises(DivergedError, match="outputs became NaN"):
        run(loaded, asked[:1])


def reference(loaded: LoadedModel, request: BeamRequest) -> list[tuple[int, ...]]:
    """What the library finds for one prompt alone, in the order of its scores."""
    ids = torch.tensor([request.prompt_ids])
    more = {"output_scores": True, "return_dict_in_generate": True} if request.beams > 1 else {}
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=request.beams,
        num_return_sequences=request.beams,
        max_new_tokens=request.max_new_tokens,
        pad_token_id=0,
        eos_token_id=list(request.stop_ids),
        **more,
    )
    sequences = out
    if request.beams > 1:
        sequences = out.sequences
        assert out.sequences_scores.diff().le(0).all()
    rows = [row[len(request.prompt_ids) :] for row in sequences.tolist()]
    ends = [[n + 1 for n, t in enumerate(row) if t in request.stop_ids] for row in rows]
    return [tuple(row[: (e or [len(row)])[0]]) for row, e in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("beams", [1, 4])
def test_beams_equal_those_of_transformers(family: str, beams: int) -> None:
    loaded = untied(family)
    asked = searches(loaded, beams)
    expected = [reference(loaded, request) for request in asked]
    together, _ = run(loaded, asked)
    alone = [run(loaded, [request], batch_size=beams)[0][0] for request in asked]
    assert [[b.token_ids for b in found] for found in together] == expected
    assert [[b.token_ids for b in found] for found in alone] == expected
    for found in together:
        for beam in found:
            stopped = beam.token_ids[-1] in asked[0].stop_ids
            assert beam.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(beam.token_ids) == 12
    if beams > 1:
        assert len({len(beam.token_ids) for found in together for beam in found}) > 1


def test_a_search_beside_running_generations_changes_nothing_for_them() -> None:
    loaded = tiny_model()
    alone = run(loaded, [], GREEDY)[1]
    asked = searches(loaded, 5)
    found, beside = run(loaded, asked, GREEDY)
    assert [g.token_ids for g in beside] == [g.token_ids for g in alone]
    assert [[b.token_ids for b in f] for f in found] == [reference(loaded, r) for r in asked]


def test_a_search_in_the_middle_waits_for_rows_and_leaves_running_ones_alone() -> None:
    loaded = untied("gemma3")
    requests = [GenerateRequest((5, 6, 7, n), 20 + 9 * n, noise_key=n) for n in range(8)]
    alone = run(loaded, [], requests, batch_size=5)[1]
    (asked, *_) = searches(loaded, 3)

    async def main() -> tuple[tuple[Generation, ...], list[Generation]]:
        engine = BatchedEngine(
            loaded, max_length=256, batch_size=5, concurrency=8, beams=3, adapter=LoRASpec()
        )
        try:
            slot = await engine.open_adapter(LoRASpec(), 0)
            first, *others = (asyncio.create_task(engine.generate(r)) for r in requests)
            await first
            found = await engine.beam(asked)
            assert not all(task.done() for task in others)
            slot.close()
            return found, [await first, *await asyncio.gather(*others)]
        finally:
            await engine.close()

    found, beside = asyncio.run(main())
    assert [b.token_ids for b in found] == reference(loaded, asked)
    assert [g.token_ids for g in beside] == [g.token_ids for g in alone]


def test_prompts_of_one_token_and_searches_of_other_shapes_wait_their_turn() -> None:
    loaded = tiny_model()
    asked = [
        BeamRequest((5,), 3, 8, (9,)),
        BeamRequest((6, 7), 2, 8, (9,)),
        BeamRequest((8, 5, 4), 3, 8, (9,)),
        BeamRequest((8,), 3, 5, (9,)),
    ]
    found, _ = run(loaded, asked)
    assert [[b.token_ids for b in f] for f in found] == [reference(loaded, r) for r in asked]


def test_defaults_of_the_models_folder_do_not_reach_a_search() -> None:
    loaded = tiny_model()
    (asked, *_) = searches(loaded, 3)
    expected = reference(loaded, asked)
    loaded.model.generation_config.min_new_tokens = 12
    assert reference(loaded, asked) != expected
    (found,), _ = run(loaded, [asked])
    assert [b.token_ids for b in found] == expected
    assert loaded.model.generation_config.min_new_tokens == 12


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, ValueError])
def test_a_search_that_fails_gives_everything_back(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model()
    before = loaded.model.config._attn_implementation
    (asked, *_) = searches(loaded, 3)

    def fail(*_: Any, **__: Any) -> Any:
        raise error("no more")

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=256, concurrency=6, beams=3)
        with monkeypatch.context() as patched:
            patched.setattr("fttt.engine.beam.run_model", fail)
            if error is ValueError:
                with pytest.raises(ValueError, match="no more"):
                    await engine.beam(asked)
            else:
                with pytest.raises(RunError, match=r"3 beams .*--trials or --max-new-tokens"):
                    await engine.beam(asked)
        if error is torch.OutOfMemoryError:  # it is one search's error, and not the engine's
            assert (await engine.generate(GREEDY[0])).token_ids
            found = await asyncio.gather(engine.beam(asked), engine.beam(asked))
            assert [[b.token_ids for b in f] for f in found] == [expected, expected]
        await engine.close()

    expected = reference(loaded, asked)
    asyncio.run(main())
    assert loaded.model.config._attn_implementation == before


def test_questions_take_the_places_of_those_that_are_done() -> None:
    loaded = untied("gemma3")
    asked = [
        BeamRequest((5, 7, *range(9, 10 + n)), 3, 3 + 5 * n % 11, (2, *range(60, 90)))
        for n in range(9)
    ]
    found, _ = run(loaded, asked, batch_size=7)  # two at once, and a lane to spare
    assert [[b.token_ids for b in f] for f in found] == [reference(loaded, r) for r in asked]


def test_closing_ends_a_search() -> None:
    loaded = tiny_model(max_context=4096)
    before = loaded.model.config._attn_implementation

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=4000, beams=2)
        task = asyncio.create_task(engine.beam(BeamRequest((5, 6, 7), 2, 3990)))
        other = asyncio.create_task(engine.beam(BeamRequest((5, 6, 7), 1, 5)))
        await asyncio.sleep(0.2)
        await engine.close()
        for waiting in (task, other):
            with pytest.raises(RunError, match="engine was closed"):
                await waiting

    asyncio.run(main())
    assert loaded.model.config._attn_implementation == before


def test_a_search_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(max_context=4096)
    steps, expand = 0, Beams.expand

    def counted(*args: Any) -> None:
        nonlocal steps
        steps += 1
        expand(*args)

    monkeypatch.setattr(Beams, "expand", counted)

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=4000, beams=2)
        task = asyncio.create_task(engine.beam(BeamRequest((5, 6, 7), 2, 3990)))
        while steps < 10 and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before = steps
        task.cancel()
        answer = await engine.beam(BeamRequest((5, 6), 2, 5))
        assert len(answer[0].token_ids) == 5
        assert steps - before < 100  # of the other's 3990
        await engine.close()

    asyncio.run(main())


def test_the_plan_has_room_for_one_search_or_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings: dict[str, Any] = {"max_length": 200, "batch_size": None, "adapter": None}
    loaded = tiny_model()
    assert plan_memory(loaded, **settings, concurrency=9).search_lanes == 0
    made = plan_memory(loaded, **settings, concurrency=9, beams=40)
    assert made.batch_size == made.rows == made.search_lanes == 40  # whatever the default
    with pytest.raises(UsageError, match=r"40 beams does not fit --batch-size 8.*--trials"):
        plan_memory(loaded, **{**settings, "batch_size": 8}, concurrency=9, beams=40)
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: 2**29)
    with pytest.raises(UsageError, match=r"lower --trials to \d+, which fits, or lower --max-new"):
        plan_memory(loaded, **settings, concurrency=9, beams=10**5)


def test_what_was_not_planned_is_refused() -> None:
    loaded = tiny_model()
    for asked, match in [
        (BeamRequest((5,), 3, 8), "1 to 2 beams, not 3; plan it with beams=3"),
        (BeamRequest((5,), 2, 300), "--max-new-tokens"),
    ]:
        with pytest.raises(UsageError, match=match):
            run(loaded, [asked], beams=2, concurrency=2)
