"""Bottleneck adapters: where they sit, that they begin as nothing, and that they come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.errors import UsageError
from fttt.finetune.adapter import add_adapters, load_adapters, save_adapters
from fttt.testing import tiny_model

IDS = torch.tensor([[5, 7, 9, 11, 13, 17]])


def shake(adapters: dict[str, torch.nn.Module]) -> None:
    """Weights far from zero."""
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters.values():
        for weight in adapter.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3


def watch(layer: Any) -> dict[str, torch.Tensor]:
    """What a layer's attention and MLP give out, as far as the hooks that are there already."""
    seen: dict[str, torch.Tensor] = {}
    layer.mlp.register_forward_hook(lambda m, i, o: seen.update(mlp=o))
    layer.self_attn.register_forward_hook(lambda m, i, o: seen.update(attention=o[0]))
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_an_untrained_adapter_changes_nothing_and_a_trained_one_follows_each_sublayer(
    family: str,
) -> None:
    model = tiny_model(family).model
    plain = model(IDS).logits
    layer = model.model.layers[0]
    before = watch(layer)
    adapters = add_adapters(model, 4)
    assert len(adapters) == 4
    assert {p.shape for p in layer.mlp.bottleneck.parameters()} == {(8, 32), (8,), (32, 8), (32,)}
    assert torch.equal(model(IDS).logits, plain)

    shake(adapters)
    after = watch(layer)
    assert not torch.allclose(model(IDS).logits, plain)
    for part, sublayer in (("attention", layer.self_attn), ("mlp", layer.mlp)):
        a, h = sublayer.bottleneck, before[part]
        inner = (h @ a.down.weight.T + a.down.bias).clamp(min=0)
        torch.testing.assert_close(after[part], h + inner @ a.up.weight.T + a.up.bias)


def test_saved_adapters_come_back_and_fit_their_own_model_only(tmp_path: Path) -> None:
    model = tiny_model().model
    shake(add_adapters(model, 4))
    save_adapters(model, tmp_path, "tiny", 4)
    again = tiny_model().model
    load_adapters(again, tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    with pytest.raises(UsageError, match="does not fit"):
        load_adapters(tiny_model(layers=3).model, tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_adapters(tiny_model().model, tmp_path / "nowhere")
