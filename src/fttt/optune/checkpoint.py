"""A trained OpTune network on disk: written whole or not at all, checked before it is used.

A training folder holds its newest checkpoints as ``step-00000100/`` and so on, each of them
complete:

- ``optune.json``: the model that it was made for, the edited layers, the settings; read alone, so
  that a wrong choice is refused before any weights are loaded.
- ``network.safetensors``: parameters and running statistics, float32 and float64.
- ``training.json`` and ``training.safetensors``: what training needs to go on. They stay behind
  when a checkpoint is shared.

Nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fttt.errors import UsageError
from fttt.files import cannot_write, write_whole
from fttt.optune.hub import fetch
from fttt.optune.info import (
    FORMAT,
    INFO,
    NETWORK,
    OpTuneInfo,
    broken,
    check_whole,
    find_checkpoint,
    read_info,
    step_folders,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fttt.engine.factors import Factors
    from fttt.optune.network import OpTuneNetwork

__all__ = [
    "OpTuneCheckpoint",
    "TrainingState",
    "check_training",
    "load_checkpoint",
    "load_training",
    "write_checkpoint",
]

STATE = "training.json"
TENSORS = "training.safetensors"
KEPT = 2
"""Checkpoints that a training folder holds."""


@dataclass(frozen=True, slots=True)
class OpTuneCheckpoint:
    """A network and what is known of it."""

    info: OpTuneInfo
    network: OpTuneNetwork


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What training needs to go on as if it had never stopped.

    Random numbers need no state: each is drawn from a key that names its seed, epoch and example.
    """

    numbers: Mapping[str, Any]
    """The optimizer's and schedule's counts, and the place in the data."""
    tensors: Mapping[str, Tensor]
    """The optimizer's moments."""


def write_checkpoint(
    folder: Path, info: OpTuneInfo, network: OpTuneNetwork, state: TrainingState
) -> Path:
    """Add ``step-N`` to a training folder, and let go of all but the newest two.

    It is written beside its place, synced to disk and renamed, so a kill or a full disk leaves the
    one before it whole.

    Raises:
        RunError: it could not be written.
    """
    from safetensors.torch import save

    target = folder / f"step-{info.step:08d}"
    scratch = folder / f".{target.name}.partial"
    contents = {
        NETWORK: save({**_contiguous(network.state_dict()), **_constant(network)}),
        TENSORS: save(_contiguous(state.tensors)),
        STATE: _json(state.numbers),
        INFO: _json({"format": FORMAT, **asdict(info)}),
    }
    try:
        for torn in folder.glob(".step-*.partial"):  # of a process that was killed
            shutil.rmtree(torn, ignore_errors=True)
        scratch.mkdir(parents=True)
        for name, content in contents.items():
            write_whole(scratch / name, content)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        advice = (
            "make room or fix the folder's permissions, then resume with --resume (the checkpoint "
            "before it is whole)"
        )
        raise cannot_write(target, error, advice) from error
    for old in step_folders(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(source: str | Path, device: str = "cpu") -> OpTuneCheckpoint:
    """Load a trained network from a folder, or from the hub as ``owner/name``.

    Raises:
        UsageError: there is no such checkpoint, or it is torn or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fttt.optune.network import OpTuneNetwork

    folder = fetch(source)
    info = read_info(folder)
    network = OpTuneNetwork(info.layers, rank=info.rank, dropout=info.dropout)
    try:
        tensors = load_file(folder / NETWORK)
        if info.ablation == "constant-input":
            network.constant = _read_constant(info, tensors, device)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())
        raise UsageError(broken(folder, f"{NETWORK} does not fit {INFO} ({first})")) from error
    return OpTuneCheckpoint(info, network.to(device))


def check_training(source: str | Path) -> None:
    """Refuse a checkpoint that training cannot go on from, without loading it.

    Raises:
        UsageError: a file of it is missing or torn.
    """
    read_info(source)
    folder = find_checkpoint(source)
    _numbers(folder)
    check_whole(folder, TENSORS)


def load_training(source: str | Path) -> TrainingState:
    """What a training folder's newest checkpoint holds to go on from, on the CPU.

    Raises:
        UsageError: the files are missing or torn.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = find_checkpoint(source)
    try:
        return TrainingState(_numbers(folder), load_file(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise UsageError(broken(folder, f"{TENSORS} cannot be read ({error})")) from error


def _numbers(folder: Path) -> dict[str, Any]:
    try:
        numbers: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return {"step": numbers["step"], **numbers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(broken(folder, f"{STATE} cannot be read ({error})")) from error


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _constant(network: OpTuneNetwork) -> dict[str, Tensor]:
    """The factors that stand for every example's, where there are some."""
    factors, found = network.constant, {}
    if factors is not None:
        for layer in network.layers:
            found[f"constant.x.{layer.name}"] = factors.x_NI[layer.name].clone()
            found[f"constant.delta.{layer.name}"] = factors.delta_NO[layer.name].clone()
    return found


def _read_constant(info: OpTuneInfo, tensors: dict[str, Tensor], device: str) -> Factors:
    """Take the factors that stand for every example's out of a checkpoint's tensors."""
    import torch

    from fttt.engine.factors import Factors

    names = [layer.name for layer in info.layers]
    x_NI = {name: tensors.pop(f"constant.x.{name}").to(device) for name in names}
    delta_NO = {name: tensors.pop(f"constant.delta.{name}").to(device) for name in names}
    tokens = x_NI[names[0]].shape[0]
    segment_N = torch.zeros(tokens, dtype=torch.int64, device=device)
    return Factors(x_NI, delta_NO, (tokens,), segment_N, torch.zeros(1, device=device))


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
