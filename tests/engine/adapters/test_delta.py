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
from torch.func import functional_call

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    Target,
    TrainRequest,
    WeightDeltaSpec,
    attention,
    sequences,
)
from fttt.engine.adapters.delta import DeltaBank, FactoredDelta, Factors, changed, record_factors
from fttt.engine.memory_plan import plan_memory
from fttt.engine.scheduler import Job, LessonQueue
from fttt.engine.sequences import pack_sequences, prepared, weighted_nll
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
    def likeliest(self, prompt: tuple[int, ...], attempt: Any, *, edited: bool) -> Any:
        """The likeliest token at each place of an attempt, and its log-probability."""
        self.use(self.delta if edited else None)
        ids = torch.tensor([prompt + attempt[0][:-1]])
        best = self.model(ids).logits[0, len(prompt) - 1 :].log_softmax(-1).max(-1)
        scores = pytest.approx(tuple(best.values.tolist()), rel=1e-3, abs=1e-3)
        return tuple(best.indices.tolist()), scores

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
            assert attempt == alone.likeliest(prompt, attempt, edited=accumulate)
            expected = alone.step(prompt + attempt[0] + said[(n + r) % 3], accumulate=accumulate)
            assert loss == pytest.approx(expected, rel=1e-4)
            assert edited == alone.likeliest(prompt, edited, edited=True)
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
    monkeypatch.setattr("fttt.engine.memory_plan.free_bytes", lambda device: 2**29)
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


def test_requests_fill_a_pass_by_their_padded_tokens_and_adapters() -> None:
    loaded = tiny_model()

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, concurrency=3, adapter=spec())
        object.__setattr__(engine.plan, "train_tokens", 30)
        slots = [await engine.open_adapter(spec(), seed=n) for n in range(3)]
        learner, loop = engine._learner, asyncio.get_running_loop()
        assert learner is not None

        def due(*asked: tuple[int, int]) -> tuple[int, bool]:
            requests = (
                TrainRequest(slots[n], (Lesson((3,) * (size - 2), (Target((7, 8), (0.5, 0.5)),)),))
                for n, size in asked
            )
            return learner.due(LessonQueue(Job(x, loop.create_future()) for x in requests))

        assert due() == (0, False)
        assert due((0, 10)) == (1, False)
        assert due((0, 10), (1, 10)) == (2, False)
        assert due((0, 10), (1, 10), (2, 10)) == (3, True)
        assert due((0, 10), (1, 11)) == (2, True)  # a third is padded to 11
        assert due((0, 10), (0, 10)) == (2, True)
        assert due((0, 40)) == (1, True)
        await engine.close()

    asyncio.run(main())


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


FAMILIES = ["llama", "mistral", "qwen", "qwen3", "gemma", "gemma2", "gemma3"]
LENGTHS = (9, 30, 2, 21)
RECORDED = tuple(
    f"model.layers.{n}.self_attn.{p}_proj" for n in (1, 2) for p in ("q", "v")
)  # of three: the first one is below


def examples(seed: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, 259, (n,), generator=generator).tolist()) for n in LENGTHS]


