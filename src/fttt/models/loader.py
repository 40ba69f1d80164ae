"""Loads a model, its tokenizer and chat format, on the device and in the precision asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from fttt.errors import RunError, UsageError, first_line
from fttt.files import from_hub
from fttt.models.chat import ChatFormat, check_tokenizer
from fttt.models.gguf.model import read_config, read_model, read_tokenizer
from fttt.models.locate import ModelSource, check_model, check_supported, find_model
from fttt.models.quantized import (
    check_quantized,
    describe_quantized,
    library_config,
    quantized_by,
    settle_layers,
    wanted,
)

__all__ = [
    "DTYPES",
    "LoadedModel",
    "Prefix",
    "context_of",
    "load_config",
    "load_model",
    "model_outline",
    "pick_device",
    "pick_dtype",
    "read_chat",
    "without_bars",
]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
UNBOUNDED = 2**31 - 1
"""Tokens: the context of models without positions, such as Mamba."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values at the start of every sequence, in place of tokens (prefix tuning)."""

    keys: tuple[torch.Tensor, ...]
    """Layer by layer, ``[kv_heads, P, head_dim]``."""
    values: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        """P, the number of positions."""
        return int(self.keys[0].shape[1])


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model, ready to run."""

    name: str
    model: Any
    """A ``transformers`` model, in evaluation mode and frozen."""
    tokenizer: Any
    chat: ChatFormat
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    max_context: int
    """Positions that the model supports, less those of its prefix."""
    dtype: str
    device: str
    prefix: Prefix | None = None
    adapter: Mapping[str, Any] | None = None
    """Metadata of the fine-tuned checkpoint that the weights come from, if any."""
    quantized: str | None = None
    """How the weights are quantised, if they are: ``nf4``, say."""


def load_model(
    name: str, *, dtype: str = "auto", device: str = "auto", quantize: str | None = None
) -> LoadedModel:
    """Load a model by hub name, folder, GGUF file or embedded name.

    Only safetensors and GGUF files are read, and no code that came with a model is run.

    Args:
        name: see :func:`fttt.models.locate.find_model`.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 on a GPU, float32 on
            a CPU.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.
        quantize: quantise the weights as they are read, see :mod:`fttt.models.quantized`.

    Raises:
        UsageError: the model, dtype or device does not exist, or it cannot be quantised so.
        RunError: the model does not fit.
    """
    check_model(name, quantize)
    where = pick_device(device)
    torch_dtype = pick_dtype(dtype, where)
    source = find_model(name)
    chat = _chat_of(source)  # refused before the weights are loaded
    model = _read_weights(source, torch_dtype, where, quantize)
    return LoadedModel(
        name=source.name,
        model=model,
        tokenizer=chat.tokenizer,
        chat=chat,
        stop_ids=_stop_ids(model, chat),
        max_context=context_of(model.config),
        dtype=str(torch_dtype).removeprefix("torch."),
        device=str(where),
        quantized=describe_quantized(model, quantize),
    )


def load_config(name: str) -> Any:
    """The ``transformers`` config of a model, without its weights.

    Raises:
        UsageError: there is no such model.
    """
    from transformers import AutoConfig

    check_model(name)
    source = find_model(name)
    if source.kind == "gguf":
        return read_config(source.path)
    try:
        with from_hub(source.path):
            return AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise UsageError(f"The config of {name!r} cannot be read: {first}") from error


def pick_device(device: str) -> torch.device:
    """Resolve ``auto`` and check that the device exists."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"No device {device!r}; use auto, cpu, cuda or cuda:N.") from None
    if chosen.type not in {"cpu", "cuda"}:
        raise UsageError(f"The device {device!r} is not supported; use auto, cpu, cuda or cuda:N.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"No device {device!r}: this machine shows {torch.cuda.device_count()} GPUs; "
            "use --device auto or --device cpu."
        )
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve ``auto`` to bfloat16 on a GPU and float32 on a CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"No dtype {dtype!r}; use auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def read_chat(name: str) -> ChatFormat:
    """The chat format of a model, whose weights are not loaded.

    Args:
        name: see :func:`fttt.models.locate.find_model`.

    Raises:
        UsageError: there is no such model, or its tokenizer or template cannot be used.
    """
    return _chat_of(find_model(name))


