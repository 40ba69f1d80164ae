"""A model's shape without its weights, for what must be refused before they are loaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fttt.errors import UsageError
from fttt.models.source import check_model, find_model

__all__ = ["model_outline"]


def model_outline(name: str) -> Any:
    """The ``transformers`` model of that name on the meta device.

    Args:
        name: see :func:`fttt.models.source.find_model`.

    Raises:
        UsageError: there is no such model, or its configuration cannot be read.
    """
    transformers: Any = import_module("transformers")
    check_model(name)
    source = find_model(name)
    path = source.path
    if source.kind == "gguf":
        from fttt.models.gguf import convert

        path = str(convert(Path(path)))
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"The model {source.path!r} cannot be loaded: {first}") from error
