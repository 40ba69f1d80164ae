"""Layers that carry a state: right alone, packed, decoded, kept, shared and trained on."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.falcon_h1 import modeling_falcon_h1 as mamba2
from transformers.models.mamba import modeling_mamba as mamba

from fttt.engine import (
    BatchedEngine,
    BeamRequest,
    GenerateRequest,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
)
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import KVCache
from fttt.engine.selfcheck import find_difference
from fttt.engine.states import Mixers, mamba2_scan, mamba_scan
from fttt.errors import UsageError
from fttt.models import LoadedModel
from fttt.testing import tiny_model

slow = pytest.mark.slow
FAMILIES = (
    "qwen3_5",
    "lfm2",
    "granite_hybrid",
    "jamba",
    *(
        pytest.param(family, marks=slow)
        for family in ("qwen3_next", "falcon_h1", "mamba", "mamba2", "minimax", "recurrent_gemma")
    ),
)
PROMPTS = ("Hello", "What is 2 + 2?", "A rather longer question, with more words.", "Hi!")
TOKENS = 10


def run(loaded: LoadedModel, work: Callable[[BatchedEngine], Awaitable[Any]], **more: Any) -> Any:
    async def main() -> Any:
        engine = BatchedEngine(loaded, **{"max_length": 160, "concurrency": 8, **more})
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def generated(loaded: LoadedModel, requests: Sequence[GenerateRequest], **more: Any) -> list[Any]:
    async def work(engine: BatchedEngine) -> list[Any]:
        return list(await asyncio.gather(*map(engine.generate, requests)))

    return list(run(loaded, work, **more))


def reference(loaded: LoadedModel, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        eos_token_id=list(loaded.stop_ids),
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_log_probabilities_are_the_models_own(family: str) -> None:
    """With rows that end and others that begin beside those that go on."""
    loaded = tiny_model(family)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS]
    requests = [
        GenerateRequest(p, TOKENS - 3 * (n % 2), stop_ids=loaded.stop_ids, logprobs=True)
        for n, p in enumerate(prompts)
    ]
    together = generated(loaded, requests, batch_size=3)
    for prompt, request, answer in zip(prompts, requests, together, strict=True):
        assert answer.token_ids == reference(loaded, prompt, request.max_new_tokens)
        ids = torch.tensor([prompt + answer.token_ids])
        logits = loaded.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        found = torch.tensor(answer.logprobs)
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)
    assert [a.token_ids for a in generated(loaded, requests[:1])] == [together[0].token_ids]


@pytest.mark.parametrize("family", ["qwen3_5", "jamba", pytest.param("mamba2", marks=slow)])
def test_samples_of_one_prompt_begin_with_its_state(family: str) -> None:
    loaded = tiny_model(family)
    prompt = loaded.chat.prompt_ids(PROMPTS[1])
    requests = [GenerateRequest(prompt, 6 + n, 1.0, 0.95, 77 * n) for n in range(4)]
    together = generated(loaded, requests)
    alone = [generated(loaded, [request])[0] for request in requests]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({a.token_ids[:6] for a in together}) == 4


def test_a_state_is_reused_where_the_whole_of_it_is_the_prompts(prefilled: list[int]) -> None:
    """A state cannot be cut back, so a prompt that leaves the kept one early is run anew."""
    loaded = tiny_model("qwen3_5")
    prompt = loaded.chat.prompt_ids(PROMPTS[2])

    async def talk(engine: BatchedEngine, *, keep: bool) -> list[tuple[int, ...]]:
        said = []
        for cut in (0, 1, 3):
            first = await engine.generate(GenerateRequest(prompt, 8, 0.7, 0.9, 5, keep=True))
            whole = prompt + first.token_ids
            follow = (*whole[: len(whole) - cut], 9, 8, 7)
            held = first.kept if keep else None
            prefilled.clear()
            answer = await engine.generate(GenerateRequest(follow, 6, 0.7, 0.9, cut, reuse=held))
            said.append(answer.token_ids)
            assert prefilled == [4 - cut if keep and cut < 2 else len(follow)]
            assert first.kept is not None
            first.kept.close()
        return said

    kept = run(loaded, lambda engine: talk(engine, keep=True))
    assert kept == run(loaded, lambda engine: talk(engine, keep=False))


@pytest.mark.parametrize("family", ["lfm2", pytest.param("qwen3_5", marks=slow)])
def test_beams_continue_each_others_states(family: str) -> None:
    loaded = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(loaded.model.lm_head.weight.shape, generator=generator)
    loaded.model.lm_head.weight = nn.Parameter(0.3 * head, requires_grad=False)
    stops = (*loaded.stop_ids, *range(60, 80))
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS[:2]] + [(17,)]

    async def work(engine: BatchedEngine) -> Any:
        asked = [BeamRequest(p, 3, 8, stops) for p in prompts]
        return await asyncio.gather(*map(engine.beam, asked))

    for prompt, found in zip(prompts, run(loaded, work, beams=3), strict=True):
        ids = torch.tensor([prompt])
        out = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=3,
            num_return_sequences=3, max_new_tokens=8, pad_token_id=0, eos_token_id=list(stops),
        )  # fmt: skip
        for beam, row in zip(found, out[:, len(prompt) :].tolist(), strict=True):
            end = next((n + 1 for n, token in enumerate(row) if token in stops), len(row))
            assert beam.token_ids == tuple(row[:end])


class Alone:
    """One question's steps by PEFT and torch, over whole sequences without any cache.

    No gradient reaches what lies before a target: there the adapter's outputs are constants, and so
    are all keys, values and states that come of them.
    """

    def __init__(self, loaded: LoadedModel, spec: LoRASpec, factors: list[tuple[Any, Any]]) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=spec.rank, lora_alpha=int(spec.alpha), target_modules=list(spec.targets)
        )
        self.model = get_peft_model(copy.deepcopy(loaded.model), config)
        self.layers = [
            m for m in self.model.modules() if hasattr(m, "lora_A") and len(m.lora_A) > 0
        ]
        with torch.no_grad():
            for layer, (a, b) in zip(self.layers, factors, strict=True):
                layer.lora_A["default"].weight.copy_(a)
                layer.lora_B["default"].weight.copy_(b)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
        )

    def step(self, context: tuple[int, ...], targets: Sequence[Target]) -> float:
        loss = torch.zeros(())
        for target in targets:
            past = (len(context) if target.after is None else target.after) - 1
            ids = torch.tensor([context[: past + 1] + target.token_ids])

            def constant_before(_: nn.Module, __: Any, out: Any, past: int = past) -> Any:
                return torch.cat([out[:, :past].detach(), out[:, past:]], 1)

            hooks = [layer.register_forward_hook(constant_before) for layer in self.layers]
            logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0, past:]
            for hook in hooks:
                hook.remove()
            loss = loss + nn.functional.cross_entropy(logits, ids[0, past + 1 :])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def mean_of(ids: tuple[int, ...], after: int | None = None) -> Target:
    return Target(ids, (1 / len(ids),) * len(ids), after)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("qwen3_5", ("q_proj", "v_proj")),
        ("lfm2", ("q_proj", "in_proj", "out_proj", "w2")),
        ("jamba", ("q_proj", "in_proj", "x_proj")),
        pytest.param("granite_hybrid", ("q_proj", "in_proj"), marks=slow),
        pytest.param("falcon_h1", ("v_proj", "in_proj"), marks=slow),
        pytest.param("qwen3_next", ("v_proj",), marks=slow),
        pytest.param("minimax", ("q_proj", "qkv_proj"), marks=slow),
        pytest.param("recurrent_gemma", ("q_proj", "linear_x"), marks=slow),
        pytest.param("mamba", ("in_proj", "x_proj"), marks=slow),
        pytest.param("mamba2", ("in_proj",), marks=slow),
    ],
)
def test_steps_equal_peft_one_question_at_a_time(family: str, names: tuple[str, ...]) -> None:
    """On a feedback turn, and on the attempt's own tokens, before which a state must be found."""
    loaded = tiny_model(family)
    spec = LoRASpec(dropout=0.0, lr=1e-2, weight_decay=0.01, targets=names)
    prompts = [loaded.chat.prompt_ids(p) for p in PROMPTS[:3]]
    said = [loaded.chat.turn_ids(text, answer=False) for text in ("No.", "Wrong again.")]

    async def question(engine: BatchedEngine, n: int) -> Any:
        slot = await engine.open_adapter(spec, seed=n)
        bank: Any = slot.bank
        before = [(a.clone(), b.clone()) for a, b in bank.factors(slot.index)]
        steps = []
        for update in range(3):
            answer = await engine.generate(
                GenerateRequest(prompts[n], 6 + n, adapter=slot, keep=True)
            )
            whole = prompts[n] + answer.token_ids
            targets = [mean_of(said[update % 2])]
            if update:
                targets.append(mean_of(answer.token_ids, len(prompts[n])))
            if update == 2:
                targets.append(mean_of(whole[len(prompts[n]) + 2 :], len(prompts[n]) + 2))
            context = answer.kept if n < 2 else whole
            assert context is not None
            trained = await engine.train(TrainRequest(slot, (Lesson(context, tuple(targets)),)))
            steps.append((whole, targets, trained.loss))
        after = [(a.clone(), b.clone()) for a, b in bank.factors(slot.index)]
        slot.close()
        return before, steps, after

    async def work(engine: BatchedEngine) -> Any:
        return await asyncio.gather(*(question(engine, n) for n in range(3)))

    for before, steps, after in run(loaded, work, adapter=spec, batch_size=2, concurrency=2):
        alone = Alone(loaded, spec, before)
        for context, targets, loss in steps:
            expected = alone.step(context, targets)
            assert loss == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert steps[0][2] != pytest.approx(steps[2][2])
        for (a, b), layer in zip(after, alone.layers, strict=True):
            own_a, own_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            torch.testing.assert_close(a, own_a.detach(), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(b, own_b.detach(), rtol=1e-3, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=40))
