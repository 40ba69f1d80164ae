"""The metadata of a fine-tuned checkpoint, and writing its folder whole or not at all.

A checkpoint folder holds ``finetune.json`` and the weights: ``adapter_config.json`` and
``adapter_model.safetensors`` for everything that is added to a model, or a whole ``transformers``
folder for full fine-tuning. The method and the base model are read from ``finetune.json`` alone,
never guessed from the folder's name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from fttt.errors import RunError, UsageError, first_line
from fttt.files import write_whole

__all__ = [
    "INFO_FILE",
    "METHODS",
    "FinetuneInfo",
    "Method",
    "ModelShape",
    "cannot_save",
    "check_base",
    "model_shape",
    "publish",
    "read_info",
    "write_info",
]

INFO_FILE = "finetune.json"
Method = Literal["full", "lora", "adapter", "ia3", "ln-tuning", "prefix"]
METHODS: tuple[Method, ...] = ("full", "lora", "adapter", "ia3", "ln-tuning", "prefix")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelShape(_Facts):
    """The sizes by which a checkpoint recognises its base model."""

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int


class FinetuneInfo(_Facts):
    """The content of ``finetune.json``: everything about a checkpoint but its weights."""

    format: Literal[1] = 1
    method: Method
    model: str
    """The base model as ``--model`` named it."""
    base_model: str
    """The base model's short name, used in the names of run folders."""
    architecture: ModelShape
    """Of the base model."""
    task: str
    seed: int
    settings: dict[str, Any]
    """The method's settings, resolved."""
    quantize: str | None = None
    """How the base model's weights were quantised as they were read, if they were."""
    step: int = Field(ge=0)
    """Optimizer steps of these weights."""
    epoch: float = Field(ge=0)
    trained_parameters: int
    trained_tokens: int
    """Tokens of solutions that carried a loss, counted once per pass."""
    tokens: int
    """Tokens of prompts and solutions in all passes, without padding."""
    seconds: float
    """Wall time of the training so far, validation and saving included."""
    validation_loss: float | None = None
    """Mean over held-out questions of the solution's mean cross-entropy."""


def model_shape(config: Any) -> ModelShape:
    """Read the sizes of a ``transformers`` config."""
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0))  # none in a state space model
    return ModelShape(
        model_type=str(text.model_type),
        hidden_size=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // (heads or 1)),
        vocab_size=int(text.vocab_size),
    )


def read_info(folder: str | Path) -> FinetuneInfo:
    """Read a checkpoint's metadata without its weights.

    Raises:
        UsageError: the folder is missing, is no checkpoint, or is of another format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            f"There is no checkpoint folder {str(folder)!r}; name one that "
            "`fttt finetune train` wrote."
        )
    file = folder / INFO_FILE
    if not file.is_file():
        inside = sorted(folder.glob(f"checkpoints/*/{INFO_FILE}"), key=_step_of)
        hint = f"its last checkpoint is {str(inside[-1].parent)!r}" if inside else "name another"
        raise UsageError(
            f"The folder {str(folder)!r} holds no finished fine-tuning: there is no {INFO_FILE} "
            f"in it; {hint}."
        )
    try:
        return FinetuneInfo.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else ""
        what = str(error) if first is None else first["msg"]
        raise UsageError(
            f"The file {str(file)!r} cannot be used ({': '.join(filter(None, [where, what]))}); "
            "restore the folder from a copy, or train it again."
        ) from None


def _step_of(file: Path) -> int:
    digits = file.parent.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def write_info(folder: str | Path, info: FinetuneInfo) -> None:
    """Write ``finetune.json``, whole or not at all."""
    file = Path(folder) / INFO_FILE
    text = json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_whole(file, text)


def check_base(info: FinetuneInfo, config: Any, model: str, folder: str | Path) -> None:
    """Refuse a checkpoint that belongs to another model.

    Args:
        info: the checkpoint's metadata.
        config: the ``transformers`` config of the model at hand.
        model: its name, for the error.
        folder: the checkpoint's, for the error.

    Raises:
        UsageError: a size differs; both are named.
    """
    ours, theirs = info.architecture.model_dump(), model_shape(config).model_dump()
    for key, value in ours.items():
        if theirs[key] != value:
            raise UsageError(
                f"The checkpoint {str(folder)!r} was trained on {info.model!r} with {key} {value}, "
                f"but the model {model!r} has {theirs[key]}; give --model {info.model}."
            )


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends.

    ``finetune.json``, which marks a whole checkpoint, moves last. Where writing fails (a full disk,
    say), ``folder`` stays as it was and the temporary folder is deleted.

    Raises:
        RunError: something could not be written.
    """
    beside = folder / ".partial"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        for file in sorted(beside.iterdir(), key=lambda p: p.name == INFO_FILE):
            file.replace(folder / file.name)
    except (OSError, SafetensorError, RuntimeError) as error:
        earlier = any(folder.glob(f"*/checkpoint-*/{INFO_FILE}")) or (folder / INFO_FILE).is_file()
        raise cannot_save(folder, error, earlier=earlier) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def cannot_save(folder: Path, error: Exception, *, earlier: bool) -> RunError:
    """The error of weights that could not be written.

    Args:
        folder: where they should be.
        error: why not.
        earlier: whether a checkpoint was saved before.
    """
    advice = (
        "what was saved earlier is whole: free some space and resume from it with --resume"
        if earlier
        else "nothing was saved before: free some space and train from the first step with --resume"
    )
    return RunError(f"{str(folder)!r} could not be saved ({first_line(error)}); {advice}.")
