"""Tiny random models, and a real tokenizer of bytes for them."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fttt.models.chat import ChatFormat
from fttt.models.loader import LoadedModel
from fttt.testing.families import family_types, random_family

__all__ = ["fake_model", "save_tiny_model", "tiny_model", "tiny_tokenizer"]

_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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
def tiny_tokenizer() -> Any:
    """A ``transformers`` tokenizer of 259 tokens: 256 bytes and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*_SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIAL))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_model(
    family: str = "llama",
    *,
    vocab_size: int = 272,
    layers: int = 2,
    max_context: int = 2048,
    seed: int = 0,
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
    """
    import torch

    tokenizer = tiny_tokenizer()
    if vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size must be at least {len(tokenizer)}, not {vocab_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _architecture(family, vocab_size, layers, max_context)
    model.eval().requires_grad_(False)
    return loaded_tiny(f"tiny-{family}", model, max_context)


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


def fake_model(max_context: int = 4096) -> LoadedModel:
    """A loaded model without weights, to stand beside a :class:`FakeEngine`."""
    import torch

    return loaded_tiny("fake", torch.nn.Identity(), max_context)


def loaded_tiny(name: str, model: Any, max_context: int) -> LoadedModel:
    """A model with the tokenizer of bytes, as a loader would answer it."""
    tokenizer = tiny_tokenizer()
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer),
        stop_ids=(tokenizer.convert_tokens_to_ids("<|im_end|>"),),
        max_context=max_context,
        dtype="float32",
        device="cpu",
    )
