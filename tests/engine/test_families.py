"""Families whose attention or positions are unlike Llama's, against their own code and PEFT.

``benchmarks/families.py`` does the same for every family that ``transformers`` has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fttt.engine import BatchedEngine, GenerateRequest, Lesson, LoRASpec, Target, TrainRequest
from fttt.engine.adapters.lora import target_layers
from fttt.engine.cache import read_heads
from fttt.engine.selfcheck import find_difference
from fttt.errors import UsageError
from fttt.models import LoadedModel
from fttt.testing.tiny_models import loaded_tiny, random_family

FAMILIES = (
    *("gpt_oss", "gemma3n_text", "gemma4_text", "llama4_text", "deepseek_v3", "mimo_v2_flash"),
    *("bloom", "mpt", "falcon", "opt", "gpt2", "gptj", "gpt_neo", "stablelm", "nemotron", "afmoe"),
)
PROMPTS = (tuple(range(70, 110)), tuple(range(80, 85)), (90,))
NEW = 12


def tokens(model: Any, batch_size: int) -> list[tuple[int, ...]]:
    async def main() -> list[tuple[int, ...]]:
        loaded = loaded_tiny("tiny", model, 512)
        engine = BatchedEngine(loaded, max_length=64, concurrency=3, batch_size=batch_size)
        try:
            requests = [GenerateRequest(p, NEW, stop_ids=(2,)) for p in PROMPTS]
            return [a.token_ids for a in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_its_own_code(family: str) -> None:
    model = random_family(family)
    assert find_difference(model) is None
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
            pad_token_id=0, eos_token_id=2,
        )  # fmt: skip
        expected.append(tuple(out[0, len(prompt) :].tolist()))
    assert tokens(model, 1) == expected
    assert tokens(model, 3) == expected


def test_a_model_without_linear_layers_takes_no_adapter() -> None:
    with pytest.raises(UsageError, match="can carry low-rank weights"):
        target_layers(random_family("gpt2"), LoRASpec(targets=("all-linear",)))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_the_first_loss_of_a_train_step_is_that_of_its_own_code(family: str) -> None:
    model = random_family(family)
    target = tuple(range(100, 110))
    spec = LoRASpec(targets=("all-linear",), dropout=0.0)

    async def main() -> tuple[tuple[int, ...], float]:
        engine = BatchedEngine(
            loaded_tiny("tiny", model, 512), max_length=64, concurrency=1, batch_size=1,
            adapter=spec,
        )  # fmt: skip
        slot = await engine.open_adapter(spec, seed=0)
        answer = await engine.generate(
            GenerateRequest(PROMPTS[0], NEW, stop_ids=(2,), adapter=slot, keep=True)
        )
        assert answer.kept is not None
        trained = await engine.train(
            TrainRequest(slot, (Lesson(answer.kept, (Target(target, (0.1,) * 10),)),))
        )
        slot.close()
        await engine.close()
        return answer.token_ids, trained.loss

    answer, loss = asyncio.run(main())
    ids = torch.tensor([PROMPTS[0] + answer + target])
    log_TV = model(ids, use_cache=False).logits[0, -11:-1].log_softmax(-1)
    own = -float(log_TV.gather(1, torch.tensor(target)[:, None]).mean())
    assert loss == pytest.approx(own, rel=1e-4)


def test_layers_that_share_keys_hold_them_once() -> None:
    heads = read_heads(random_family("gemma3n_text"))
    assert [heads[layer].owner for layer in range(4)] == [0, 1, 0, 1]
    sizes = {own.key_dim for own in read_heads(random_family("gemma4_text")).values()}
    assert sizes == {8, 16}


TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "proportional": {"factor": 2.0},
}
SHORT, LONG = tuple(range(60, 70)), tuple(range(100, 180))


def rotary(kind: str) -> LoadedModel:
    """A Llama of that rotary type, whose frequencies change past 32 tokens where they do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.3,
        max_position_embeddings=32 if kind == "dynamic" else 128, pad_token_id=0, eos_token_id=2,
        rope_parameters={"rope_type": kind, "rope_theta": 1000.0, **TYPES[kind]},
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return loaded_tiny(f"rotary-{kind}", model, 128)


def answers(loaded: LoadedModel, requests: list[GenerateRequest]) -> list[Any]:
    async def main() -> list[Any]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=8)
        try:
            return list(await asyncio.gather(*map(engine.generate, requests)))
        finally:
            await engine.close()

    return asyncio.run(main())


def test_every_type_that_the_library_has_is_tried() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(TYPES) - {"default"} == set(ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize("kind", TYPES)
def test_a_short_answer_does_not_depend_on_a_long_neighbour(kind: str) -> None:
    short = GenerateRequest(SHORT, 12, logprobs=True)
    long = GenerateRequest(LONG, 12, logprobs=True)
    alone = [answers(rotary(kind), [request])[0] for request in (short, long)]
    together = answers(rotary(kind), [short, long])
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_greedy_tokens_past_the_change_equal_those_of_transformers(kind: str) -> None:
    for prompt in (SHORT, LONG):
        model = rotary(kind).model  # the library's modules remember the last length
        ids = torch.tensor([prompt])
        if kind == "longrope":  # all tokens by the frequencies of the length that is reached
            wanted = list(prompt)
            for _ in range(40):
                wanted.append(int(model(torch.tensor([wanted])).logits[0, -1].argmax()))
            expected = tuple(wanted[len(prompt) :])
        else:
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40,
                min_new_tokens=40,
            )  # fmt: skip
            expected = tuple(out[0, len(prompt) :].tolist())
        got = answers(rotary(kind), [GenerateRequest(prompt, 40)])[0]
        if kind != "longrope" and 2 in got.token_ids:
            end = got.token_ids.index(2)
            assert got.token_ids[:end] == expected[:end]
        else:
            assert got.token_ids == expected


def test_a_step_past_the_change_reads_keys_of_the_whole_length() -> None:
    """The loss of a target that takes a short context past the change is the model's own."""
    loaded = rotary("longrope")
    spec = LoRASpec(dropout=0.0)
    target = tuple(range(70, 80))

    async def main() -> tuple[float, tuple[int, ...]]:
        engine = BatchedEngine(loaded, max_length=128, concurrency=2, adapter=spec)
        slot = await engine.open_adapter(spec, seed=0)
        answer = await engine.generate(GenerateRequest(SHORT, 20, adapter=slot, keep=True))
        assert answer.kept is not None
        step = await engine.train(
            TrainRequest(slot, (Lesson(answer.kept, (Target(target, (0.1,) * 10),)),))
        )
        await engine.close()
        return step.loss, SHORT + answer.token_ids

    loss, context = asyncio.run(main())
    assert len(context) <= 32 < len(context + target)
    logits = (
        rotary("longrope").model(torch.tensor([context + target])).logits[0, len(context) - 1 :]
    )
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(target))
    assert loss == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_paused_sequence_has_the_frequencies_that_it_had(
    kind: str, paged: Callable[..., None]
) -> None:
    """Also where it is resumed beyond the change, and where samples of one prompt get there."""
    asked = [GenerateRequest((*SHORT, n), 90, 0.9, 0.95, n) for n in range(5)]
    asked += [replace(asked[0], noise_key=key) for key in (8, 9)]
    paged(None)
    expected = [answer.token_ids for answer in answers(rotary(kind), asked)]
    paged(4)
    assert [answer.token_ids for answer in answers(rotary(kind), asked)] == expected
    paged(4, 37)  # one sequence of full length, and little more
    assert [answer.token_ids for answer in answers(rotary(kind), asked)] == expected
