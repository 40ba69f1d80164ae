"""Tiny random models with a tokenizer of bytes, and weight changes that need no trained network.

Every decoder family that ``transformers`` has can be made, by its model type. Sizes go by the names
that configurations have for them; what a family needs beside is in ``MORE``. Numbers that a fresh
model has all alike (norms, biases, sinks) are drawn as well, so that leaving one out would be seen.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fttt.models.chat import ChatFormat
from fttt.models.loader import LoadedModel
from fttt.testing.templates import TEMPLATES

if TYPE_CHECKING:
    from torch import Tensor

    from fttt.engine.adapters.delta import Factors

__all__ = [
    "fake_model",
    "family_types",
    "random_family",
    "save_tiny_model",
    "tiny_model",
    "tiny_tokenizer",
    "uphill",
]

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LOCAL: dict[str, Any] = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
_DELTA: dict[str, Any] = {
    "layer_types": ("linear_attention", "full_attention"),
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_MAMBA2: dict[str, Any] = {
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"head_dim": 8, "sliding_window": None}),
    "qwen": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _LOCAL),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _LOCAL),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", _DELTA),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", {**_DELTA, **_EXPERTS}),
    "lfm2": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {"layer_types": ("conv", "full_attention"), "block_multiple_of": 8},
    ),
    "falcon_h1": (
        "FalconH1Config",
        "FalconH1ForCausalLM",
        {**_MAMBA2, "mamba_d_ssm": 64, "head_dim": 8},
    ),
    "granite_hybrid": (
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {
            **_MAMBA2,
            "layer_types": ("mamba", "attention"),
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
        },
    ),
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 8}),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    ),
    "minimax": (
        "MiniMaxConfig",
        "MiniMaxForCausalLM",
        {
            "layer_types": ("linear_attention", "full_attention"),
            "num_local_experts": 4,
            "block_size": 8,
            "head_dim": 8,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        {
            "block_types": ("recurrent", "attention"),
            "attention_window_size": 16,
            "lru_width": 32,
            "head_dim": 8,
        },
    ),
}


@cache
def tiny_tokenizer(template: str = "chatml") -> Any:
    """A ``transformers`` tokenizer of 259 tokens: 256 bytes and three special ones.

    Args:
        template: a name of :data:`fttt.testing.templates.TEMPLATES`; others than ``chatml`` add up
            to five tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*_SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIAL))
    form = TEMPLATES[template]
    tags = [token for token in form.tokens if "think" in token]  # which stay in decoded text
    core.add_tokens(tags)
    core.add_special_tokens([token for token in form.tokens if token not in tags])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=form.end, pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = form.source
    return tokenizer


def tiny_model(
    family: str = "llama",
    *,
    vocab_size: int = 272,
    layers: int = 2,
    max_context: int = 2048,
    seed: int = 0,
    template: str = "chatml",
) -> LoadedModel:
    """A random model of a family's shape, in float32 on the CPU, ready in milliseconds.

    Args:
        family: ``llama``, ``mistral``, ``qwen`` (2), ``qwen3``, ``gemma`` (1), ``gemma2``,
            ``gemma3``; with layers that carry a state ``qwen3_5``, ``qwen3_next``, ``lfm2``,
            ``falcon_h1``, ``granite_hybrid``, ``jamba``, ``mamba``, ``mamba2``, ``minimax`` or
            ``recurrent_gemma``; or any other model type of ``transformers`` (4 layers, 512
            positions).
        vocab_size: rows of the embedding, at least the tokenizer's 259.
        max_context: positions.
        seed: of the weights.
        template: of its chats, see :func:`tiny_tokenizer`.
    """
    import torch

    tokenizer = tiny_tokenizer(template)
    if vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size must be at least {len(tokenizer)}, not {vocab_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _architecture(family, vocab_size, layers, max_context)
    model.eval().requires_grad_(False)
    return loaded_tiny(f"tiny-{family}", model, max_context, template)


def _architecture(family: str, vocab_size: int, layers: int, max_context: int) -> Any:
    if family in family_types() and family not in _FAMILIES:
        return random_family(family, vocab_size=vocab_size)
    if family not in _FAMILIES:
        raise ValueError(f"No family {family!r}; there are {', '.join(_FAMILIES)}.")
    transformers: Any = import_module("transformers")
    config_name, model_name, more = _FAMILIES[family]
    pattern = more.get("layer_types")
    if pattern:
        more = {**more, "layer_types": [pattern[n % len(pattern)] for n in range(layers)]}
    form = getattr(transformers, config_name)
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_context,
        "initializer_range": 0.3,  # far from ties, so that greedy choices survive rounding
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    known = {field.name for field in fields(form)}  # a model without attention has no heads
    config = form(**{name: own for name, own in shape.items() if name in known}, **more)
    return getattr(transformers, model_name)(config)


def save_tiny_model(folder: Path, family: str = "llama", **shape: Any) -> Path:
    """Write a tiny model as a folder that ``--model`` takes."""
    loaded = tiny_model(family, **shape)
    model: Any = loaded.model
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def fake_model(max_context: int = 4096, template: str = "chatml") -> LoadedModel:
    """A loaded model without weights, for use with a :class:`FakeEngine`."""
    import torch

    return loaded_tiny("fake", torch.nn.Identity(), max_context, template)


def loaded_tiny(name: str, model: Any, max_context: int, template: str = "chatml") -> LoadedModel:
    """A model with the tokenizer of bytes, as a loader would answer it."""
    tokenizer = tiny_tokenizer(template)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer),
        stop_ids=(tokenizer.eos_token_id,),
        max_context=max_context,
        dtype="float32",
        device="cpu",
    )


