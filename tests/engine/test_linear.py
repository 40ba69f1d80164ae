"""Linear layers of a CPU, against ``F.linear``."""

from __future__ import annotations

import asyncio

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fttt.engine import BatchedEngine, GenerateRequest
from fttt.engine import linear as linear_module
from fttt.engine.families import Replacements
from fttt.engine.linear import BLOCK, few_row_linear, linear_replacements
from fttt.models import LoadedModel
from fttt.testing import tiny_model
from fttt.testing.tiny_models import loaded_tiny, random_family

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out the weights of layers of any size."""
    monkeypatch.setattr(linear_module, "LEAST", 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 15, 16])
@pytest.mark.parametrize(("outputs", "bias"), [(7, True), (BLOCK + 5, False), (3 * BLOCK, True)])
def test_it_is_a_linear_layer(rows: int, outputs: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(1, rows, 33, generator=generator)
    weight = torch.randn(outputs, 33, generator=generator)
    offset = torch.randn(outputs, generator=generator) if bias else None
    expected = F.linear(x, weight, offset)
    out = few_row_linear(x, weight, offset)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("intel", [True, False])
def test_a_model_computes_the_same_with_it_and_is_itself_again(
    small: None, intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "_is_intel", lambda: intel)
    model = tiny_model("qwen").model
    ids = torch.arange(5, 17)[None]
    before = model(ids).logits
    replaced = Replacements(linear_replacements(model))
    replaced.enable()
    with torch.no_grad():
        for part in (ids, ids[:, :1], ids[:, :2], ids[:, :4]):
            torch.testing.assert_close(
                model(part).logits, before[:, : part.shape[1]], rtol=1e-4, atol=1e-4
            )
    replaced.disable()
    replaced.disable()
    assert torch.equal(model(ids).logits, before)
    assert all("forward" not in vars(m) for m in model.modules())


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_are_laid_out_follow_the_layer(small: None, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 50, bias=bias)).requires_grad_(False)
    layer = model[0]
    replaced = Replacements(linear_replacements(model))
    replaced.enable()

    def check(rows: int) -> None:
        x = torch.randn(1, rows, 33)
        expected = F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        for rows in (0, 1, 3, 16, 40):
            check(rows)
        made = linear_module._made[layer][1]
        check(5)
        assert linear_module._made[layer][1] is made
        layer.weight.mul_(-2)
        check(5)
        layer.weight.data = torch.randn(50, 33)
        check(5)
        assert layer(torch.randn(2, 4, 33)[:, 1:]).shape == (2, 3, 50)
    x = torch.randn(5, 33, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 33))


@needs_onednn
def test_weights_are_held_once_where_they_are_trained_or_memory_is_short(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(model: nn.Sequential) -> int:
        replaced = Replacements(linear_replacements(model))
        replaced.enable()
        with torch.no_grad():
            model(torch.randn(5, 33))
        return sum(layer in linear_module._made for layer in model)

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Linear(33, 50), nn.Linear(50, 20)).requires_grad_(False)

    partly = layers()
    partly[1].weight.requires_grad_()
    assert made(partly) == 1
    room = 4 * (33 * 50 + 50 * 20) * linear_module.PART
    monkeypatch.setattr(linear_module, "free_bytes", lambda device: room - linear_module.PART)
    known = layers()
    assert made(known) == 0
    assert linear_module.second_weights(known) == (0, 0)
    monkeypatch.setattr(linear_module, "free_bytes", lambda device: room)
    assert linear_module.second_weights(known) == (0, room // linear_module.PART)
    assert made(known) == 2
    monkeypatch.setattr(linear_module, "free_bytes", lambda device: 0)
    assert made(known) == 2  # by an engine before
    assert linear_module.second_weights(known) == (room // linear_module.PART, 0)


@pytest.mark.parametrize("family", ["qwen", "deepseek_v3", "gpt_oss"])
def test_answers_are_those_without_another_layout(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(loaded: LoadedModel) -> list[tuple[int, ...]]:
        async def main() -> list[tuple[int, ...]]:
            engine = BatchedEngine(loaded, max_length=64, concurrency=5)
            requests = [GenerateRequest(tuple(range(70, 75 + n)), 10 + n) for n in range(5)]
            try:
                return [a.token_ids for a in await asyncio.gather(*map(engine.generate, requests))]
            finally:
                await engine.close()

        return asyncio.run(main())

    qwen = family == "qwen"
    loaded = tiny_model(family) if qwen else loaded_tiny(family, random_family(family), 512)
    expected = answers(loaded)
    monkeypatch.setattr(linear_module, "LEAST", 1)
    assert answers(loaded) == expected


@pytest.mark.parametrize("intel", [True, False])
def test_few_rows_are_multiplied_as_the_processor_likes(
    intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    few = linear_module.few_row_linear
    monkeypatch.setattr(linear_module, "_is_intel", lambda: intel)
    monkeypatch.setattr(
        linear_module, "few_row_linear", lambda x, *own: taken.append(len(x)) or few(x, *own)
    )
    layer = nn.Linear(32, 24).requires_grad_(False)
    replaced = Replacements(linear_replacements(layer))
    replaced.enable()
    with torch.no_grad():
        for rows in (1, 2, 8, 40):
            x = torch.randn(rows, 32)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    replaced.disable()
    assert taken == ([] if intel else [1, 2, 8])
