"""Tiny random models of every decoder family that ``transformers`` has, by its model type.

Sizes go by the names that configurations have for them; what a family needs beside is said in
``MORE``. Numbers that a fresh model has all alike (norms, biases, sinks) are drawn as well, so that
leaving one out would be seen.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["family_types", "random_family"]

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
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), LATENT),
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
    config = _config(transformers, model_type, {"vocab_size": vocab_size, **more})
    kind = getattr(transformers, family_types()[model_type])
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
    if kinds:
        sizes["layer_types"] = [kinds[n % len(kinds)] for n in range(LAYERS)]
    return kind(**{**sizes, **MORE.get(model_type, {}), **more})
