"""Families whose attention or positions are unlike Llama's, against their own code and PEFT.

``benchmarks/families.py`` does the same for every family that ``transformers`` has.
"""

import asyncio
from typing import Any

import pytest
import torch

from fttt.engine import BatchedEngine, GenerateRequest
from fttt.engine.heads import read_heads
from fttt.engine.selfcheck import find_difference
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


def test_layers_that_share_keys_hold_them_once() -> None:
    heads = read_heads(random_family("gemma3n_text"))
    assert [heads[layer].owner for layer in range(4)] == [0, 1, 0, 1]
    sizes = {own.key_dim for own in read_heads(random_family("gemma4_text")).values()}
    assert sizes == {8, 16}
