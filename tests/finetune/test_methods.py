"""What each method trains: how much, and where."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from fttt.config import SETTINGS
from fttt.errors import UsageError
from fttt.finetune.batches import Group, PackedPasses
from fttt.finetune.methods import count_trained, on_meta, prefix_encoder, prepare
from fttt.testing import tiny_model
from fttt.training.gold import GoldExample

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
    group = Group((GoldExample("a", (5, 6, 7), (8, 9, 2)),))
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
