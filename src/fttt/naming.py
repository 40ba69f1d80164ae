"""What a model, and all that is made with it, is called in the names of files."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["file_name", "model_label"]


def file_name(*parts: str) -> str:
    """The parts joined by ``-``, with ``_`` for what a file's name should not hold."""
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def model_label(model: str) -> str:
    """The last part of a hub name or path, without a GGUF file's suffix."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name or model
