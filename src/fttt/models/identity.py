"""Whether two names stand for one model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fttt.errors import UsageError
from fttt.files import model_label
from fttt.models.source import find_model
from fttt.models.weights import size_and_ends

__all__ = ["same_model"]


def same_model(one: str, other: str) -> bool:
    """Whether two names are alike in their last part, or lead to files of the same content.

    The embedded default and its GGUF file are one model, and so are a folder and its copy. The
    content is told by the config, and by the size and both ends of each file of weights. A name may
    be of a model that is not here any more, as a checkpoint's: then it is told by the name alone.

    Args:
        one: as ``--model`` takes it.
        other: likewise.
    """
    if _last_part(one) == _last_part(other):
        return True
    content = _content(one)
    return content is not None and content == _content(other)


def _last_part(name: str) -> str:
    try:
        return find_model(name).name
    except UsageError:
        return model_label(name)


def _content(name: str) -> bytes | None:
    """A digest of the model's files; ``None`` where they are not here."""
    try:
        source = find_model(name)
    except UsageError:
        return None
    if source.kind == "hub":
        return None
    path = Path(source.path)
    digest = hashlib.sha256()
    try:
        if source.kind == "folder":
            digest.update((path / "config.json").read_bytes())
        files = [path] if source.kind == "gguf" else sorted(path.glob("*.safetensors"))
        for file in files:
            size, first, last = size_and_ends(file)
            digest.update(f"{size}".encode() + first + last)
    except OSError:
        return None
    return digest.digest()
