"""Training against PEFT and ``torch.optim.AdamW``, one question at a time."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
    ops,
    train_step,
)
from fttt.engine.adapters.lora import LoRABank
from fttt.engine.batch import by_length, cache_keyword
from fttt.engine.cache import KVCache
from fttt.engine.request import Kept
from fttt.errors import RunError, UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model
from fttt.types import Teacher

SPEC = LoRASpec(dropout=0.0, lr=1e-2, weight_decay=0.01)
PROMPTS = ("Hello", "What is 2 + 2?", "A longer question with more words.", "Hi!", "And one more")
FEEDBACK = ("Your answer is incorrect.", "No.", "Wrong again, think.")


def held(model: Any, context: tuple[int, ...]) -> dict[str, Any]:
    """The keys and values of a context, by the name that PEFT's model takes and gives them."""
    name = cache_keyword(model.get_base_model().forward)
    return {name: model(torch.tensor([context]), use_cache=True)[name]}


class Alone:
    """The published procedure for one question: PEFT, a cache, torch's AdamW, batch size 1."""

    def __init__(
        self, loaded: LoadedModel, factors: list[tuple[Any, Any]], spec: LoRASpec = SPEC
    ) -> None:
        from peft import LoraConfig, get_peft_model

        all_linear = spec.targets == ("all-linear",)
        config = LoraConfig(
            r=spec.rank,
            lora_alpha=int(spec.alpha),
            target_modules="all-linear" if all_linear else list(spec.targets),
        )
        self.spec = spec
        self.model = get_peft_model(copy.deepcopy(loaded.model), config)
        self.pairs = [
            (m.lora_A["default"].weight, m.lora_B["default"].weight)
            for m in self.model.modules()
            if hasattr(m, "lora_A")
        ]
        with torch.no_grad():
            for (a, b), (a0, b0) in zip(self.pairs, factors, strict=True):
                a.copy_(a0)
                b.copy_(b0)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps,
            weight_decay=spec.weight_decay,
        )  # fmt: skip

    def likeliest(self, prompt: tuple[int, ...], attempt: tuple[int, ...]) -> tuple[int, ...]:
        """The likeliest token at each place of an attempt: itself, where it is greedy."""
        self.model.eval()
        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + attempt[:-1]])).logits[0, len(prompt) - 1 :]
        return tuple(logits.argmax(-1).tolist())

    def step(self, context: tuple[int, ...], targets: list[tuple[int, ...]]) -> float:
        """Mean cross-entropy of each target after the cached context, summed; one update."""
        self.model.train()
        loss = torch.zeros(())
        for target in targets:
            with torch.no_grad():
                cache = held(self.model, context[:-1])
            ids = torch.tensor([context[-1:] + target])
            logits = self.model(ids[:, :-1], **cache).logits[0]
            loss = loss + torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        if self.spec.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.max_grad_norm)
        self.optimizer.step()
        return float(loss.detach())


def target(loaded: LoadedModel, text: str) -> Target:
    ids = loaded.chat.turn_ids(text, answer=False)
    return Target(ids, (1 / len(ids),) * len(ids))


