"""Rows of the cache: who holds them, and the prefix that they begin with."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    BeamRequest,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
)
from fttt.engine.batch import cache_keyword
from fttt.engine.cache import Heads, KVCache, read_heads
from fttt.engine.request import Kept
from fttt.errors import UsageError
from fttt.models import LoadedModel, Prefix
from fttt.testing import tiny_model

FAMILIES = ("llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3")
PROMPTS = ("Hello", "What is 2 + 2?", "A rather longer question, with more words in it.")
LENGTH = 5
PEFTS_NAME = "ignore:`past_key_values` is deprecated"
"""PEFT's own forward pass hands its prefix over by the earlier name."""


def prefixed(family: str) -> tuple[LoadedModel, Any]:
    """A tiny model with a random prefix, and PEFT's own model with the same one."""
    from peft import PrefixTuningConfig, get_peft_model

    loaded = tiny_model(family)
    if family == "mistral":  # a window that the prefix slides out of
        loaded.model.config.sliding_window = 24
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    peft = get_peft_model(copy.deepcopy(loaded.model), config).eval()
    if family == "gemma2":
        peft.base_model.set_attn_implementation("eager")  # only this form caps its scores
    weight = peft.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        cache: Any = peft.get_prompt(1)
    prefix = Prefix(
        tuple(layer.keys[0].clone() for layer in cache.layers),
        tuple(layer.values[0].clone() for layer in cache.layers),
    )
    return replace(loaded, prefix=prefix, max_context=loaded.max_context - LENGTH), peft


def reference(
    peft: Any, prompt: tuple[int, ...], tokens: int, **more: Any
) -> list[tuple[int, ...]]:
    """What the model generates after PEFT's keys and values.

    PEFT 0.21's own ``generate`` drops them under transformers 5.24, which calls a cache otherwise:
    its tokens are those of a model without a prefix.
    """
    base = peft.get_base_model()
    cache = {cache_keyword(base.forward): peft.get_prompt(more.get("num_beams", 1))}
    ids = torch.tensor([(0,) * LENGTH + prompt])  # of what lies in a cache only the number counts
    out = base.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        eos_token_id=[2],
        **cache,
        **more,
    )
    return [tuple(row[ids.shape[1] :]) for row in out.tolist()]


@pytest.mark.filterwarnings(PEFTS_NAME)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_scores_equal_those_of_peft(family: str) -> None:
    loaded, peft = prefixed(family)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]

    async def main(batch_size: int) -> list[Any]:
        engine = BatchedEngine(loaded, max_length=128, batch_size=batch_size, concurrency=6)
        requests = [GenerateRequest(p, 40, stop_ids=(2,), logprobs=True) for p in prompts]
        try:
            twice = await asyncio.gather(*map(engine.generate, requests * 2))
            return list(twice)
        finally:
            await engine.close()

    bare = [GenerateRequest(p, 40, stop_ids=(2,)) for p in prompts]
    plain = asyncio.run(_generate(replace(loaded, prefix=None), bare))
    # Rows are used again, and begin with the prefix again; with six, two share a prompt's pass.
    for batch_size in (1, 6):
        answers = asyncio.run(main(batch_size))
        for prompt, answer in zip(prompts * 2, answers, strict=True):
            ids = torch.tensor([prompt + answer.token_ids])
            with torch.no_grad():
                logits = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            log_probs = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert log_probs.argmax(-1).tolist() == list(answer.token_ids)
            assert (*answer.token_ids, 2).index(2) in {len(answer.token_ids) - 1, 40}
            expected = log_probs.gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(
                torch.tensor(answer.logprobs), expected, rtol=1e-4, atol=1e-4
            )
        if family in ("llama", "mistral", "qwen", "qwen3"):  # the others repeat themselves
            assert [a.token_ids for a in answers[:3]] != [a.token_ids for a in plain]


async def _generate(loaded: LoadedModel, requests: list[GenerateRequest]) -> list[Any]:
    engine = BatchedEngine(loaded, max_length=128, concurrency=3)
    try:
        return list(await asyncio.gather(*map(engine.generate, requests)))
    finally:
        await engine.close()


