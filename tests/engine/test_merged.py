"""Products of several layers at once, against the layers one by one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fttt.engine import BatchedEngine, GenerateRequest, Lesson, LoRASpec, Target, TrainRequest
from fttt.engine import linear as linear_module
from fttt.engine.families import Replacements
from fttt.engine.merged import merged_linears
from fttt.testing import tiny_model
from fttt.testing.tiny_models import random_family


@pytest.mark.parametrize("family", ["llama", "qwen", "qwen3", "gemma3"])
def test_a_model_computes_the_same_with_fewer_products(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family).model
    ids = torch.arange(5, 17)[None]
    products: list[int] = []
    linear = nn.functional.linear

    def counted(x: Any, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        products.append(len(weight))
        return linear(x, weight, bias)

    with torch.no_grad():
        before = model(ids).logits
        merged = Replacements(merged_linears(model))
        monkeypatch.setattr(nn.functional, "linear", counted)
        model(ids)
        apart = len(products)
        merged.enable()
        inside = model(ids).logits
        merged.disable()
    layers = model.config.num_hidden_layers
    assert len(merged) == 5 * layers
    assert len(products) - apart == apart - 3 * layers
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(ids).logits, before)


def test_weights_are_views_of_one_tensor_and_are_saved_as_ever(tmp_path: Path) -> None:
    model = tiny_model("qwen").model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    attention = model.model.layers[0].self_attn
    merged_linears(model)
    place = attention.q_proj.weight.data_ptr()
    stores = {getattr(attention, n).weight.untyped_storage().data_ptr() for n in
              ("q_proj", "k_proj", "v_proj")}  # fmt: skip
    assert len(stores) == 1
    merged_linears(model)  # a second engine finds them so
    assert attention.q_proj.weight.data_ptr() == place
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])
        assert torch.equal(again[name], before[name])


def test_weights_that_were_changed_or_moved_count() -> None:
    model = tiny_model().model
    ids = torch.arange(5, 17)[None]
    merged = Replacements(merged_linears(model))
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    with torch.no_grad():
        first.k_proj.weight.mul_(-1.5)
        second.v_proj.weight.data = second.v_proj.weight.data * 2
        expected = model(ids).logits
        merged.enable()
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
        merged.disable()


def test_layers_that_are_trained_shared_watched_or_of_other_inputs_run_alone() -> None:
    model = tiny_model().model
    one, two = model.model.layers[:2]
    one.self_attn.q_proj.weight.requires_grad_()
    two.self_attn.k_proj.weight = two.self_attn.v_proj.weight
    one.mlp.up_proj.register_forward_pre_hook(lambda *_: None)
    assert {layer for layer, *_ in merged_linears(model)} == {two.mlp.gate_proj, two.mlp.up_proj}

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3 = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w1(x) + self.w3(x + 1)

    crossed = Crossed().requires_grad_(False)
    x = torch.randn(3, 8)
    expected = crossed(x)
    merged = Replacements(merged_linears(crossed))
    merged.enable()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(crossed(x), expected)


def test_parts_may_be_changed_in_place_and_have_a_gradient() -> None:
    """As OLMo clips what its attention is given."""

    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3 = nn.Linear(8, 4), nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.w1(x).clamp_(-0.3, 0.3), self.w3(x) * 2], -1)

    model = Clipped().requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    up = torch.randn(3, 10)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected, x, up)
    merged = Replacements(merged_linears(model))
    merged.enable()
    found = model(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, up)[0], gradient)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3n_text"])
def test_adapters_learn_and_answer_as_without(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LoRASpec(rank=4, alpha=8, lr=1e-2, targets=("q_proj", "v_proj", "up_proj"))

    def answers() -> list[Any]:
        from fttt.testing.tiny_models import loaded_tiny

        tiny = family in {"llama", "qwen3"}
        loaded = tiny_model(family) if tiny else loaded_tiny(family, random_family(family), 512)

        async def question(engine: BatchedEngine, n: int) -> list[Any]:
            slot = await engine.open_adapter(spec, seed=n)
            seen: list[Any] = []
            target = Target(tuple(range(40, 45)), (0.2,) * 5)
            for trial in range(3):
                answer = await engine.generate(
                    GenerateRequest(
                        tuple(range(20, 30 + n)), 8, 0.8, 0.9, 7 * n + trial,
                        adapter=slot, keep=True,
                    )
                )  # fmt: skip
                assert answer.kept is not None
                trained = await engine.train(TrainRequest(slot, (Lesson(answer.kept, (target,)),)))
                seen += [answer.token_ids, round(trained.loss, 4)]
            slot.close()
            return seen

        async def main() -> list[Any]:
            engine = BatchedEngine(loaded, max_length=64, concurrency=3, adapter=spec)
            try:
                return list(await asyncio.gather(*(question(engine, n) for n in range(3))))
            finally:
                await engine.close()

        return asyncio.run(main())

    merged = answers()
    monkeypatch.setattr(linear_module, "merged_linears", lambda model, product: [])
    assert answers() == merged
