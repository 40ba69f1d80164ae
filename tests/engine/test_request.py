"""A thought that has spent its budget is closed, whoever shares the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, GenerateRequest, Generation
from fttt.engine.request import LoRASpec, ThoughtBudget
from fttt.errors import UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model


def budget(loaded: LoadedModel, tokens: int) -> ThoughtBudget:
    return ThoughtBudget(tokens, *loaded.chat.thought_ids())


def requests(
    loaded: LoadedModel, budgets: Sequence[int | None], **more: Any
) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            loaded.chat.prompt_ids(f"Question {n}?"),
            40,
            noise_key=n,
            thought=None if tokens is None else budget(loaded, tokens),
            **more,
        )
        for n, tokens in enumerate(budgets)
    ]


def run(
    loaded: LoadedModel,
    asked: Sequence[GenerateRequest],
    *,
    decoder: type[Any] | None = None,
    adapted: bool = False,
) -> list[Generation]:
    async def main() -> list[Generation]:
        spec = LoRASpec(rank=2) if adapted else None
        engine = BatchedEngine(loaded, max_length=128, concurrency=len(asked), adapter=spec)
        if decoder is not None:
            engine._decoder = decoder(engine._model, engine._cache, engine._bank)
        try:
            own = asked
            if spec is not None:
                own = [
                    replace(one, adapter=await engine.open_adapter(spec, n), keep=True)
                    for n, one in enumerate(asked)
                ]
            return list(await asyncio.gather(*map(engine.generate, own)))
        finally:
            await engine.close()

    return asyncio.run(main())


def continued(loaded: LoadedModel, ids: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """What ``transformers`` writes greedily."""
    given = torch.tensor([ids])
    out = loaded.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    return tuple(out[0, len(ids) :].tolist())


@pytest.mark.parametrize("template", ["deepseek-r1", "harmony"])
def test_the_closing_is_forced_and_the_answer_follows(template: str, gpu_like: type[Any]) -> None:
    loaded = tiny_model("qwen3", template=template)
    asked = requests(loaded, [1, 7, 9, None])
    given = run(loaded, asked)
    assert [one.token_ids for one in run(loaded, asked, decoder=gpu_like)] == [
        one.token_ids for one in given
    ]
    for one, found in zip(asked, given, strict=True):
        begun = continued(loaded, one.prompt_ids, one.thought.tokens if one.thought else 40)
        if one.thought is not None:
            begun += one.thought.closing
            begun += continued(loaded, one.prompt_ids + begun, 40 - len(begun))
        assert found.token_ids == begun


@pytest.mark.parametrize("adapted", [False, True])
def test_draws_are_the_same_whoever_shares_the_batch(adapted: bool, gpu_like: type[Any]) -> None:
    loaded = tiny_model("qwen3", template="deepseek-r1")
    asked = requests(loaded, [5, 1, None, 12, 5], temperature=1.0, top_p=0.9)
    together = run(loaded, asked, adapted=adapted)
    several = run(loaded, asked, decoder=gpu_like, adapted=adapted)
    alone = [run(loaded, [one], adapted=adapted)[0] for one in asked]
    assert [one.token_ids for one in together] == [one.token_ids for one in several]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    free = run(loaded, [replace(one, thought=None) for one in asked])
    for one, two, request in zip(together, free, asked, strict=True):
        tokens = request.thought.tokens if request.thought else 40
        assert one.token_ids[:tokens] == two.token_ids[:tokens]
        assert len(one.token_ids) == 40


def test_a_budget_that_is_not_spent_changes_nothing(gpu_like: type[Any]) -> None:
    loaded = tiny_model("qwen3", template="deepseek-r1")
    free = requests(loaded, [None] * 6, temperature=1.5)
    drawn = run(loaded, free)
    marks = [found.token_ids[3] for found in drawn]  # their fourth token ends their thoughts
    asked = [
        replace(one, thought=ThoughtBudget(5, (), (mark,), (mark, mark)))
        for one, mark in zip(free, marks, strict=True)
    ]
    for decoder in (None, gpu_like):
        found = run(loaded, asked, decoder=decoder)
        assert [one.token_ids for one in found] == [one.token_ids for one in drawn]


@pytest.mark.parametrize("family", ["falcon_h1", "lfm2"])
def test_layers_with_a_state_go_on_behind_the_closing(family: str) -> None:
    loaded = tiny_model(family, template="deepseek-r1")
    asked = requests(loaded, [6])
    begun = continued(loaded, asked[0].prompt_ids, 6) + budget(loaded, 6).closing
    begun += continued(loaded, asked[0].prompt_ids + begun, 40 - len(begun))
    assert run(loaded, asked)[0].token_ids == begun


def test_what_closes_a_thought() -> None:
    closing = (7, 8, 9)
    opened, opens = ThoughtBudget(4, (), (8, 9), closing), ThoughtBudget(4, (5,), (8, 9), closing)
    assert opened.closes((1, 2)) == closing
    assert opened.closes((1, 7, 8)) == (9,)  # what is begun is not begun again
    assert opened.closes((7, 8, 9, 1)) == ()
    assert opens.closes((1, 2)) == ()  # nothing was thought
    assert opens.closes((5, 2)) == closing


def test_a_budget_without_room_for_an_answer_is_refused() -> None:
    loaded = tiny_model("qwen3", template="deepseek-r1")
    with pytest.raises(UsageError, match=r"no room for an answer within 40; lower --think-tokens"):
        run(loaded, requests(loaded, [37]))


def test_answers_of_32k_tokens_start_share_and_end() -> None:
    """A row is reserved for each that runs; its pages are taken as they are written."""
    loaded = tiny_model("qwen3", template="deepseek-r1", max_context=40_960)
    prompt = loaded.chat.prompt_ids("Question?")
    begun = continued(loaded, prompt, 12)
    end = max(begun.index(token) for token in begun)  # the last token that is a new one
    asked = [
        GenerateRequest(prompt, 32_768, stop_ids=(begun[end],), thought=budget(loaded, tokens))
        for tokens in (32_000, 1, 32_000)
    ]

    async def main() -> list[Generation]:
        engine = BatchedEngine(loaded, max_length=33_000, concurrency=32)
        assert engine.plan.cache_bytes < 2**30
        try:
            return list(await asyncio.gather(*map(engine.generate, asked)))
        finally:
            await engine.close()

    found = asyncio.run(main())
    assert found[0].token_ids == found[2].token_ids == begun[: end + 1]
    assert found[1].token_ids[1:5] == budget(loaded, 1).closing
    assert found[1].finish_reason == "stop"
