"""Train steps that begin with kept hidden states against those that run the whole attempt."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
    WeightDeltaSpec,
)
from fttt.engine.adapters.delta import DeltaBank
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.hidden_cache import upper_part
from fttt.engine.memory_plan import plan_memory
from fttt.engine.request import Kept
from fttt.engine.sequences import pack_sequences, prepared, run_model
from fttt.models import LoadedModel, Prefix
from fttt.testing import tiny_model
from fttt.testing.tiny_models import uphill

EDITED = ("model.layers.3.self_attn.q_proj", "model.layers.2.self_attn.v_proj")  # of four
PROMPTS = ("Hello", "What is 2 + 2?", "A longer question with more words.", "Hello", "And one more")
FEEDBACK = ("Your answer is incorrect.", "No.", "Wrong again, think.")


def spec(*, accumulate: bool = False) -> WeightDeltaSpec:
    return WeightDeltaSpec(EDITED, uphill, accumulate, key="test")


def everything(context: tuple[int, ...], said: tuple[int, ...]) -> Target:
    ids = context[1:] + said
    return Target(ids, (1 / len(ids),) * len(ids), after=1)


@contextmanager
def tokens_of_train_passes(model: Any) -> Iterator[Counter[int]]:
    """How many tokens each decoder layer runs in train passes."""
    seen: Counter[int] = Counter()

    def note(n: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            batch = kwargs.get("fttt_batch")  # the short convolution of LFM2 is given none
            if batch is not None and batch.mode == "train":
                seen[n] += (args[0] if args else kwargs["hidden_states"]).shape[1]

        return hook

    # Within the layers, since one that is passed over does not run what it is made of.
    hooks = [
        next(layer.children()).register_forward_pre_hook(note(n), with_kwargs=True)
        for n, layer in enumerate(model.model.layers)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@dataclass
class Outcome:
    """Of several rounds: what was written, what was lost, and the changes at the end."""

    written: list[Any]
    losses: list[float]
    deltas: dict[str, Tensor]
    below: int
    above: int
    rest: int
    """Tokens that no row could hold."""


def rounds(loaded: LoadedModel, way: str, *, accumulate: bool, batch_size: int = 5) -> Outcome:
    """Attempts and changes of five questions in turn, two of which ask the same.

    ``way`` is what a step is given: ``kept`` sequences, their token ``ids``, or one and then the
    other, or a row that was ``lost``.
    """
    chosen = spec(accumulate=accumulate)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]
    said = [loaded.chat.turn_ids(f, answer=False) for f in FEEDBACK]

    async def main() -> Outcome:
        engine = BatchedEngine(
            loaded, max_length=200, batch_size=batch_size, concurrency=5, adapter=chosen
        )
        slots = [await engine.open_adapter(chosen, seed=n) for n in range(5)]
        found = Outcome([], [], {}, 0, 0, 0)

        async def question(n: int, r: int) -> tuple[Any, Any]:
            own = slots[n] if accumulate or r % 2 else None
            answer = await engine.generate(
                GenerateRequest(
                    prompts[n], 6 + 3 * n, 0.7, 0.9, 10 * n + r, adapter=own, keep=True,
                    logprobs=True,
                )
            )  # fmt: skip
            return answer, answer.kept

        async def step(n: int, r: int, answer: Any, kept: Any) -> float:
            ids = prompts[n] + answer.token_ids
            context: Kept | tuple[int, ...] = kept
            if way == "ids" or (way == "mixed" and (n + r) % 2):
                context = ids
            elif way == "lost" and n % 3 == 0:
                kept.close()
            target = everything(ids, said[(n + r) % 3])
            trained = await engine.train(TrainRequest(slots[n], (Lesson(context, (target,)),)))
            found.rest += len(said[(n + r) % 3]) + 1
            kept.close()
            return trained.loss

        with tokens_of_train_passes(loaded.model) as seen:
            for r in range(3):
                answers = await asyncio.gather(*(question(n, r) for n in range(5)))
                found.written += [(a.token_ids, a.logprobs) for a, _ in answers]
                found.losses += await asyncio.gather(
                    *(step(n, r, *answer) for n, answer in enumerate(answers))
                )
        bank = slots[0].bank
        assert isinstance(bank, DeltaBank)
        found.deltas = {name: delta.clone() for name, delta in bank.delta_SOI.items()}
        found.below, found.above = seen[1], seen[2]
        assert engine._cache.free == engine.plan.rows
        await engine.close()
        return found

    return asyncio.run(main())


def same(one: Outcome, other: Outcome) -> None:
    for (ids, scores), (expected, expected_scores) in zip(one.written, other.written, strict=True):
        assert ids == expected
        assert scores == pytest.approx(expected_scores, rel=1e-4, abs=1e-4)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    for name, delta in one.deltas.items():
        scale = float(delta.abs().max())
        assert scale > 0.01
        torch.testing.assert_close(delta, other.deltas[name], rtol=1e-3, atol=1e-4 * scale)


def of_shape(family: str) -> LoadedModel:
    """A tiny model, with a window that attempts outgrow, or a prefix."""
    loaded = tiny_model(family.removesuffix("-prefix"), layers=4)
    if family.startswith("mistral"):
        loaded.model.config.sliding_window = 24
    if family.endswith("-prefix"):
        generator = torch.Generator().manual_seed(3)
        keys, values = (
            tuple(torch.randn(2, 5, 8, generator=generator) for _ in range(4)) for _ in "kv"
        )
        loaded = replace(loaded, prefix=Prefix(keys, values), max_context=2043)
    return loaded


@pytest.mark.parametrize(
    ("family", "accumulate"),
    [
        *((family, True) for family in ("llama", "mistral", "gemma2", "gemma3", "llama-prefix")),
        *((family, False) for family in ("llama", "gemma3", "mistral-prefix")),
    ],
)
def test_a_kept_attempt_gives_what_its_tokens_give(family: str, accumulate: bool) -> None:
    loaded = of_shape(family)
    whole = rounds(loaded, "ids", accumulate=accumulate)
    kept = rounds(loaded, "kept", accumulate=accumulate)
    same(kept, whole)
    assert kept.above == whole.above == whole.below
    assert kept.below == kept.rest < whole.below / 2
    mixed = rounds(loaded, "mixed", accumulate=accumulate)
    same(mixed, whole)
    assert kept.below < mixed.below < whole.below


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2"])
def test_states_of_layers_are_kept_as_well(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what is edited lies within a layer that carries one."""
    edited = ["model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.v_proj"]
    if family == "lfm2":
        edited[1] = "model.layers.2.conv.in_proj"
    monkeypatch.setattr(sys.modules[__name__], "EDITED", tuple(edited))
    loaded = of_shape(family)
    whole = rounds(loaded, "ids", accumulate=True)
    kept = rounds(loaded, "kept", accumulate=True)
    same(kept, whole)
    if family == "qwen3_5":
        assert kept.below == kept.rest < whole.below / 2


