"""A model's shape without its weights, for what must be refused before they are loaded."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from fttt.models.loader import load_config

__all__ = ["model_outline"]


def model_outline(name: str) -> Any:
    """The ``transformers`` model of that name on the meta device.

    Args:
        name: see :func:`fttt.models.source.find_model`.

    Raises:
        UsageError: there is no such model, or its configuration cannot be read.
    """
    auto: Any = import_module("transformers").AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(load_config(name), trust_remote_code=False)
