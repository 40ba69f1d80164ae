"""Training against PEFT and ``torch.optim.AdamW``, one question at a time."""

import asyncio
import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
    adapters,
    trainer,
)
from fttt.engine.batch import by_length
from fttt.engine.request import Kept
from fttt.errors import RunError
from fttt.models import LoadedModel
from fttt.testing import tiny_model
from fttt.types import Teacher

SPEC = LoRASpec(dropout=0.0, lr=1e-2, weight_decay=0.01)
PROMPTS = ("Hello", "What is 2 + 2?", "A longer question with more words.", "Hi!", "And one more")
FEEDBACK = ("Your answer is incorrect.", "No.", "Wrong again, think.")


class Alone:
    """The published procedure for one question: PEFT, a cache, torch's AdamW, batch size 1."""

    def __init__(self, loaded: LoadedModel, factors: list[tuple[Any, Any]]) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=SPEC.rank, lora_alpha=int(SPEC.alpha), target_modules=list(SPEC.targets)
        )
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
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=SPEC.lr, betas=SPEC.betas, eps=SPEC.eps, weight_decay=SPEC.weight_decay
        )

    def greedy(self, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        ids = list(prompt)
        self.model.eval()
        for _ in range(tokens):
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
        return tuple(ids[len(prompt) :])

    def step(self, context: tuple[int, ...], targets: list[tuple[int, ...]]) -> float:
        """Mean cross-entropy of each target after the cached context, summed; one update."""
        self.model.train()
        loss = torch.zeros(())
        for target in targets:
            with torch.no_grad():
                cache = self.model(torch.tensor([context[:-1]]), use_cache=True).past_key_values
            ids = torch.tensor([context[-1:] + target])
            logits = self.model(ids[:, :-1], past_key_values=cache).logits[0]
            loss = loss + torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def target(loaded: LoadedModel, text: str) -> Target:
    ids = loaded.chat.turn_ids(text, answer=False)
    return Target(ids, (1 / len(ids),) * len(ids))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen", "gemma", "gemma3"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "replayed"])
def test_eight_updates_equal_peft_and_adamw_one_question_at_a_time(
    family: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:  # long and short feedback apart, in passes of their own
        monkeypatch.setattr(trainer, "_WORTH_A_PASS", 0)
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
            assert alone.greedy(prompt, 6 + n) == attempts[n][u]
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
        return trainer.worth_padding(padded, own, tokens)

    parts = by_length(lengths, fits)
    assert sorted(n for part in parts for n in part) == list(range(len(lengths)))
    for part in parts:
        assert part == sorted(part)
        own = [lengths[n] for n in part]
        padded = len(own) * max(own)
        assert len(own) == 1 or padded <= 1.25 * min(tokens, sum(own) + trainer._WORTH_A_PASS)


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
    mask = adapters.keep_mask

    def noted(key_B: torch.Tensor, token_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn.append((int(key_B[0]), tuple(token_BT[0].tolist())))
        return mask(key_B, token_BT, *rest)

    monkeypatch.setattr(adapters, "keep_mask", noted)
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

    monkeypatch.setattr("fttt.engine.learner.train_step", no_memory)

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