def test_a_row_that_was_lost_is_run_again() -> None:
    loaded = of_shape("llama")
    whole = rounds(loaded, "ids", accumulate=True)
    lost = rounds(loaded, "lost", accumulate=True)
    same(lost, whole)
    assert lost.rest < lost.below < whole.below
    # Fewer rows than questions: some are taken back before their step.
    same(rounds(loaded, "kept", accumulate=True, batch_size=2), whole)


def test_a_step_leaves_the_row_to_its_owner() -> None:
    loaded = of_shape("llama")
    prompt = tuple(range(20, 40))

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, batch_size=2, concurrency=3, adapter=spec())
        slot = await engine.open_adapter(spec(), seed=1)
        kept = (await engine.generate(GenerateRequest(prompt, 8, keep=True))).kept
        assert isinstance(kept, KeptRow)
        assert kept.awaited
        assert engine._cache.spare == 0
        with tokens_of_train_passes(loaded.model) as seen:
            for _ in range(2):
                target = everything(kept.token_ids, (7, 8, 9))
                await engine.train(TrainRequest(slot, (Lesson(kept, (target,)),)))
            assert seen[0] == 2 * 4
            # a loss that ends within the attempt, and one on other tokens from some point on
            for ids in (kept.token_ids[:15], (*kept.token_ids[:18], 9, 9, 9)):
                whole = await engine.train(
                    TrainRequest(slot, (Lesson(ids, (everything(ids, ()),)),))
                )
                seen.clear()
                target = Target(ids[4:], (1 / (len(ids) - 1),) * (len(ids) - 4), after=4)
                part = await engine.train(TrainRequest(slot, (Lesson(kept, (target,)),)))
                assert seen[0] == {15: 1, 21: 3}[len(ids)]
                assert seen[3] == len(ids)
                assert 0 < part.loss < whole.loss
        assert engine._cache.spare == 1
        grown = (*kept.token_ids, 7)
        again = await engine.generate(GenerateRequest(grown, 5, reuse=kept, keep=True))
        alone = await engine.generate(GenerateRequest(grown, 5))
        assert again.token_ids == alone.token_ids
        assert kept.row is not None  # others may begin as it does too
        assert isinstance(again.kept, KeptRow)
        ids = grown + again.token_ids
        target = everything(ids, (7, 8, 9))
        losses = [
            (await engine.train(TrainRequest(slot, (Lesson(context, (target,)),)))).loss
            for context in (ids, again.kept)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        await engine.close()

    asyncio.run(main())


def test_a_row_that_no_step_will_read_is_the_first_to_go() -> None:
    """As those of a method that does not train and shares the engine with one that does."""
    loaded = of_shape("llama")

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, batch_size=2, concurrency=3, adapter=spec())
        request = GenerateRequest(tuple(range(20, 40)), 8, keep=True)
        waits = (await engine.generate(request)).kept
        turn = (await engine.generate(replace(request, awaited=False))).kept
        assert isinstance(waits, KeptRow)
        assert isinstance(turn, KeptRow)
        assert (engine._cache.kept, engine._cache.spare) == (2, 1)
        await asyncio.gather(*(engine.generate(replace(request, keep=False)) for _ in range(2)))
        assert turn.row is None
        assert waits.row is not None
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["low-rank", "change"])
def test_a_cancelled_step_does_not_reach_the_next_owner_of_its_place(kind: str) -> None:
    loaded = of_shape("llama")
    chosen = LoRASpec() if kind == "low-rank" else spec()
    ids = tuple(range(20, 40))

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, concurrency=1, adapter=chosen)
        slot = await engine.open_adapter(chosen, seed=1)
        step = asyncio.create_task(
            engine.train(TrainRequest(slot, (Lesson(ids, (everything(ids, (7, 8, 9)),)),)))
        )
        await asyncio.sleep(0)
        step.cancel()
        slot.close()
        other = await engine.open_adapter(chosen, seed=2)
        assert other.index == slot.index
        await engine.generate(GenerateRequest(ids, 3, adapter=other))
        assert step.cancelled()
        assert engine.trained_tokens == 0
        await engine.close()

    asyncio.run(main())