@pytest.mark.filterwarnings(PEFTS_NAME)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_a_train_step_sees_the_prefix_kept_or_replayed(family: str) -> None:
    loaded, peft = prefixed(family)
    spec = LoRASpec(dropout=0.05, lr=1e-2)
    prompt = loaded.chat.prompt_ids("What is 2 + 2?")
    turn = loaded.chat.turn_ids("Your answer is incorrect.", answer=False)
    target = Target(turn, (1 / len(turn),) * len(turn))

    async def main(*, kept: bool) -> tuple[list[tuple[int, ...]], list[float]]:
        engine = BatchedEngine(loaded, max_length=128, batch_size=2, concurrency=2, adapter=spec)
        slot = await engine.open_adapter(spec, seed=1)
        attempts, losses = [], []
        for _ in range(3):
            answer = await engine.generate(GenerateRequest(prompt, 9, adapter=slot, keep=True))
            assert answer.kept is not None
            context: Kept | tuple[int, ...] = answer.kept
            if not kept:
                answer.kept.close()
                context = prompt + answer.token_ids
            trained = await engine.train(TrainRequest(slot, (Lesson(context, (target,)),)))
            attempts.append(answer.token_ids)
            losses.append(trained.loss)
        await engine.close()
        return attempts, losses

    attempts, losses = asyncio.run(main(kept=True))
    assert asyncio.run(main(kept=False)) == (attempts, pytest.approx(losses, rel=1e-4))
    assert losses[2] < losses[1] < losses[0]  # dropout draws anew, the step is large
    context = prompt + attempts[0]
    ids = torch.tensor([context + turn])
    with torch.no_grad():  # without dropout: fresh adapters add nothing
        logits = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    start = len(context)
    expected = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:])
    assert losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_prefix_takes_its_positions_from_the_context() -> None:
    loaded, _ = prefixed("llama")
    with pytest.raises(UsageError, match=f"context of {2048 - LENGTH}"):
        BatchedEngine(loaded, max_length=2048 - LENGTH + 1)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_beams_begin_with_the_prefix(family: str) -> None:
    loaded, peft = prefixed(family)
    requests = [BeamRequest(loaded.chat.prompt_ids(p), 3, 12, (2,)) for p in PROMPTS]

    async def main() -> list[Any]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=6, beams=3)
        try:
            return list(await asyncio.gather(*map(engine.beam, requests)))
        finally:
            await engine.close()

    for request, found in zip(requests, asyncio.run(main()), strict=True):
        expected = reference(peft, request.prompt_ids, 12, num_beams=3, num_return_sequences=3)
        assert [beam.token_ids for beam in found] == expected


def cache(rows: int) -> KVCache:
    return KVCache(
        rows=rows, capacity=4, heads={0: Heads(1, 2, 2, 0)}, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_rows_are_handed_out_low_ones_first_and_kept_ones_last() -> None:
    held = cache(3)
    assert [held.take(3), held.take(3)] == [0, 1]
    old = held.keep(0, (1, 2, 3), adapted=True, awaited=True)
    new = held.keep(1, (4, 5), adapted=True, awaited=True)
    assert held.take(3) == 2
    assert (held.free, held.kept) == (0, 2)
    assert held.take(3) == 0  # the one kept longest
    assert old.row is None
    assert old.token_ids == (1, 2, 3)
    old.close()  # it is no longer its to give back
    assert held.free == 0
    new.close()
    new.close()
    assert (held.free, held.kept) == (1, 0)


def test_rows_that_a_train_step_waits_for_are_taken_back_last() -> None:
    held = cache(2)
    waits, turn = (
        held.keep(row, (1, 2, 3), adapted=False, awaited=awaited)
        for row, awaited in ((held.take(3), True), (held.take(3), False))
        if row is not None
    )
    assert (held.kept, held.spare) == (2, 1)
    assert held.take(3) == 1
    assert turn.row is None
    waits.awaited = False  # once it was taken
    assert held.spare == 1
    assert held.take(3) == 0
    assert held.take(3) is None


def test_a_look_at_a_model_in_training_draws_nothing() -> None:
    """Dropout's numbers are the same whether the model was looked at before or not."""
    from peft import LoraConfig, get_peft_model

    model: Any = tiny_model().model
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)).train()
    before = torch.get_rng_state()
    assert read_heads(peft.get_base_model())
    assert torch.equal(torch.get_rng_state(), before)