def _chat_of(source: ModelSource) -> ChatFormat:
    """The chat format, checked to preserve text and special tokens."""
    from transformers import AutoTokenizer

    if source.kind == "gguf":
        tokenizer = read_tokenizer(source.path)
    else:
        _check_type(source)
        with _refusals(source), from_hub(source.path):
            tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    chat = ChatFormat(tokenizer)
    check_tokenizer(chat, source.name)
    return chat


def _check_type(source: ModelSource) -> None:
    """Refuse a type that ``transformers`` does not load as a causal language model."""
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    known: Any = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    with _refusals(source), from_hub(source.path):
        config, _ = import_module("transformers").PreTrainedConfig.get_config_dict(source.path)
    check_supported(config, source.name)
    kind = config.get("model_type")
    if kind is None or kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    version = f"transformers {import_module('transformers').__version__}"
    if kind in known:
        raise UsageError(
            f"The model {source.name!r} is of type {kind!r}, which {version} does not load as a "
            "causal language model; docs/models.md names the types that are supported."
        )
    own = ", and its own code is never run" if config.get("auto_map") else ""
    raise UsageError(
        f"The model {source.name!r} is of type {kind!r}, which {version} does not have{own}; "
        "install a later version or choose another model."
    )


def _read_weights(
    source: ModelSource, dtype: torch.dtype, device: torch.device, quantize: str | None
) -> Any:
    """The model on the device, frozen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    more: dict[str, Any] = {}
    try:
        with without_bars(), _refusals(source):
            if source.kind == "gguf":
                check_supported(read_config(source.path).to_dict(), source.name)
                model: Any = read_model(source.path, dtype)
            else:
                with from_hub(source.path):
                    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
                    check_supported(config.to_dict(), source.name)
                    check_quantized(source.name, quantize, config=vars(config))
                    if wanted(quantize):
                        more["quantization_config"] = library_config(str(quantize), dtype)
                    if more or quantized_by(vars(config)):  # each part is packed on its device
                        more["device_map"] = {"": device}
                    model = AutoModelForCausalLM.from_pretrained(
                        source.path,
                        dtype=dtype,
                        use_safetensors=True,
                        trust_remote_code=False,
                        **more,
                    )
                    settle_layers(model, dtype)
        if not more:
            model.to(device)
    except torch.OutOfMemoryError:
        packs = not more and source.kind != "gguf" and dtype != torch.float32
        smaller = "--quantize nf4" if packs else "--dtype bfloat16"
        raise RunError(
            f"The model {source.name!r} in {dtype} does not fit on {device}; "
            f"choose a smaller model, {smaller} or --device cpu."
        ) from None
    model.eval().requires_grad_(False)
    return model


@contextmanager
def _refusals(source: ModelSource) -> Iterator[None]:
    """Turn an error of ``transformers`` about an unreadable model into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        first = first_line(error)
        raise UsageError(f"The model {source.path!r} cannot be loaded: {first}") from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of ``transformers``, since loading and saving take seconds."""
    logging: Any = import_module("transformers.utils.logging")
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _stop_ids(model: Any, chat: ChatFormat) -> tuple[int, ...]:
    """The template's end of turn, and the end tokens of the model's generation settings."""
    stops = set(chat.end_ids)
    settings: Any = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    if isinstance(named, int):
        stops.add(named)
    elif named is not None:
        stops.update(int(i) for i in named)
    if chat.thoughts is not None:  # what ends a thought ends no answer
        stops.difference_update(set(chat.encode(chat.thoughts.closing)) - chat.end_ids)
    if not stops:
        raise UsageError(
            f"The model {model.name_or_path!r} names no end-of-sequence token; "
            "set eos_token_id in its generation_config.json."
        )
    return tuple(sorted(stops))


def context_of(config: Any) -> int:
    """Positions that a model supports, or :data:`UNBOUNDED` without positions."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    most = next(filter(None, (getattr(text, name, None) for name in names)), UNBOUNDED)
    rotary = getattr(text, "rope_parameters", None) or {}
    if rotary.get("rope_type") == "dynamic":  # its frequencies hold for so many times more
        most *= rotary["factor"]
    return int(most)


def model_outline(name: str) -> Any:
    """The ``transformers`` model of that name on the meta device.

    Args:
        name: see :func:`fttt.models.locate.find_model`.

    Raises:
        UsageError: there is no such model, or its configuration cannot be read.
    """
    auto: Any = import_module("transformers").AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(load_config(name), trust_remote_code=False)