def test_the_plan_counts_what_is_kept() -> None:
    loaded = of_shape("llama")
    settings: dict[str, Any] = {"max_length": 200, "batch_size": None, "concurrency": 50}
    made = plan_memory(loaded, adapter=spec(), **settings)
    assert made.hidden == 32
    assert (made.batch_size, made.rows) == (16, 32)  # as many again wait for a train step
    cache = KVCache.of(loaded.model, rows=made.rows, capacity=made.capacity, hidden=made.hidden)
    assert cache.hidden is not None
    parts = [*cache.keys.values(), *cache.values.values(), cache.hidden, cache.table_RP]
    assert made.cache_bytes == sum(part.nbytes for part in parts)
    lowest = replace(spec(), layers=(*EDITED, "model.layers.0.self_attn.q_proj"))
    bare = plan_memory(loaded, adapter=lowest, **settings)
    assert (bare.hidden, bare.rows) == (0, 16)  # nothing below: the whole attempt runs in any case


def test_an_engine_leaves_no_hook_behind() -> None:
    loaded = of_shape("llama")

    async def main() -> None:
        await BatchedEngine(loaded, max_length=200, adapter=spec()).close()

    asyncio.run(main())
    assert not any(layer._forward_pre_hooks for layer in loaded.model.model.layers)


ABOVE = ("model.layers.2.self_attn.v_proj", "model.layers.1.self_attn.q_proj")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3"])
def test_hidden_states_stand_for_the_layers_below(family: str) -> None:
    model = tiny_model(family, layers=3).model
    upper = upper_part(model, ABOVE)
    assert upper is not None
    with prepared(model), torch.no_grad():
        batch = pack_sequences(model, [(5, 6, 7, 8), (9, 10)])
        expected = run_model(model, batch, slice(None))
        hidden_ND = upper.hidden(batch)
        lowest = model.model.layers[0].mlp.down_proj.weight
        before = lowest.clone()
        lowest.fill_(float("nan"))  # so nothing of it may run
        with upper.given(hidden_ND):
            torch.testing.assert_close(run_model(model, batch, slice(None)), expected)
            twice = run_model(model, batch, slice(None))
        lowest.copy_(before)
        assert torch.equal(run_model(model, batch, slice(None)), expected)
        assert torch.isfinite(twice).all()


def test_there_is_none_where_nothing_lies_below() -> None:
    model = tiny_model(layers=3).model
    assert upper_part(model, (*ABOVE, "model.layers.0.self_attn.q_proj")) is None
    assert upper_part(model, ("lm_head",)) is None
    assert upper_part(model, (ABOVE[0], "model.vision.layers.1.q_proj")) is None