def test_blocks_hold_each_token_once_and_in_order(lengths: list[int]) -> None:
    cache = KVCache.of(tiny_model().model, rows=40, capacity=96)
    pasts = [3 * (n % 2) for n in range(len(lengths))]
    rows = zip(lengths, pasts, strict=True)
    batch = Batch.pack("prefill", [Segment((1,) * n, r, p) for r, (n, p) in enumerate(rows)], cache)
    ran: list[list[int]] = [[] for _ in lengths]
    for block in batch.blocks:
        for n, row, places, begins in zip(
            block.segments, block.row_B.tolist(), block.where_BT.tolist(), block.begins, strict=True
        ):
            assert row == n
            assert begins == (not ran[n] and pasts[n] == 0)
            ran[n] += places
    for n, (end, length) in enumerate(zip(batch.ends, lengths, strict=True)):
        assert ran[n] == list(range(end - length, end))
    assert len(batch.blocks) <= min(len(set(lengths)), max(lengths).bit_length())


def test_a_state_that_stands_elsewhere_is_never_read() -> None:
    model = tiny_model("lfm2").model
    cache = KVCache.of(model, rows=2, capacity=32, mixers=Mixers(model))
    Batch.pack("prefill", [Segment((5, 6, 7), 0, 0)], cache)
    Batch.pack("train", [Segment((8, 9), 0, 3)], cache)
    with pytest.raises(RuntimeError, match="has seen 3 tokens, not 2"):
        Batch.pack("train", [Segment((8, 9), 0, 2)], cache)
    assert KVCache.of(tiny_model().model, rows=2, capacity=32, mixers=Mixers(model)).states
    assert not Mixers(tiny_model().model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_passes_and_finds_a_state_that_leaks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, seed=3).model
    assert find_difference(model) is None
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.setattr(Mixers, "replacements", lambda self, running: [])
    fault = find_difference(model)
    assert fault is not None
    assert "gives log-probabilities" in fault