LAYERS = 4
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 512),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "floor_scale"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    "shared_intermediate_size": 32,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {"num_key_value_heads": 4}
PER_LAYER = {
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 272,
    "hidden_size_per_layer_input": 8,
}
MORE: dict[str, dict[str, Any]] = {
    "axk1": {**LATENT, "qk_head_dim": 16},
    "bailing_hybrid": {
        **LATENT,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_expert_group": 1,
        "layer_group_size": 2,
    },
    "bamba": {**_MAMBA2, "attn_layer_indices": [1, 3]},
    "ctrl": {"dff": 64},
    "dots3_note_text": {**LATENT, "per_layer_config": {}},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 8},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "kimi_linear": {**LATENT, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "longcat_flash": {**LATENT, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "sarvam_mla", "youtu"), LATENT
    ),
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gemma3n_text": {
        **PER_LAYER,
        "laurel_rank": 4,
        "intermediate_size": [64] * LAYERS,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {**PER_LAYER, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": 16},
}
LEFT_OUT = {"falcon": ("head_dim",)}
"""Names that a configuration shows and does not take."""


def family_types() -> dict[str, str]:
    """Every model type that ``transformers`` loads as a causal language model, and its class."""
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    return dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def random_family(model_type: str, *, vocab_size: int = 272, seed: int = 0, **more: Any) -> Any:
    """A tiny random model of a family, in float32 on the CPU.

    Args:
        model_type: as ``config.json`` names it.
        vocab_size: rows of the embedding.
        seed: of the weights.
        more: of the configuration.

    Raises:
        ValueError: with these sizes the family would be no tiny model.
    """
    import torch

    transformers: Any = import_module("transformers")
    kind = getattr(transformers, family_types()[model_type])
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    own = kind.config_class or known
    if own is not known and own in known.sub_configs.values():  # its text model, as it is loaded
        model_type = own.model_type
    config = _config(transformers, model_type, {"vocab_size": vocab_size, **more})
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > 2**21:
        raise ValueError(f"A model of type {model_type!r} would have {size} parameters.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, x in [*model.named_parameters(), *model.named_buffers()]:
                real = x.is_floating_point() and x.numel() and "inv_freq" not in name
                if real and x.min() == x.max():
                    x += 0.2 * torch.randn(x.shape)
    return model.eval().requires_grad_(False)


def _config(transformers: Any, model_type: str, more: dict[str, Any]) -> Any:
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    usual = kind()
    known = {*usual.to_dict(), *usual.attribute_map}
    sizes = {name: size for name, size in SIZES.items() if name in known}
    for other, name in usual.attribute_map.items():  # two names of one size
        if other != name and name in sizes:
            sizes.pop(other, None)
    for name in LEFT_OUT.get(model_type, ()):
        sizes.pop(name, None)
    kinds = list(dict.fromkeys(getattr(usual, "layer_types", None) or ()))
    held = usual.attribute_map.get("layer_types", "layer_types")
    if kinds and not isinstance(getattr(type(usual), held, None), property):
        sizes["layer_types"] = [kinds[n % len(kinds)] for n in range(LAYERS)]
    return kind(**{**sizes, **MORE.get(model_type, {}), **more})


def uphill(factors: Factors, step: float = 3.0) -> dict[str, Tensor]:
    """``step`` times the tanh of each entry of the gradient: large, and each example's own.

    It serves as what :class:`fttt.engine.WeightDeltaSpec` predicts with.
    """
    import torch

    return {
        name: torch.stack(
            [
                step * (one.delta_NO[name].T @ one.x_NI[name].float()).tanh()
                for one in factors.groups(1)
            ]
        )
        for name in factors.x_NI
    }
