"""Models of each family out of a GGUF file, against the models that the files were made of."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fttt.errors import UsageError
from fttt.models.gguf.config import llama3_settings
from fttt.models.gguf.file import open_gguf
from fttt.models.gguf.model import read_config, read_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def agree(path: Any, model: Any, tolerance: float = 2e-5) -> None:
    """Log-probabilities past every window are those of the model that was written."""
    read = read_model(path, torch.float32)
    ids = torch.randint(3, 259, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(ids).logits, read.eval()(ids).logits
    torch.testing.assert_close(
        found.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=tolerance
    )


def experts(name: str, value: Tensor) -> Mapping[str, Tensor]:
    """Experts as the file has them, gates apart from ups."""
    layer = name.split(".")[2] if name.startswith("model.layers") else ""
    block = f"blk.{layer}.ffn_"
    if name.endswith("experts.gate_up_proj"):
        gate, up = value.chunk(2, 1)
        return {f"{block}gate_exps.weight": gate, f"{block}up_exps.weight": up}
    if name.endswith("experts.down_proj"):
        return {f"{block}down_exps.weight": value}
    if name.endswith("mlp.gate.weight"):
        return {f"{block}gate_inp.weight": value}
    if name.endswith("shared_expert_gate.weight"):
        return {f"{block}gate_inp_shexp.weight": value[0]}
    return {name: value}


def oss(name: str, value: Tensor) -> Mapping[str, Tensor]:
    """gpt-oss: experts transposed, gates and ups in turns, sinks."""
    layer = name.split(".")[2] if name.startswith("model.layers") else ""
    block = f"blk.{layer}.ffn_"
    if name.endswith("gate_up_proj"):
        return {
            f"{block}gate_exps.weight": value.mT[:, ::2],
            f"{block}up_exps.weight": value.mT[:, 1::2],
        }
    if name.endswith("gate_up_proj_bias"):
        return {f"{block}gate_exps.bias": value[:, ::2], f"{block}up_exps.bias": value[:, 1::2]}
    if name.endswith("experts.down_proj"):
        return {f"{block}down_exps.weight": value.mT}
    if name.endswith("experts.down_proj_bias"):
        return {f"{block}down_exps.bias": value}
    if ".mlp.router." in name:
        return {f"{block}gate_inp.{name.rpartition('.')[2]}": value}
    if name.endswith("sinks"):
        return {f"blk.{layer}.attn_sinks.weight": value}
    return {name: value}


def lfm2(name: str, value: Tensor) -> Mapping[str, Tensor]:
    return {name: value.squeeze(1) if name.endswith("conv.conv.weight") else value}


FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], Any]] = {
    # architecture, class, its settings, metadata beside the usual, how its tensors are stored
    "llama": ("llama", "Llama", {}, {}, "turned"),
    "llama, tied, wide heads": (
        "llama",
        "Llama",
        {"tie_word_embeddings": True, "head_dim": 16},
        {"rope__dimension_count": 16},
        "turned",
    ),
    "llama with biases": (
        "llama",
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {},
        "turned",
    ),
    "mistral with a window": (
        "llama",
        "Mistral",
        {"sliding_window": 16},
        {"attention__sliding_window": 16},
        "turned",
    ),
    "mixtral": (
        "llama",
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {"expert_count": 4, "expert_used_count": 2, "rope__freq_base": 1e6},
        "turned experts",
    ),
    "qwen2, tied": ("qwen2", "Qwen2", {"tie_word_embeddings": True}, {}, "same"),
    "qwen2, yarn": (
        "qwen2",
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 16.0,
            }
        },
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
            "rope__scaling__yarn_beta_fast": 16.0,
        },
        "same",
    ),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}, {"attention__key_length": 16}, "same"),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {
            "head_dim": 8,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
        },
        {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 16},
        "experts",
    ),
    "qwen2moe": (
        "qwen2moe",
        "Qwen2Moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
        },
        {"expert_count": 8, "expert_used_count": 2},
        "experts",
    ),
    "gemma": ("gemma", "Gemma", {"head_dim": 16}, {"attention__key_length": 16}, "shifted"),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
        {
            "attention__key_length": 16,
            "attention__sliding_window": 16,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        "shifted",
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 16,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        {
            "attention__key_length": 16,
            "attention__sliding_window": 16,
            "rope__freq_base": 1e6,
            "rope__scaling__type": "linear",
            "rope__scaling__factor": 8.0,
        },
        "shifted",
    ),
    "phi3, part of a head turned": (
        "phi3",
        "Phi3",
        {
            "sliding_window": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        {"attention__sliding_window": 16, "rope__dimension_count": 4, "attention__key_length": 8},
        "same",
    ),
    "granite": (
        "granite",
        "Granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.3,
        },
        {
            "attention__scale": 0.2,
            "embedding_scale": 6.0,
            "logit_scale": 4.0,
            "residual_scale": 0.3,
        },
        "turned",
    ),
    "olmo3, windows by a pattern": (
        "olmo2",
        "Olmo3",
        {
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        {
            "attention__sliding_window": 16,
            "attention__sliding_window_pattern": [False, True, False],
            "rope__freq_base": 500_000.0,
        },
        "same",
    ),
    "cohere2": (
        "cohere2",
        "Cohere2",
        {"logit_scale": 0.3, "sliding_window": 16, "num_hidden_layers": 5},
        {"logit_scale": 0.3, "attention__sliding_window": 16},
        "same",
    ),
    "gpt-oss": (
        "gpt-oss",
        "GptOss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150_000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
        {
            "expert_count": 4,
            "expert_used_count": 2,
            "attention__key_length": 16,
            "attention__sliding_window": 16,
            "rope__freq_base": 150_000.0,
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 32.0,
            "rope__scaling__original_context_length": 64,
        },
        oss,
    ),
    "lfm2": (
        "lfm2",
        "Lfm2",
        {
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        {
            "attention__head_count_kv": [0, 2, 0],
            "shortconv__l_cache": 3,
            "rope__freq_base": 1e6,
        },
        lfm2,
    ),
}


def stored(how: Any, workshop: Any, config: Any) -> Any:
    turned = workshop.turned(config)
    ways = {
        "same": None,
        "turned": turned,
        "shifted": workshop.shifted,
        "experts": experts,
        "turned experts": lambda name, value: (
            turned(name, value) if "self_attn" in name else experts(name, value)
        ),
    }
    return ways[how] if isinstance(how, str) else how


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_read_as_it_was_written(workshop: Any, family: str) -> None:
    architecture, kind, settings, metadata, how = FAMILIES[family]
    model = workshop.tiny(kind, **settings)
    change = stored(how, workshop, model.config)
    file = workshop.file(architecture).shape(model.config, **metadata).tokenizer()
    agree(file.weights(model, *([change] if change else [])).write(), model)


def test_llama_3s_scaling_is_read_from_its_divisors(workshop: Any) -> None:
    model = workshop.tiny("Llama", rope_parameters=LLAMA3)
    plain = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    divisors = plain / model.model.rotary_emb.inv_freq
    assert len(divisors.unique()) > 2
    file = workshop.file().shape(model.config, rope__freq_base=10_000.0).tokenizer()
    file.weights(model, workshop.turned(model.config)).tensor("rope_freqs.weight", divisors)
    path = file.write()
    assert read_config(path).rope_parameters["rope_type"] == "llama3"
    agree(path, model, tolerance=1e-3)


def test_factors_for_long_contexts_are_read_from_their_tensors(workshop: Any) -> None:
    short, long = torch.linspace(1, 1.5, 4), torch.linspace(1, 6, 4)
    model = workshop.tiny(
        "Phi3",
        sliding_window=None,
        original_max_position_embeddings=128,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "original_max_position_embeddings": 128,
        },
    )
    scaling = model.model.rotary_emb.attention_scaling
    file = workshop.file("phi3").shape(
        model.config,
        attention__sliding_window=0,
        rope__scaling__original_context_length=128,
        rope__scaling__attn_factor=scaling,
    )
    file.tokenizer().weights(model)
    file.tensor("rope_factors_short.weight", short).tensor("rope_factors_long.weight", long)
    agree(file.write(), model)


def test_an_unknown_architecture_is_named_with_those_that_are_known(workshop: Any) -> None:
    path = workshop.file("rwkv7").tokenizer().write()
    with pytest.raises(UsageError, match=r"architecture 'rwkv7'.*gemma3.*llama.*safetensors"):
        read_config(path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"attention__temperature_length": 10}, "llama.attention.temperature_length = 10"),
        ({"rope__scaling__type": "wave"}, "'wave'.*linear, yarn"),
        ({"attention__causal": False}, "not causal"),
        ({"attention__head_count": [4, 2, 4]}, "different counts of heads"),
        ({"feed_forward_length": [64, 32, 64]}, "different values of intermediate_size"),
        ({"attention__key_length": 8, "rope__dimension_count": 4}, "4 of the 8 values"),
        ({"context_length": None}, "has no llama.context_length"),
    ],
)
def test_metadata_that_are_not_understood_are_refused_and_not_dropped(
    workshop: Any, metadata: dict[str, Any], says: str
) -> None:
    model = workshop.tiny("Llama")
    path = workshop.file().shape(model.config, **metadata).tokenizer().weights(model).write()
    with pytest.raises(UsageError, match=says):
        read_config(path)


def test_tensors_are_all_accounted_for(workshop: Any) -> None:
    model = workshop.tiny("Llama")

    def without(name: str, value: Tensor) -> Mapping[str, Tensor]:
        return {} if name == "model.layers.1.mlp.up_proj.weight" else {name: value}

    def wider(name: str, value: Tensor) -> Mapping[str, Tensor]:
        return {name: torch.cat((value, value)) if name == "model.norm.weight" else value}

    for number, (change, says) in enumerate(
        [
            (without, "lacks the tensor 'blk.1.ffn_up.weight'"),
            (wider, r"'output_norm.weight' the shape \[64\].*\[32\]"),
        ]
    ):
        file = workshop.file(name=f"{number}.gguf").shape(model.config).tokenizer()
        with pytest.raises(UsageError, match=says):
            read_model(file.weights(model, change).write(), torch.float32)
    file = workshop.file(name="more.gguf").shape(model.config).tokenizer().weights(model)
    path = file.tensor("blk.0.attn_gate.weight", torch.ones(3)).write()
    with pytest.raises(UsageError, match=r"'blk\.0\.attn_gate\.weight'.*no use"):
        read_model(path, torch.float32)


def test_layers_that_guess_further_tokens_ahead_are_left_out(workshop: Any) -> None:
    model = workshop.tiny("Llama")
    file = workshop.file().shape(model.config, block_count=4, nextn_predict_layers=1).tokenizer()
    file.weights(model, workshop.turned(model.config))
    path = file.tensor("blk.3.nextn.eh_proj.weight", torch.ones(3)).write()
    agree(path, model)
    assert open_gguf(path).metadata["llama.block_count"] == 4


def divisors(
    base: float, width: int, factor: float, low: float, high: float, trained: int
) -> torch.Tensor:
    """As llama.cpp's converter computes them of a model's settings."""
    out = []
    for n in range(0, width, 2):
        wavelength = 2 * math.pi * base ** (n / width)
        if wavelength < trained / high:
            out.append(1.0)
        elif wavelength > trained / low:
            out.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(out)


@settings(max_examples=200, deadline=None)
@given(
    base=st.sampled_from([10_000.0, 500_000.0]),
    width=st.sampled_from([8, 16, 64, 128]),
    factor=st.floats(1.5, 40),
    low=st.floats(0.5, 2),
    ratio=st.floats(1.5, 8),
    trained=st.sampled_from([64, 256, 2048, 8192]),
)
def test_the_settings_give_the_same_frequencies(
    base: float, width: int, factor: float, low: float, ratio: float, trained: int
) -> None:
    given = divisors(base, width, factor, low, low * ratio, trained)
    found = llama3_settings(given, base, width)
    assert found is not None
    if float(given.max()) == 1:  # a context so long that nothing is divided
        assert found == {}
        return
    again = divisors(
        base,
        width,
        found["factor"],
        found["low_freq_factor"],
        found["high_freq_factor"],
        found["original_max_position_embeddings"],
    )
    torch.testing.assert_close(again, given, rtol=2e-4, atol=0)


def test_the_settings_of_llama_3_are_told_as_they_are() -> None:
    given = divisors(500_000.0, 128, 32.0, 1.0, 4.0, 8192)
    found = llama3_settings(given, 500_000.0, 128)
    assert found == {
        "rope_type": "llama3",
        "factor": pytest.approx(32),
        "low_freq_factor": pytest.approx(1, rel=1e-3),
        "high_freq_factor": pytest.approx(4, rel=1e-3),
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize(
    "given", [[1.0, 3.0, 2.0, 5.0], [0.5, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0]]
)
def test_divisors_of_another_rule_are_not_taken_for_it(given: list[float]) -> None:
    assert llama3_settings(torch.tensor(given), 10_000.0, 8) is None
