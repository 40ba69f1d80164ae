"""Predicted changes of weights in the engine against one question at a time on plain weights."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    Target,
    TrainRequest,
    WeightDeltaSpec,
)
from fttt.engine.deltas import DeltaBank
from fttt.engine.factors import FactoredDelta, Factors
from fttt.engine.plan import plan_memory
from fttt.errors import RunError, UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model
from fttt.testing.tiny_models import uphill

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
PROMPTS = ("Hello", "What is 2 + 2?", "A longer question with more words.", "Hi!", "And one more")
FEEDBACK = ("Your answer is incorrect.", "No.", "Wrong again, think.")
STEP = 3.0


def predict(factors: Factors) -> dict[str, Tensor]:
    return uphill(factors, STEP)


def spec(*, accumulate: bool = False, predict: Any = predict) -> WeightDeltaSpec:
    return WeightDeltaSpec(LAYERS, predict, accumulate, key="test")


class Alone:
    """One question: the weights themselves are replaced, and differentiated by autograd."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = copy.deepcopy(loaded.model)
        self.base = {n: self.model.get_submodule(n).weight.clone() for n in LAYERS}
        self.delta = {n: torch.zeros_like(w) for n, w in self.base.items()}

    def use(self, delta: Mapping[str, Tensor] | None) -> None:
        for name, weight in self.base.items():
            own = weight if delta is None else weight + delta[name]
            self.model.get_submodule(name).weight.data = own

    @torch.no_grad()
    def greedy(self, prompt: tuple[int, ...], tokens: int, *, edited: bool) -> Any:
        """The tokens, and their log-probabilities."""
        self.use(self.delta if edited else None)
        ids, scores = list(prompt), []
        for _ in range(tokens):
            best = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max(-1)
            ids.append(int(best.indices))
            scores.append(float(best.values))
        return tuple(ids[len(prompt) :]), pytest.approx(tuple(scores), rel=1e-3, abs=1e-3)

    def step(self, ids: tuple[int, ...], *, accumulate: bool) -> float:
        self.use(self.delta if accumulate else None)
        weights = [self.model.get_submodule(n).weight.requires_grad_() for n in LAYERS]
        whole = torch.tensor([ids])
        with torch.enable_grad():
            loss = F.cross_entropy(self.model(whole).logits[0, :-1], whole[0, 1:])
            gradients = torch.autograd.grad(loss, weights)
        for name, gradient in zip(LAYERS, gradients, strict=True):
            before = self.delta[name] if accumulate else 0.0
            self.delta[name] = before + STEP * gradient.tanh()
        return float(loss.detach())


def everything(context: tuple[int, ...], said: tuple[int, ...]) -> Target:
    """All tokens but the first, by their mean."""
    ids = context[1:] + said
    return Target(ids, (1 / len(ids),) * len(ids), after=1)


