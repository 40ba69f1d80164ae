"""Models of stated shapes with random weights, for benchmarks where only the time counts.

The sizes can be read where neither PyTorch nor fttt is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fttt.models import LoadedModel

__all__ = ["SHAPES", "random_loaded", "random_model"]

SHAPES: dict[str, dict[str, int]] = {
    "llama-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def random_model(shape: str, dtype: torch.dtype, device: str) -> Any:
    """Random weights of a shape, as a trainer is given them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SHAPES[shape], bos_token_id=None, eos_token_id=None,
        pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def random_loaded(shape: str, dtype: torch.dtype, device: str) -> LoadedModel:
    """The same, frozen, as the engine is given it."""
    from fttt.models import ChatFormat, LoadedModel
    from fttt.testing import tiny_tokenizer

    model = random_model(shape, dtype, device)
    model.eval().requires_grad_(False)
    tokenizer = tiny_tokenizer()
    return LoadedModel(
        name=f"{shape}-random", model=model, tokenizer=tokenizer, chat=ChatFormat(tokenizer),
        stop_ids=(2,), max_context=SHAPES[shape]["max_position_embeddings"],
        dtype=str(dtype).removeprefix("torch."), device=device,
    )  # fmt: skip