@pytest.mark.parametrize(
    ("family", "kept"),
    [
        *((family, True) for family in ("llama", "mistral", "qwen", "gemma", "gemma3")),
        *((family, False) for family in ("llama", "gemma3")),
    ],
)
def test_eight_updates_equal_peft_and_adamw_one_question_at_a_time(
    family: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:  # long and short feedback apart, in passes of their own
        monkeypatch.setattr(train_step, "_WORTH_A_PASS", 0)
    loaded = tiny_model(family)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]
    updates = 8

    async def main() -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        # Three slots for five questions: two are reused with fresh weights and moments.
        engine = BatchedEngine(loaded, max_length=200, batch_size=3, concurrency=3, adapter=SPEC)

        async def question(n: int) -> tuple[Any, Any, Any, Any]:
            slot = await engine.open_adapter(SPEC, seed=n)
            before = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
            attempts, losses = [], []
            for u in range(updates):
                request = GenerateRequest(prompts[n], 6 + n, adapter=slot, keep=True)
                answer = await engine.generate(request)
                context: Kept | tuple[int, ...] = prompts[n] + answer.token_ids
                assert answer.kept is not None
                if kept:
                    context = answer.kept
                else:
                    answer.kept.close()
                targets = (target(loaded, FEEDBACK[(n + u) % 3]),)
                if u % 2:
                    targets += (target(loaded, FEEDBACK[n % 3]),)
                trained = await engine.train(TrainRequest(slot, (Lesson(context, targets),)))
                attempts.append(answer.token_ids)
                losses.append(trained.loss)
            after = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
            slot.close()
            return before, attempts, losses, after

        answers = await asyncio.gather(*[question(n) for n in range(len(prompts))])
        await engine.close()
        return tuple(map(list, zip(*answers, strict=True)))  # type: ignore[return-value]

    starts, attempts, losses, ends = asyncio.run(main())
    for n, prompt in enumerate(prompts):
        alone = Alone(loaded, starts[n])
        for u in range(updates):
            assert len(attempts[n][u]) == 6 + n
            assert alone.likeliest(prompt, attempts[n][u]) == attempts[n][u]
            texts = [FEEDBACK[(n + u) % 3]] + ([FEEDBACK[n % 3]] if u % 2 else [])
            ids = [loaded.chat.turn_ids(t, answer=False) for t in texts]
            expected = alone.step(prompt + attempts[n][u], ids)
            assert losses[n][u] == pytest.approx(expected, rel=2e-5, abs=2e-5)
        for (a, b), (a_alone, b_alone) in zip(ends[n], alone.pairs, strict=True):
            torch.testing.assert_close(a, a_alone.detach(), rtol=2e-4, atol=2e-5)
            torch.testing.assert_close(b, b_alone.detach(), rtol=2e-4, atol=2e-5)
        assert losses[n][-1] != losses[n][0]


def steps(
    loaded: LoadedModel, targets: list[Target], spec: LoRASpec = SPEC, neighbours: int = 0
) -> tuple[list[float], torch.Tensor]:
    """Losses of successive steps on one context, and the weights after them."""
    prompt = loaded.chat.prompt_ids("Hello, how are you?")

    async def main() -> tuple[list[float], torch.Tensor]:
        engine = BatchedEngine(loaded, max_length=200, concurrency=neighbours + 1, adapter=spec)
        slots = [await engine.open_adapter(spec, seed=s) for s in range(7, 8 + neighbours)]
        losses = []
        for one in targets:
            requests = [TrainRequest(slots[0], (Lesson(prompt, (one,)),))]
            requests += [
                TrainRequest(s, (Lesson(prompt[: 9 + i], (targets[0],)),))
                for i, s in enumerate(slots[1:])
            ]
            losses.append((await asyncio.gather(*map(engine.train, requests)))[0].loss)
        weights = slots[0].bank.weights_SP[slots[0].index].clone()
        await engine.close()
        return losses, weights

    return asyncio.run(main())


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(64, 2048))
def test_a_pass_pads_little_and_leaves_no_target_out(lengths: list[int], tokens: int) -> None:
    def fits(padded: int, own: int) -> bool:
        return train_step.worth_padding(padded, own, tokens)

    parts = by_length(lengths, fits)
    assert sorted(n for part in parts for n in part) == list(range(len(lengths)))
    for part in parts:
        assert part == sorted(part)
        own = [lengths[n] for n in part]
        padded = len(own) * max(own)
        assert len(own) == 1 or padded <= 1.25 * min(tokens, sum(own) + train_step._WORTH_A_PASS)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"max_grad_norm": 0.5}),
        ("llama", {"max_grad_norm": 1e9, "eps": 1e-3}),
        ("qwen3", {"targets": ("all-linear",), "weight_decay": 0.1, "rank": 3}),
        ("gemma3", {"targets": ("all-linear",), "max_grad_norm": 0.3}),
    ],
)
def test_every_setting_is_that_of_torch_and_peft(family: str, changes: dict[str, Any]) -> None:
    loaded = tiny_model(family)
    spec = replace(SPEC, **changes)
    prompt = loaded.chat.prompt_ids("Hello, how are you?")
    one = [target(loaded, text) for text in FEEDBACK]

    async def main() -> tuple[list[Any], list[float], list[Any]]:
        engine = BatchedEngine(loaded, max_length=200, adapter=spec)
        slot = await engine.open_adapter(spec, seed=3)
        before = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
        losses = [
            (await engine.train(TrainRequest(slot, (Lesson(prompt, (t,)),)))).loss for t in one * 2
        ]
        after = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
        await engine.close()
        return before, losses, after

    before, losses, after = asyncio.run(main())
    alone = Alone(loaded, before, spec)
    assert losses == pytest.approx([alone.step(prompt, [t.token_ids]) for t in one * 2], rel=1e-4)
    for (a, b), (a_alone, b_alone) in zip(after, alone.pairs, strict=True):
        torch.testing.assert_close(a, a_alone.detach(), rtol=1e-3, atol=5e-5)
        torch.testing.assert_close(b, b_alone.detach(), rtol=1e-3, atol=5e-5)