def test_a_layer_that_carries_a_state_in_another_way_is_refused() -> None:
    class Pair(nn.Module):
        """Asks for a state, and answers with something of another shape."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.own = model.model.layers[0].conv

        def forward(self, hidden_states: Any, past_key_values: Any = None, **_: Any) -> Any:
            if past_key_values is None:
                return self.own(hidden_states)
            past_key_values.update_conv_state(hidden_states.transpose(1, 2), 0)
            return hidden_states[..., :3]

    loaded = tiny_model("lfm2")
    loaded.model.model.layers[0].conv = Pair(loaded.model)
    with pytest.raises(UsageError, match=r"layers\.0\.conv' carries state .*\(1, 2, 3\)"):
        BatchedEngine(loaded, max_length=64)


def test_the_plan_counts_states(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("qwen3_5")
    plan = BatchedEngine(loaded, max_length=64, batch_size=2).plan
    monkeypatch.setattr(Mixers, "row_bytes", 0)
    without = BatchedEngine(loaded, max_length=64, batch_size=2).plan
    # 4 heads of 8 x 8 in float32, and the last 4 inputs of 2 x 16 + 32 channels
    state = 4 * 8 * 8 * 4 + 4 * 64 * 4
    assert plan.cache_bytes - without.cache_bytes == (plan.rows + 1) * state


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40])
def test_a_selective_scan_is_the_librarys_and_goes_on_from_a_state(tokens: int) -> None:
    x, dt, z = (random(2, 6, tokens, seed=s) for s in range(3))
    b, c = (random(2, 4, tokens, seed=s) for s in (3, 4))
    a, more = -random(6, 4).exp(), {"D": random(6), "delta_bias": random(6), "delta_softplus": True}
    expected, last = mamba.mamba_selective_scan(x, dt, a, b, c, z=z, return_last_state=True, **more)
    y, state = mamba_scan(x, dt, a, b, c, None, z=z, **more)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, last)
    parts, state_BIS = [], None
    for part in (slice(0, tokens // 3), slice(tokens // 3, tokens)):
        if part.start < part.stop:
            cut = [t[..., part] for t in (x, dt, b, c, z)]
            y, state_BIS = mamba_scan(
                cut[0], cut[1], a, cut[2], cut[3], state_BIS, z=cut[4], **more
            )
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, -1), expected)
    torch.testing.assert_close(state_BIS, last)


@pytest.mark.parametrize("tokens", [1, 5, 63, 64, 150])
@pytest.mark.parametrize("begins", [True, False])
def test_chunks_of_a_state_space_scan_are_the_librarys(tokens: int, begins: bool) -> None:
    heads, features, groups, size = 6, 5, 2, 4
    x, dt = random(2, tokens, heads, features), random(2, tokens, heads, seed=1)
    b, c = (random(2, tokens, groups, size, seed=s) for s in (2, 3))
    more: dict[str, Any] = {
        "D": random(heads), "dt_bias": random(heads, seed=5), "dt_softplus": True,
        "dt_limit": (0.01, 2.0),
        "initial_states": None if begins else random(2, heads, features, size, seed=6),
    }  # fmt: skip
    a = -random(heads, seed=4).exp()
    expected, last = mamba2.mamba2_chunk_scan(
        x, dt, a, b, c, chunk_size=16, return_final_states=True, **more
    )
    y, state = mamba2_scan(x, dt, a, b, c, chunk_size=16, return_final_states=True, **more)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)
    assert y.is_contiguous()
