"""Log-probabilities of given tokens against the model's own forward pass."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Scored,
    ScoreRequest,
    Target,
    TrainRequest,
)
from fttt.engine import sequences as sequences_module
from fttt.engine.adapters.lora import target_layers
from fttt.engine.cache import KeptRow
from fttt.errors import RunError, UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model

SPEC = LoRASpec(lr=1e-2, dropout=0.3)
PROMPT, ANSWER = tuple(range(20, 32)), (7, 8, 9, 7, 40)
FAMILIES = ["llama", "gemma2", "gemma3", "gpt_oss", "qwen3_5", "lfm2"]


def own_code(loaded: LoadedModel) -> Any:
    """The model as no engine has taken it over."""
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation("eager")
    return model


def logprobs(model: Any, ids: tuple[int, ...], places: int) -> torch.Tensor:
    """The model's own, of everything at the last places of a sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -places - 1 : -1]
    return logits.float().log_softmax(-1)


def holds(score: Scored, expected: torch.Tensor, ids: tuple[int, ...], top_k: int) -> None:
    own = expected[torch.arange(len(ids)), torch.tensor(ids)]
    torch.testing.assert_close(torch.tensor(score.logprobs), own, rtol=1e-4, atol=1e-4)
    assert len(score.top_ids) == len(score.top_logprobs) == (len(ids) if top_k else 0)
    if top_k:
        best = expected.topk(top_k)
        torch.testing.assert_close(
            torch.tensor(score.top_logprobs), best.values, rtol=1e-4, atol=1e-4
        )
        named = expected.gather(1, torch.tensor(score.top_ids))
        torch.testing.assert_close(named, best.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_is_the_models_own_alone_and_beside_others(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences_module, "LOGIT_BYTES", 4096)  # of few places at once
    loaded = tiny_model(family)
    model = own_code(loaded)
    asked = [
        ScoreRequest(PROMPT, ANSWER, top_k=5),
        ScoreRequest(PROMPT[:3], PROMPT, top_k=0),
        ScoreRequest(PROMPT, ANSWER[:1], top_k=2, after=5),
        ScoreRequest(PROMPT[:1], ANSWER, top_k=1),
    ]

    async def main() -> tuple[list[Scored], list[Scored]]:
        engine = BatchedEngine(loaded, max_length=100, batch_size=2)
        alone = [await engine.score(request) for request in asked]
        beside = asyncio.create_task(engine.generate(GenerateRequest(PROMPT, 30)))
        together = await asyncio.gather(*map(engine.score, asked))
        assert engine.scored_tokens == 2 * sum(len(r.token_ids) for r in asked)
        await beside
        await engine.close()
        return alone, together

    for scores in asyncio.run(main()):
        for score, request in zip(scores, asked, strict=True):
            expected = logprobs(model, request.sequence, len(request.token_ids))
            holds(score, expected, request.token_ids, request.top_k)


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_an_adapter_is_scored_without_dropout_and_kept_rows_are_read_under_their_weights(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model(family)
    model = own_code(loaded)
    ran: list[int] = []
    pack = sequences_module.Batch.pack

    def noted(mode: Any, segments: Any, cache: Any) -> Any:
        ran.append(sum(len(segment.token_ids) for segment in segments))
        return pack(mode, segments, cache)

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=100, batch_size=2, concurrency=2, adapter=SPEC)
        own, other = [await engine.open_adapter(SPEC, seed=s) for s in (1, 2)]
        lesson = Lesson(PROMPT, (Target(ANSWER, (1.0,) * 5),))
        for slot in (own, own, other):
            await engine.train(TrainRequest(slot, (lesson,)))
        kept = (await engine.generate(GenerateRequest(PROMPT, 6, adapter=own, keep=True))).kept
        assert isinstance(kept, KeptRow)
        ids = kept.token_ids + ANSWER
        monkeypatch.setattr(sequences_module.Batch, "pack", noted)
        request = ScoreRequest(kept, ANSWER, adapter=own, top_k=3)
        for score, tokens in [(replace(request, context=kept.token_ids), 22), (request, 5)]:
            ran.clear()
            holds(await engine.score(score), adapted(own, ids), ANSWER, 3)
            assert ran == [tokens]
        # of other weights the row says nothing, be they another's, the model's, or one's own later
        holds(await engine.score(replace(request, adapter=other)), adapted(other, ids), ANSWER, 3)
        base = logprobs(model, ids, 5)
        holds(await engine.score(replace(request, adapter=None)), base, ANSWER, 3)
        await engine.train(TrainRequest(own, (lesson,)))
        assert kept.row is not None
        holds(await engine.score(request), adapted(own, ids), ANSWER, 3)
        assert (base - adapted(own, ids)).abs().max() > 0.01
        await engine.close()

    def adapted(slot: Any, ids: tuple[int, ...]) -> torch.Tensor:
        """By the model's own code with the weights merged in."""
        layers = target_layers(model, SPEC).values()
        before = [layer.weight.clone() for layer in layers]
        with torch.no_grad():
            for layer, (a, b) in zip(layers, slot.bank.factors(slot.index), strict=True):
                layer.weight += SPEC.alpha / SPEC.rank * b @ a
            try:
                return logprobs(model, ids, 5)
            finally:
                for layer, weight in zip(layers, before, strict=True):
                    layer.weight.copy_(weight)

    asyncio.run(main())


def test_what_cannot_be_scored_is_refused() -> None:
    loaded = tiny_model()

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=100)
        with pytest.raises(UsageError, match="0 tokens after 12"):
            await engine.score(ScoreRequest(PROMPT, ()))
        with pytest.raises(UsageError, match="5 tokens after 0"):
            await engine.score(ScoreRequest((), ANSWER))
        with pytest.raises(UsageError, match="lower --max-new-tokens"):
            await engine.score(ScoreRequest(PROMPT, ANSWER * 1000))
        learner = BatchedEngine(tiny_model(), max_length=100, adapter=SPEC)
        slot = await learner.open_adapter(SPEC, 1)
        with pytest.raises(RunError, match="without adapters"):
            await engine.score(ScoreRequest(PROMPT, ANSWER, slot))
        slot.close()
        with pytest.raises(RunError, match="was closed"):
            await learner.score(ScoreRequest(PROMPT, ANSWER, slot))
        await engine.close()
        await learner.close()

    asyncio.run(main())