def one_step(
    loaded: LoadedModel,
    lessons: list[Lesson],
    patch: pytest.MonkeyPatch,
    spec: LoRASpec = SPEC,
    **settings: Any,
) -> tuple[tuple[float, ...], torch.Tensor, list[Any]]:
    """Losses, the gradient, and the factors of a step from weights that say something."""
    found: list[torch.Tensor] = []
    update = LoRABank.step

    def noted(bank: Any, slots: Any, gradient_QP: torch.Tensor) -> Any:
        found.append(gradient_QP.clone())
        return update(bank, slots, gradient_QP)

    async def main() -> tuple[tuple[float, ...], list[Any]]:
        engine = BatchedEngine(loaded, max_length=200, adapter=spec, **settings)
        slot = await engine.open_adapter(spec, seed=3)
        generator = torch.Generator().manual_seed(1)
        for _, b in slot.bank.factors(slot.index):
            b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
        factors = [(a.clone(), b.clone()) for a, b in slot.bank.factors(slot.index)]
        trained = await engine.train(TrainRequest(slot, tuple(lessons)))
        assert engine._cache.free == engine.plan.rows
        await engine.close()
        assert trained.loss == pytest.approx(sum(trained.losses))
        return trained.losses, factors

    with patch.context() as patched:
        patched.setattr(LoRABank, "step", noted)
        losses, factors = asyncio.run(main())
    (gradient_QP,) = found
    return losses, gradient_QP[0], factors


PLACES = (5, 9, 5, 30)
TEACHERS = [
    Teacher(((5, 6), (9, 2), (7, 1), (3, 4)), ((0.6, 0.3), (0.2, 0.1), (0.5, 0.5), (0.0, 0.9)),
            (0.1, 0.7, 0.0, 0.1)),
    Teacher(((5,), (9, 2, 1), (7, 1), ()), ((-0.6,), (0.2, -0.1, 0.3), (0.5, -0.5), ()),
            (0.6, -0.4, 0.0, 3.0)),
]  # fmt: skip
FORMS = [
    Target(PLACES, (0.25, -0.5, 0.0, 1.0)),
    Target(PLACES, (0.25,) * 4, after=6),
    Target(PLACES, (0.25, 0.0, 0.5, -0.1), form="unlikelihood"),
    *(Target(PLACES, (0.25, 0.5, 0.1, 1.0), teacher=teacher) for teacher in TEACHERS),
]


def reference(
    loaded: LoadedModel, factors: list[Any], context: tuple[int, ...], one: Target
) -> tuple[float, torch.Tensor]:
    """Loss and gradient in float64, by the formulas as they are written down."""
    wide = replace(loaded, model=copy.deepcopy(loaded.model).double())
    alone = Alone(wide, [(a.double(), b.double()) for a, b in factors])
    model = alone.model.double().eval()
    start = context[: one.after]
    with torch.no_grad():
        cache = held(model, start[:-1])
    ids = torch.tensor([start[-1:] + one.token_ids])
    log_p = model(ids[:, :-1], **cache).logits[0].log_softmax(-1)
    loss = torch.zeros((), dtype=torch.float64)
    for t, (token, weight) in enumerate(zip(one.token_ids, one.weights, strict=True)):
        if one.teacher is not None:
            named = list(one.teacher.token_ids[t])
            tail = 1 - log_p[t, named].exp().sum()
            term = -one.teacher.tail[t] * tail.log()
            for k, w in zip(named, one.teacher.weights[t], strict=True):
                term = term - w * log_p[t, k]
        elif one.form == "unlikelihood":
            term = -(1 - log_p[t, token].exp()).log()
        else:
            term = -log_p[t, token]
        loss = loss + weight * term
    loss.backward()
    first_all_a = [p for kind in zip(*alone.pairs, strict=True) for p in kind]
    parts = [p.grad.flatten() for p in first_all_a if p.grad is not None]
    return float(loss.detach()), torch.cat(parts)