@pytest.mark.parametrize("accumulate", [False, True], ids=["replaced", "accumulated"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen", "gemma", "gemma3"])
def test_trials_and_changes_equal_one_question_at_a_time(family: str, accumulate: bool) -> None:
    loaded = tiny_model(family)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]
    said = [loaded.chat.turn_ids(f, answer=False) for f in FEEDBACK]
    rounds = 3

    async def main() -> list[list[Any]]:
        # Three slots for five questions: two are used again and must begin without a change.
        chosen = spec(accumulate=accumulate)
        engine = BatchedEngine(loaded, max_length=200, batch_size=3, concurrency=3, adapter=chosen)

        async def question(n: int) -> list[Any]:
            slot = await engine.open_adapter(chosen, seed=n)
            seen: list[Any] = []
            for r in range(rounds):
                base = accumulate is False
                own = None if base else slot
                attempt = await engine.generate(
                    GenerateRequest(prompts[n], 6 + n, adapter=own, logprobs=True)
                )
                context = prompts[n] + attempt.token_ids
                target = everything(context, said[(n + r) % 3])
                trained = await engine.train(TrainRequest(slot, (Lesson(context, (target,)),)))
                edited = await engine.generate(
                    GenerateRequest(prompts[n], 6 + n, adapter=slot, logprobs=True)
                )
                seen += [
                    (attempt.token_ids, attempt.logprobs), trained.loss,
                    (edited.token_ids, edited.logprobs),
                ]  # fmt: skip
                assert trained.trained_tokens == len(target.token_ids)
            slot.close()
            return seen

        answers = await asyncio.gather(*[question(n) for n in range(len(prompts))])
        await engine.close()
        return list(answers)

    answers = asyncio.run(main())
    changed = 0
    for n, prompt in enumerate(prompts):
        alone = Alone(loaded)
        for r in range(rounds):
            attempt, loss, edited = answers[n][3 * r : 3 * r + 3]
            assert attempt == alone.greedy(prompt, 6 + n, edited=accumulate)
            expected = alone.step(prompt + attempt[0] + said[(n + r) % 3], accumulate=accumulate)
            assert loss == pytest.approx(expected, rel=1e-4)
            assert edited == alone.greedy(prompt, 6 + n, edited=True)
            changed += edited != (attempt[0], pytest.approx(attempt[1], rel=1e-2, abs=1e-2))
    assert changed > len(prompts)  # the changes are large enough to be seen in what is written


@pytest.mark.parametrize("accumulate", [False, True], ids=["replaced", "accumulated"])
def test_a_change_that_is_not_finite_is_said_and_leaves_no_trace(accumulate: bool) -> None:
    loaded = tiny_model()

    def torn(factors: Factors) -> dict[str, Tensor]:
        found = predict(factors)
        for q, own in enumerate(factors.lengths):
            if own > 60:
                found[LAYERS[1]][q, 3, 4] = float("inf")
        return found

    async def main() -> None:
        chosen = spec(accumulate=accumulate, predict=torn)
        engine = BatchedEngine(loaded, max_length=200, concurrency=2, adapter=chosen)
        slots = [await engine.open_adapter(chosen, seed=s) for s in (1, 2)]
        bank = slots[0].bank
        assert isinstance(bank, DeltaBank)
        before: list[Tensor] = []
        for long in (30, 70):
            contexts = [tuple(range(3, 3 + n)) for n in (20, long)]
            requests = [
                TrainRequest(slot, (Lesson(ids, (everything(ids, (7, 8)),)),))
                for slot, ids in zip(slots, contexts, strict=True)
            ]
            fine, broken = await asyncio.gather(*map(engine.train, requests))
            assert fine.loss == fine.loss
            before.append(bank.delta_SOI[LAYERS[0]][slots[1].index].clone())
        assert broken.loss != broken.loss
        assert before[0].abs().max() > 0
        left = before[0] if accumulate else torch.zeros_like(before[0])
        assert torch.equal(before[1], left)
        assert bank.delta_SOI[LAYERS[0]][slots[0].index].abs().max() > 0
        await engine.close()

    asyncio.run(main())


def test_a_change_needs_no_row_of_the_cache() -> None:
    loaded = tiny_model()
    ids = tuple(range(3, 20))

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, batch_size=1, concurrency=2, adapter=spec())
        slot = await engine.open_adapter(spec(), seed=1)
        writing = asyncio.create_task(engine.generate(GenerateRequest(ids, 150)))
        trained = await engine.train(TrainRequest(slot, (Lesson(ids, (everything(ids, (7, 8)),)),)))
        assert trained.loss == trained.loss
        assert not writing.done()  # it holds the only row
        await writing
        await engine.close()

    asyncio.run(main())


def test_what_a_change_cannot_come_from_is_refused() -> None:
    loaded = tiny_model()
    ids = tuple(range(3, 20))
    one = everything(ids, (7, 8))

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, adapter=spec())
        slot = await engine.open_adapter(spec(), seed=1)
        with pytest.raises(UsageError, match=r"of one target.*not 2"):
            await engine.train(TrainRequest(slot, (Lesson(ids, (one, one)),)))
        with pytest.raises(RunError, match="not built for adapters"):
            await engine.open_adapter(spec(accumulate=True), seed=1)
        await engine.close()
        plain = BatchedEngine(loaded, max_length=200)
        with pytest.raises(RunError, match="built without adapters"):
            await plain.train(TrainRequest(slot, (Lesson(ids, (one,)),)))
        await plain.close()

    asyncio.run(main())
    unknown = WeightDeltaSpec(("model.layers.9.self_attn.q_proj",), predict, False, "x")
    with pytest.raises(UsageError, match=r"near it are .*model\.layers\.1\.self_attn\.q_proj"):
        BatchedEngine(loaded, max_length=200, adapter=unknown)


