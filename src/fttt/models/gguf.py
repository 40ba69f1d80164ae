"""A GGUF file, converted once into a folder of safetensors.

``transformers`` reads GGUF by dequantising every tensor, which takes tens of seconds; the folder
that is kept here loads in about one.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from fttt.errors import UsageError
from fttt.models.cache import cache_folder
from fttt.models.weights import size_and_ends

__all__ = ["convert", "end_of_turn"]

_FORMAT = 1
"""Raise it where the converted files change, so that old caches are not read."""


def convert(file: Path) -> Path:
    """Return the folder of ``file``'s converted copy, writing it first where it is missing.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Raises:
        UsageError: the file cannot be read as a causal language model.
    """
    folder = cache_folder("models") / f"{file.stem}-{_fingerprint(file)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{file.stem}-", dir=folder.parent))
    try:
        _write(file, scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def end_of_turn(tokenizer: object) -> str | None:
    """The special token with which the chat template ends an answer, or ``None``."""
    from fttt.models.chat import ChatFormat

    ids = ChatFormat(tokenizer).end_ids
    if len(ids) != 1:
        return None
    return str(tokenizer.convert_ids_to_tokens(next(iter(ids))))  # type: ignore[attr-defined]


def _write(file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise UsageError(
            f"The GGUF file {str(file)!r} ({file.stat().st_size:,} bytes) cannot be read as a "
            f"causal language model: {str(error).rstrip('.')}; see that it was copied whole."
        ) from error
    token = end_of_turn(tokenizer)
    if token is not None:  # some files name the start of a turn as their end
        tokenizer.eos_token = token
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.eos_token_id = tokenizer.eos_token_id
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    tied = set(model.all_tied_weights_keys)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fingerprint(file: Path) -> str:
    """A name for the content: size, and the first and last mebibyte."""
    size, first, last = size_and_ends(file)
    return hashlib.blake2b(f"{_FORMAT} {size}".encode() + first + last, digest_size=8).hexdigest()