@pytest.mark.parametrize("one", FORMS, ids=["labels", "inside", "unlikely", "teacher", "signed"])
def test_a_form_is_its_formula(one: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    context = tuple(range(40, 52))
    losses, gradient, factors = one_step(loaded, [Lesson(context, (one,))], monkeypatch)
    expected, expected_gradient = reference(loaded, factors, context, one)
    assert losses == pytest.approx([expected], rel=1e-4, abs=1e-6)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_attention_is_computed_again_only_where_its_inputs_have_no_room(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What layers read of the cache is held for the gradient, or read again: the same step."""
    loaded = tiny_model(family)
    lesson = Lesson(tuple(range(40, 52)), tuple(FORMS))
    one_step(loaded, [lesson], monkeypatch)  # the first engine of a model checks it, by passes too
    again: list[bool] = []
    pack = train_step.Batch.pack

    def noted(mode: Any, *rest: Any) -> Any:
        batch = pack(mode, *rest)
        batches.extend([batch] if mode == "train" else [])
        return batch

    steps = []
    for size in (1, 10**12):
        batches: list[Any] = []
        with monkeypatch.context() as patched:
            patched.setattr(train_step.Batch, "pack", noted)
            patched.setattr(KVCache, "read_bytes", size)
            steps.append(one_step(loaded, [lesson], monkeypatch))
        again.append(batches[-1].recompute)  # after those of the check that models get
    assert again == [False, True]
    (losses, gradient, _), (losses_again, gradient_again, _) = steps
    assert losses == pytest.approx(losses_again, rel=1e-5)
    torch.testing.assert_close(gradient, gradient_again, rtol=1e-4, atol=1e-6)


def test_what_is_certain_has_a_finite_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlearning a token that is all but certain, and a teacher that names every token."""
    loaded = tiny_model()
    loaded.model.lm_head.weight.data *= 2e4
    vocabulary = tuple(range(loaded.model.config.vocab_size))
    everything = Teacher((vocabulary,), ((0.0,) * len(vocabulary),), (1.0,))
    targets = [Target((1,), (1.0,), teacher=everything)]
    targets += [Target((token,), (1.0,), form="unlikelihood") for token in vocabulary]
    lesson = Lesson(tuple(range(40, 52)), tuple(targets))
    losses, gradient, _ = one_step(loaded, [lesson], monkeypatch)
    assert losses[0] == max(losses[1:]) == 100
    assert sorted(losses[1:])[:-1] == pytest.approx([0] * (len(vocabulary) - 1))
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_5"])
@pytest.mark.parametrize("tokens", [1024, 16], ids=["at once", "in passes"])
def test_a_groups_gradient_is_the_sum_of_single_ones(
    family: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where lessons have one context, where rows are few, and where one is too long."""
    loaded = tiny_model(family)
    contexts = [tuple(range(40, 52)), tuple(range(30, 37))]
    lessons = [
        Lesson(contexts[0], (FORMS[0], FORMS[3])),
        Lesson(contexts[1], (FORMS[2],)),
        Lesson(contexts[0], (Target(tuple(range(60, 95)), (-0.1,) * 35),)),
        Lesson(contexts[0][:9], (FORMS[1],)),
        Lesson(contexts[1], (FORMS[4],)),
    ]
    monkeypatch.setattr("fttt.engine.memory_plan.TRAIN_TOKENS", tokens)
    losses, gradient, _ = one_step(loaded, lessons, monkeypatch, batch_size=1)
    singles = [
        one_step(loaded, [Lesson(lesson.context, (one,))], monkeypatch)
        for lesson in lessons
        for one in lesson.targets
    ]
    assert losses == pytest.approx([loss for (loss,), _, _ in singles], rel=1e-4, abs=1e-5)
    total = torch.stack([own for _, own, _ in singles]).sum(0)
    scale = float(total.abs().max())
    torch.testing.assert_close(gradient, total, rtol=1e-3, atol=1e-4 * scale)
    again = one_step(loaded, lessons, monkeypatch, batch_size=1)
    assert torch.equal(again[1], gradient)  # in the same order each time


def test_no_pass_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    vocabulary = loaded.model.config.vocab_size
    monkeypatch.setattr("fttt.engine.sequences.LOGIT_BYTES", 4 * vocabulary * 40)  # of 40 tokens
    largest = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (vocabulary,):
                    largest = max(largest, tensor.numel() // vocabulary)
            return out

    ids = tuple(range(3, 153))
    teacher = Teacher(((5, 6),) * 150, ((0.5, 0.2),) * 150, (0.3,) * 150)
    targets = Target(ids, (0.1,) * 150), Target(ids, (0.1,) * 150, None, teacher)
    lessons = [Lesson(ids[:9], targets)]
    with Watched():
        one_step(loaded, lessons, monkeypatch)
    assert largest == 40


def test_a_long_sequence_holds_little_more_than_its_layers_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = tiny_model(layers=6)
    ids = tuple(n % 200 for n in range(180))
    lessons = [Lesson((4, 5), (Target(ids, (0.01,) * 180),))]

    def held(tokens: int) -> int:
        """Numbers that the layers keep for the gradient."""
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        monkeypatch.setattr("fttt.engine.memory_plan.TRAIN_TOKENS", tokens)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            one_step(loaded, lessons, monkeypatch)
        return sum(kept.values())

    assert held(16) < 0.5 * held(1024)


def test_a_copy_goes_on_as_its_source_would() -> None:
    loaded = tiny_model()
    spec = replace(SPEC, dropout=0.3)
    one = target(loaded, FEEDBACK[0])
    prompt = loaded.chat.prompt_ids("Hello")
    lesson = (Lesson(prompt, (one, replace(one, form="unlikelihood"))),)

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, adapter=spec, adapters=3)
        assert engine.adapters == 3
        source = await engine.open_adapter(spec, seed=7)
        await engine.train(TrainRequest(source, lesson))
        twin = await engine.open_adapter(spec, seed=0, copy_of=source)
        for _ in range(2):
            step = await engine.train(TrainRequest(source, lesson))
            same = await engine.train(TrainRequest(twin, lesson))
            assert same.losses == step.losses
        bank = source.bank
        assert torch.equal(bank.weights_SP[source.index], bank.weights_SP[twin.index])
        other = await engine.open_adapter(spec, seed=7)
        assert (await engine.train(TrainRequest(other, lesson))).losses != step.losses
        waiting = asyncio.create_task(engine.open_adapter(spec, 1, copy_of=source))
        await asyncio.sleep(0)
        source.close()
        with pytest.raises(RunError, match="was closed"):
            await waiting
        with pytest.raises(RunError, match="was closed"):
            await engine.open_adapter(spec, 1, copy_of=source)
        with pytest.raises(RunError, match="was closed"):
            await engine.train(TrainRequest(source, lesson))
        elsewhere = BatchedEngine(tiny_model(), max_length=200, adapter=spec)
        with pytest.raises(RunError, match="not an adapter of this engine"):
            await elsewhere.open_adapter(spec, 1, copy_of=twin)
        assert await engine.open_adapter(spec, 1)  # the place was given back
        await elsewhere.close()
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Target((1, 2), (1.0,)), "2 tokens has 1 weights"),
        (Target((), ()), "0 tokens"),
        (Target((1,), (1.0,), after=5), "after 5 of a context's 4"),
        (Target((1,), (1.0,), after=0), "after 0"),
        (Target((1,), (1.0,), teacher=TEACHERS[0]), "teacher of 4 places"),
        (Target((1,) * 2000, (1.0,) * 2000), "lower --max-new-tokens"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(one: Target, said: str) -> None:
    async def main() -> None:
        engine = BatchedEngine(tiny_model(), max_length=200, adapter=SPEC)
        slot = await engine.open_adapter(SPEC, 0)
        with pytest.raises(UsageError, match=said):
            await engine.train(TrainRequest(slot, (Lesson((1, 2, 3, 4), (one,)),)))
        await engine.close()

    asyncio.run(main())


def test_a_step_without_a_target_is_refused_and_the_engine_lives_on() -> None:
    loaded = tiny_model()

    async def main() -> float:
        engine = BatchedEngine(loaded, max_length=100, concurrency=2, adapter=LoRASpec())
        slot = await engine.open_adapter(LoRASpec(), 1)
        for lessons in ((), (Lesson((1, 5, 6), ()),)):
            with pytest.raises(UsageError, match="needs a target"):
                await engine.train(TrainRequest(slot, lessons))
        lesson = Lesson((1, 5, 6), (Target((7, 8), (0.5, 0.5)),))
        loss = (await engine.train(TrainRequest(slot, (lesson,)))).loss
        await engine.close()
        return loss

    assert asyncio.run(main()) > 0


def test_repeated_steps_do_not_grow_their_context() -> None:
    loaded = tiny_model()
    one = target(loaded, FEEDBACK[0])
    losses, _ = steps(loaded, [replace(one)] * 12)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_a_negative_weight_pushes_the_attempt_down() -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello, how are you?")
    reach = prompt[-6:]
    attempt = Target(reach, (-0.2,) * 6, after=len(prompt) - 6)
    losses, _ = steps(loaded, [attempt] * 4)
    assert losses == sorted(losses, reverse=True)  # more negative: less likely each time
    assert losses[0] < 0


def test_zero_weights_carry_no_loss() -> None:
    loaded = tiny_model()
    ids = loaded.chat.turn_ids(FEEDBACK[0], answer=False)
    tail = Target(ids, (0.0,) * (len(ids) - 3) + (1 / 3,) * 3)
    losses, _ = steps(loaded, [tail])
    prompt = loaded.chat.prompt_ids("Hello, how are you?")
    whole = torch.tensor([prompt + ids])
    ce = torch.nn.functional.cross_entropy(loaded.model(whole).logits[0, -4:-1], whole[0, -3:])
    assert losses[0] == pytest.approx(float(ce), rel=1e-5)


def test_a_teacher_of_certainty_is_a_label() -> None:
    loaded = tiny_model()
    plain = target(loaded, FEEDBACK[0])
    places = len(plain.token_ids)
    certain = Teacher(
        tuple((i, 3) for i in plain.token_ids), ((1.0, 0.0),) * places, (0.0,) * places
    )
    taught = replace(plain, teacher=certain)
    (expected,), w0 = steps(loaded, [plain])
    (loss,), w1 = steps(loaded, [taught])
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(w0, w1, rtol=1e-4, atol=1e-5)


def test_dropout_is_the_questions_own_whoever_trains_beside_it() -> None:
    loaded = tiny_model()
    spec = replace(SPEC, dropout=0.3)
    one = target(loaded, FEEDBACK[0])
    alone, w_alone = steps(loaded, [one] * 3, spec)
    beside, w_beside = steps(loaded, [one] * 3, spec, neighbours=4)
    without, _ = steps(loaded, [one] * 3)
    assert beside == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(w_alone, w_beside, rtol=1e-3, atol=1e-5)
    assert alone[1:] != pytest.approx(without[1:], rel=1e-4)


def test_dropout_draws_anew_for_every_layer_token_and_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[int, tuple[int, ...]]] = []
    mask = ops.keep_mask

    def noted(key_B: torch.Tensor, token_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn.append((int(key_B[0]), tuple(token_BT.flatten().tolist())))
        return mask(key_B, token_BT, *rest)

    monkeypatch.setattr(ops, "keep_mask", noted)
    loaded = tiny_model()
    steps(loaded, [target(loaded, FEEDBACK[0])] * 2, replace(SPEC, dropout=0.3))
    keys = list(dict.fromkeys(key for key, _ in drawn))
    assert len(keys) == 2  # of two updates
    for key in keys:
        tokens = [token for own, some in drawn for token in some if own == key]
        assert len(tokens) > len(drawn[0][1])  # of several layers
        assert len(set(tokens)) == len(tokens)


def test_dropout_is_off_while_generating() -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello")

    async def main(dropout: float) -> tuple[int, ...]:
        spec = replace(SPEC, dropout=dropout)
        engine = BatchedEngine(loaded, max_length=200, adapter=spec)
        slot = await engine.open_adapter(spec, seed=1)
        for _, b in slot.bank.factors(slot.index):
            b.fill_(0.05)
        answer = await engine.generate(GenerateRequest(prompt, 30, adapter=slot))
        await engine.close()
        return answer.token_ids

    assert asyncio.run(main(0.0)) == asyncio.run(main(0.5))


def test_a_loss_that_is_not_finite_leaves_its_question_and_spares_the_others() -> None:
    loaded = tiny_model()
    one = target(loaded, FEEDBACK[0])
    bad = replace(one, weights=(float("nan"),) * len(one.weights))

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, concurrency=2, adapter=SPEC)
        slots = [await engine.open_adapter(SPEC, seed=s) for s in (1, 2)]
        bank = slots[0].bank
        before = bank.weights_SP.clone()
        prompt = loaded.chat.prompt_ids("Hello")
        requests = [
            TrainRequest(s, (Lesson(prompt, (t,)),)) for s, t in zip(slots, (bad, one), strict=True)
        ]
        broken, fine = await asyncio.gather(*map(engine.train, requests))
        assert broken.loss != broken.loss
        assert fine.loss == fine.loss
        changed = (bank.weights_SP != before).any(-1).tolist()
        assert changed[slots[0].index] is False
        assert changed[slots[1].index] is True
        await engine.close()

    asyncio.run(main())


def test_no_memory_for_a_train_step_ends_the_run_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = tiny_model()

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("fttt.engine.adapters.lora.train_step", no_memory)

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, concurrency=2, adapter=SPEC)
        slot = await engine.open_adapter(SPEC, seed=1)
        prompt = loaded.chat.prompt_ids("Hello")
        going_on = asyncio.create_task(engine.generate(GenerateRequest(prompt, 150)))
        with pytest.raises(RunError, match="lower --batch-size"):
            await engine.train(TrainRequest(slot, (Lesson(prompt, (target(loaded, "No."),)),)))
        with pytest.raises(RunError, match="ran out of memory"):
            await going_on
        await engine.close()

    asyncio.run(main())


def test_kept_rows_are_given_up_rather_than_block_others() -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello")

    async def main() -> None:
        engine = BatchedEngine(loaded, max_length=200, batch_size=2, concurrency=2, adapter=SPEC)
        slot = await engine.open_adapter(SPEC, seed=3)
        keep = GenerateRequest(prompt, 5, adapter=slot, keep=True)
        first = await engine.generate(keep)
        for _ in range(6):  # more kept rows than there are rows
            await engine.generate(keep)
        assert first.kept is not None
        late = await engine.train(
            TrainRequest(slot, (Lesson(first.kept, (target(loaded, "No."),)),))
        )
        other = await engine.open_adapter(SPEC, seed=3)
        again = await engine.generate(replace(keep, adapter=other))
        assert again.kept is not None
        prompt_after = await engine.train(
            TrainRequest(other, (Lesson(again.kept, (target(loaded, "No."),)),))
        )
        assert late.loss == pytest.approx(prompt_after.loss, rel=1e-5)
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "replayed"])
def test_a_target_may_be_the_whole_conversation(kept: bool) -> None:
    loaded = tiny_model()
    prompt = loaded.chat.prompt_ids("Hello")
    said = loaded.chat.turn_ids("No.", answer=False)

    async def main() -> tuple[float, tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=200, concurrency=2, adapter=SPEC)
        slot = await engine.open_adapter(SPEC, seed=1)
        answer = await engine.generate(GenerateRequest(prompt, 9, adapter=slot, keep=True))
        assert answer.kept is not None
        ids = prompt[1:] + answer.token_ids + said
        whole = Target(ids, (1 / len(ids),) * len(ids), after=1)
        context: Kept | tuple[int, ...] = answer.kept if kept else prompt + answer.token_ids
        trained = await engine.train(TrainRequest(slot, (Lesson(context, (whole,)),)))
        await engine.close()
        return trained.loss, prompt[:1] + ids

    loss, ids = asyncio.run(main())
    whole = torch.tensor([ids])
    logits = loaded.model(whole).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, whole[0, 1:])
    assert loss == pytest.approx(float(expected), rel=1e-5)