def mean_nll(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Of all tokens but the first, by the plain model."""
    whole = torch.tensor([ids])
    return F.cross_entropy(model(whole, use_cache=False).logits[0, :-1].float(), whole[0, 1:])


def recorded(model: Any, **more: Any) -> Factors:
    with prepared(model), torch.no_grad():
        return record_factors(model, pack_sequences(model, examples()), RECORDED, **more)


def gradient(factors: Factors, name: str, example: int) -> torch.Tensor:
    own = factors.segment_N == example
    return factors.delta_NO[name][own].T @ factors.x_NI[name][own]


@pytest.mark.parametrize("family", FAMILIES)
def test_delta_times_x_is_the_weight_gradient_of_each_example(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, layers=3).model
    monkeypatch.setattr(sequences, "LOGIT_BYTES", 4 * 272 * 7)  # several chunks of logits
    factors = recorded(model)
    assert factors.lengths == LENGTHS
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")  # the others leave out Gemma 2's soft cap
    weights = [plain.get_submodule(name).weight.requires_grad_() for name in RECORDED]
    for q, ids in enumerate(examples()):
        loss = mean_nll(plain, ids)
        expected = torch.autograd.grad(loss, weights)
        assert float(factors.loss_Q[q]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, weight_gradient in zip(RECORDED, expected, strict=True):
            found = gradient(factors, name, q)
            scale = max(float(weight_gradient.abs().max()), 0.01)  # exactly 0 after one token
            torch.testing.assert_close(found, weight_gradient, rtol=1e-3, atol=1e-4 * scale)


def test_query_and_value_share_one_input_and_nothing_below_keeps_a_graph() -> None:
    model = tiny_model(layers=3).model
    graphs: dict[int, bool] = {}

    def note(n: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            graphs[n] = output.requires_grad

        return hook

    for n, layer in enumerate(model.model.layers):
        layer.register_forward_hook(note(n))
    factors = recorded(model)
    query, value, above, _ = RECORDED
    assert factors.x_NI[query] is factors.x_NI[value]
    assert factors.x_NI[query] is not factors.x_NI[above]
    assert graphs == {0: False, 1: True, 2: True}
    assert not any(x.requires_grad for x in [*factors.x_NI.values(), *factors.delta_NO.values()])


def test_weights_of_tokens_take_the_place_of_the_mean() -> None:
    model = tiny_model(layers=3).model
    plain = recorded(model)
    halved = recorded(model, weights=[(0.5 / (n - 1),) * (n - 1) for n in LENGTHS])
    torch.testing.assert_close(halved.loss_Q, plain.loss_Q / 2)
    for name in RECORDED:
        torch.testing.assert_close(halved.delta_NO[name], plain.delta_NO[name] / 2)


def test_an_example_that_is_not_finite_spares_the_others() -> None:
    model = tiny_model(layers=3).model
    weights = [(1 / (n - 1),) * (n - 1) for n in LENGTHS]
    weights[1] = (float("nan"),) * (LENGTHS[1] - 1)
    plain, torn = recorded(model), recorded(model, weights=weights)
    spared = plain.segment_N != 1
    assert torn.loss_Q.isfinite().tolist() == [True, False, True, True]
    for name in RECORDED:
        torch.testing.assert_close(torn.delta_NO[name][spared], plain.delta_NO[name][spared])
        assert not torn.delta_NO[name][~spared].isfinite().any()


def test_an_unknown_layer_is_refused_with_its_neighbours() -> None:
    model = tiny_model().model
    with prepared(model), pytest.raises(UsageError, match=r"near it are .*1\.self_attn\.q_proj"):
        record_factors(model, pack_sequences(model, [(5, 6)]), ["model.layers.1.attn.q_proj"])


def test_the_model_gets_its_own_code_back() -> None:
    model = tiny_model().model
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    attention = model.config._attn_implementation
    recorded(tiny_model(layers=3).model)
    with prepared(model):
        assert model.config._attn_implementation != attention
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("factored", [False, True], ids=["dense", "factored"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen"])
def test_changes_of_each_example_and_their_gradient(family: str, factored: bool) -> None:
    model = tiny_model(family, layers=3).model
    torch.manual_seed(1)
    made: dict[str, FactoredDelta] = {}
    for name in RECORDED:
        outputs, inputs = model.get_submodule(name).weight.shape
        left = torch.randn(len(LENGTHS), 5, outputs) * 0.1
        made[name] = FactoredDelta(
            left.requires_grad_(), torch.randn(len(LENGTHS), 5, inputs).requires_grad_()
        )
    deltas = made if factored else {name: delta.dense() for name, delta in made.items()}
    with prepared(model):
        batch = pack_sequences(model, examples())
        keep = [t for t in range(len(batch.token_ids_N)) if t + 1 not in batch.ends]
        where_M = torch.tensor(keep)
        weight_M = torch.tensor([1 / (n - 1) for n in LENGTHS for _ in range(n - 1)])
        with changed(model, batch, deltas):
            loss, nll_M = weighted_nll(
                model, batch, where_M, batch.token_ids_N[where_M + 1], weight_M
            )
        loss.backward()
    model.set_attn_implementation("eager")  # the others leave out Gemma 2's soft cap
    expected = torch.zeros(())
    again = {
        name: FactoredDelta(
            delta.left_BFO.detach().requires_grad_(), delta.right_BFI.detach().requires_grad_()
        )
        for name, delta in made.items()
    }
    for q, ids in enumerate(examples()):
        own = {
            f"{name}.weight": model.get_submodule(name).weight + delta.dense()[q]
            for name, delta in again.items()
        }
        whole = torch.tensor([ids])
        logits = functional_call(model, own, (whole,), {"use_cache": False}).logits[0, :-1]
        expected = expected + F.cross_entropy(logits, whole[0, 1:])
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float((nll_M * weight_M).sum()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name in RECORDED:
        for one, other in zip(
            (made[name].left_BFO, made[name].right_BFI),
            (again[name].left_BFO, again[name].right_BFI),
            strict=True,
        ):
            assert one.grad is not None
            assert other.grad is not None
            scale = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4 * scale)


def test_attention_without_a_mask_is_that_with_one() -> None:
    model = tiny_model().model
    batch = pack_sequences(model, examples())
    torch.manual_seed(2)
    q, k, v = (torch.randn(sum(LENGTHS), n, 8, requires_grad=True) for n in (6, 2, 2))

    def own(window: int | None, softcap: float | None) -> attention._Own:
        return attention._Own(batch, 0, 0.3, attention.Reach(window, None), softcap, None, None)

    masked = attention._train(q, k, v, own(None, None))
    plain = attention._causal(q, k, v, own(None, None))  # as a GPU takes it
    torch.testing.assert_close(plain, masked)
    up = torch.randn_like(masked)
    for one, other in zip(
        torch.autograd.grad(plain, (q, k, v), up),
        torch.autograd.grad(masked, (q, k, v), up),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert own(None, None).plainly_causal
    assert own(max(LENGTHS), None).plainly_causal
    assert not own(max(LENGTHS) - 1, None).plainly_causal
    assert not own(None, 30.0).plainly_causal
