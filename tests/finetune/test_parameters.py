"""What each method trains: how much, and where; bottleneck adapters are saved and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from fttt.config import SETTINGS
from fttt.errors import UsageError
from fttt.finetune.packing import PackedPasses, SampleGroup
from fttt.finetune.parameters import (
    add_adapters,
    count_trained,
    load_adapters,
    on_meta,
    prefix_encoder,
    prepare,
    save_adapters,
)
from fttt.testing import tiny_model
from fttt.training import GoldExample

LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip
COUNTS = {
    "full": 8_030_261_248,
    "lora": 1_703_936,
    "adapter": 134_496_256,
    "ia3": 524_288,
    "ln-tuning": 266_240,
    "prefix": 136_592_387,
}


@pytest.mark.parametrize("method", COUNTS)
def test_parameters_of_the_shape_of_llama_8b(method: str) -> None:
    assert count_trained(on_meta(LLAMA_8B, SETTINGS[method]())) == COUNTS[method]


def test_the_prefix_encoder_comes_as_near_as_it_can_to_the_published_size() -> None:
    published = 10 * 4096 + 4096 * 512 + 512 + 512 * 262_144 + 262_144
    inner = prefix_encoder(LLAMA_8B, 10)
    sizes = {n: 10 * 1024 + 1025 * n + (n + 1) * 65_536 for n in (inner - 1, inner, inner + 1)}
    assert sizes[inner] == COUNTS["prefix"]
    assert min(sizes, key=lambda n: abs(sizes[n] - published)) == inner


WHERE = {
    "lora": {f"layers.3.self_attn.{p}_proj.lora_{m}" for p in "qv" for m in "AB"},
    "adapter": {
        f"layers.{n}.{s}.bottleneck.{part}"
        for n in range(4)
        for s in ("self_attn", "mlp")
        for part in ("down", "up")
    },
    "ia3": {
        f"layers.{n}.{s}.ia3_l"
        for n in range(4)
        for s in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    },
    "ln-tuning": {
        f"layers.{n}.{s}_layernorm.ln_tuning_layers"
        for n in range(4)
        for s in ("input", "post_attention")
    }
    | {"norm.ln_tuning_layers"},
    "prefix": {"prompt_encoder.embedding", "prompt_encoder.transform"},
}


@pytest.mark.parametrize("method", WHERE)
def test_a_gradient_arises_where_the_method_learns_and_nowhere_else(method: str) -> None:
    loaded = tiny_model(layers=4)
    before = {n: p.clone() for n, p in loaded.model.named_parameters()}
    plain = loaded.model
    model = prepare(plain, SETTINGS[method]())
    model.train()
    group = SampleGroup((GoldExample("a", (5, 6, 7), (8, 9, 2)),))
    with PackedPasses(model) as packed:
        group.loss(packed(model, group)).backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    for name in with_gradient:
        assert any(place in name.replace(".default", "") for place in WHERE[method]), name
    for place in WHERE[method]:
        assert any(place in name.replace(".default", "") for name in with_gradient), place
    own = {p.data_ptr() for n, p in model.named_parameters() if n in with_gradient}
    assert not own & {p.data_ptr() for n, p in plain.named_parameters() if n in before}


def test_a_fresh_prefix_and_other_fresh_weights_are_float32_beside_a_half_model() -> None:
    for method in WHERE:
        model = prepare(tiny_model().model.to(torch.bfloat16), SETTINGS[method]())
        for parameter in model.parameters():
            wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
            assert parameter.dtype == wanted


@pytest.mark.parametrize("method", ["lora", "adapter", "ia3"])
def test_an_architecture_that_cannot_take_a_method_is_refused(method: str) -> None:
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(UsageError, match=f"'gpt2' cannot take the method '{method}'"):
        on_meta(config, SETTINGS[method]())


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
