"""A model out of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fttt.models.gguf.config import check_architecture, make_config
from fttt.models.gguf.file import GGUFFile, open_gguf
from fttt.models.gguf.tokenizer import (
    chat_template,
    check_tokenizer_kind,
    make_tokenizer,
    stop_ids,
)
from fttt.models.gguf.weights import read_weights, recipes

__all__ = ["check_gguf", "read_config", "read_model", "read_tokenizer"]

_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Settings of generation by the names that GGUF has for them."""


def check_gguf(path: str | Path) -> None:
    """Refuse a file that the metadata alone show to be of no use here.

    Raises:
        UsageError: it is not whole, of an unknown architecture, tokenizer or kind of tensors, or
            has no chat template.
    """
    file = open_gguf(path)
    check_architecture(file)
    check_tokenizer_kind(file)
    if not chat_template(file):
        file.refuse(
            "has no chat template",
            "use an instruction-tuned model, or put a chat_template.jinja beside the file",
        )


def read_config(path: str | Path) -> Any:
    """The ``transformers`` config of a file's model.

    Raises:
        UsageError: its metadata are not understood.
    """
    file = open_gguf(path)
    config = make_config(file)
    for name, value in _special(file).items():
        setattr(config, name, value)
    return config


def read_tokenizer(path: str | Path) -> Any:
    """The ``transformers`` tokenizer of a file, with its chat template.

    Raises:
        UsageError: its metadata are not understood.
    """
    return make_tokenizer(open_gguf(path))


def read_model(path: str | Path, dtype: torch.dtype) -> Any:
    """The ``transformers`` model of a file, on the CPU.

    Raises:
        UsageError: its metadata are not understood, or its tensors are not those of such a model.
    """
    file, config = open_gguf(path), read_config(path)
    auto: Any = import_module("transformers").AutoModelForCausalLM
    with torch.device("meta"):
        outline = auto.from_config(config)
    weights = read_weights(file, recipes(file, config, outline), dtype)
    model: Any = type(outline).from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    for name, value in {**_special(file), **_generation(file)}.items():
        setattr(model.generation_config, name, value)
    return model


def _special(file: GGUFFile) -> Mapping[str, Any]:
    """Ids of special tokens, every one that ends an answer among them."""
    found: dict[str, Any] = {"eos_token_id": list(stop_ids(file)) or None}
    for role in ("bos", "pad"):
        key = {"bos": "bos", "pad": "padding"}[role]
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and number < len(file.metadata["tokenizer.ggml.tokens"]):
            found[f"{role}_token_id"] = int(number)
    return found


def _generation(file: GGUFFile) -> Mapping[str, Any]:
    """How the model's authors sample from it, where the file says so."""
    found = {}
    for name, key in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if value is not None:
            found[name] = value
    return found
