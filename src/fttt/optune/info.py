"""What an OpTune checkpoint says of itself, and where it is.

A training folder holds its newest checkpoints as ``step-00000100/`` and so on, each of them a
checkpoint by itself (:mod:`fttt.optune.checkpoint`). Nothing here loads weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fttt.errors import UsageError
from fttt.optune.layers import EditedLayer

__all__ = [
    "FORMAT",
    "INFO",
    "NETWORK",
    "Ablation",
    "OpTuneInfo",
    "broken",
    "check_whole",
    "find_checkpoint",
    "read_info",
    "step_folders",
]

INFO = "optune.json"
NETWORK = "network.safetensors"
FORMAT = 1

Ablation = Literal["none", "shuffle-attempts", "constant-input"]


@dataclass(frozen=True, slots=True)
class OpTuneInfo:
    """What ``optune.json`` says of a checkpoint."""

    model: str
    """The model whose factors it was trained on, as ``--model`` was given."""
    task: str
    layers: tuple[EditedLayer, ...]
    rank: int
    dropout: float
    feedback: str
    """The user's turn after an attempt, the same in training and at test time."""
    step: int
    parameters: int
    ablation: Ablation = "none"
    validation_loss: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that training was asked for."""


def find_checkpoint(source: str | Path) -> Path:
    """The folder of a checkpoint: itself, or the newest of a training folder.

    Raises:
        UsageError: there is none.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(
            f"There is no checkpoint folder {str(source)!r}; name one that `fttt optune train` "
            "wrote."
        )
    found = folder if (folder / INFO).is_file() else next(iter(step_folders(folder)[::-1]), None)
    if found is None:
        raise UsageError(
            f"The folder {str(source)!r} holds no OpTune checkpoint: there is no {INFO} in it and "
            "no step-N folder; name one that `fttt optune train` wrote."
        )
    return found


def read_info(source: str | Path) -> OpTuneInfo:
    """What a checkpoint was made for, without loading it.

    Raises:
        UsageError: the folder holds no checkpoint, or one that is torn or of another kind.
    """
    folder = find_checkpoint(source)
    try:
        values = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise UsageError(
                f"The checkpoint {str(folder)!r} has another format than {FORMAT}, which this "
                "version of fttt reads; use the version that wrote it."
            )
        values["layers"] = tuple(EditedLayer(**layer) for layer in values["layers"])
        info = OpTuneInfo(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(broken(folder, f"{INFO} cannot be read ({error})")) from error
    check_whole(folder, NETWORK)
    return info


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints of a training folder, by step."""
    return sorted(path.parent for path in folder.glob(f"step-*/{INFO}"))


def check_whole(folder: Path, name: str) -> None:
    """Refuse a checkpoint whose file of weights is torn.

    Raises:
        UsageError: it is.
    """
    from fttt.models.weights import find_fault

    fault = find_fault(folder / name)
    if fault is not None:
        raise UsageError(broken(folder, fault))


def broken(folder: Path, what: str) -> str:
    """The sentence of a checkpoint that cannot be used."""
    return (
        f"The OpTune checkpoint {str(folder)!r} is broken: {what}; restore it from a copy or "
        "train it again."
    )