def test_the_plan_counts_changes_and_refuses_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = tiny_model()
    settings: dict[str, Any] = {"max_length": 200, "batch_size": None, "adapter": spec()}
    made = plan_memory(loaded, concurrency=20, **settings)
    bank = DeltaBank(loaded.model, spec(), made.slots, torch.device("cpu"))
    held = sum(delta.numel() * delta.element_size() for delta in bank.delta_SOI.values())
    bank.detach()
    assert made.adapter_bytes == held == 20 * 4 * (32 * 32 + 16 * 32)
    assert made.rows == made.batch_size  # nothing is kept for a train step
    longer = plan_memory(loaded, concurrency=20, **{**settings, "max_length": 1900})
    assert longer.train_tokens == 1900  # an attempt is run again as a whole
    assert longer.working_bytes > made.working_bytes
    assert plan_memory(loaded, concurrency=20, **{**settings, "adapter": None}).adapter_bytes == 0
    monkeypatch.setattr("fttt.engine.plan.free_bytes", lambda device: 2**29)
    few = plan_memory(loaded, concurrency=10**6, **settings)
    assert few.total_bytes - few.weight_bytes <= 2**29
    with pytest.raises(UsageError, match=r"and \d+ adapters of 0 MiB need .* lower --batch-size"):
        plan_memory(loaded, concurrency=10**6, **{**settings, "batch_size": 10**6})


def test_a_batch_of_several_passes_and_predictions_equals_one() -> None:
    loaded = tiny_model()

    async def main(tokens: int, questions: int) -> list[float]:
        engine = BatchedEngine(loaded, max_length=200, concurrency=8, adapter=spec())
        object.__setattr__(engine.plan, "train_tokens", tokens)
        object.__setattr__(engine.plan, "train_questions", questions)
        slots = [await engine.open_adapter(spec(), seed=n) for n in range(8)]
        contexts = [tuple(range(3 + n, 30 + 5 * n)) for n in range(8)]
        trained = await asyncio.gather(
            *(
                engine.train(TrainRequest(slot, (Lesson(ids, (everything(ids, (7, 8)),)),)))
                for slot, ids in zip(slots, contexts, strict=True)
            )
        )
        bank = slots[0].bank
        assert isinstance(bank, DeltaBank)
        sums = [float(d[s.index].square().sum()) for d in bank.delta_SOI.values() for s in slots]
        await engine.close()
        return [t.loss for t in trained] + sums

    one = asyncio.run(main(10_000, 8))
    assert asyncio.run(main(100, 8)) == pytest.approx(one, rel=1e-4)
    assert asyncio.run(main(10_000, 3)) == pytest.approx(one, rel=1e-4)


def test_factors_in_half_precision_lose_little_more_than_their_product_does() -> None:
    torch.manual_seed(0)
    made = FactoredDelta(torch.randn(2, 170, 64) * 1e-4, torch.randn(2, 170, 96))
    exact = made.dense()
    for found, most in ((exact.bfloat16(), 0.002), (made.dense(torch.bfloat16), 0.0035)):
        assert float((found.float() - exact).norm() / exact.norm()) < most
    assert torch.equal(made.dense(torch.float32), exact)


def test_factored_changes_are_set_and_added_as_dense_ones_are() -> None:
    model = tiny_model().model
    torch.manual_seed(0)
    made = {}
    for name in LAYERS:
        outputs, inputs = model.get_submodule(name).weight.shape
        made[name] = FactoredDelta(torch.randn(2, 5, outputs), torch.randn(2, 5, inputs))
    for accumulate in (False, True):
        banks = [
            DeltaBank(model, spec(accumulate=accumulate), 3, torch.device("cpu")) for _ in "ab"
        ]
        for _ in range(2):
            assert banks[0].step([2, 0], made) == [True, True]
            banks[1].step([2, 0], {name: delta.dense() for name, delta in made.items()})
        for name, delta in made.items():
            assert torch.equal(banks[0].delta_SOI[name], banks[1].delta_SOI[name])
            times = 2 if accumulate else 1
            torch.testing.assert_close(banks[0].delta_SOI[name][[2, 0]], times * delta.dense())
            assert not banks[0].delta_SOI[name][1].any()
        for bank in banks:
            bank.detach()
