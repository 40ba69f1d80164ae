"""OpTune checkpoints on disk and on the Hugging Face hub.

A training folder holds its newest checkpoints as ``step-00000100/`` and so on, each of them
complete:

- ``optune.json``: the model, the edited layers and the settings; read alone, so that a wrong choice
  is refused before any weights are loaded.
- ``network.safetensors``: parameters and running statistics, float32 and float64.
- ``training.json`` and ``training.safetensors``: the state that resuming needs. They are not
  uploaded when a checkpoint is shared.

A checkpoint is written whole or not at all, and checked before it is used. Nothing is pickled, and
importing this module loads no torch.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from fttt.errors import RunError, UsageError
from fttt.files import cannot_write, from_hub, hub_http_error, write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fttt.engine.adapters.delta import Factors
    from fttt.optune.network import OpTuneNetwork

__all__ = [
    "FORMAT",
    "INFO",
    "NETWORK",
    "Ablation",
    "EditedLayer",
    "OpTuneCheckpoint",
    "OpTuneInfo",
    "TrainingState",
    "broken",
    "check_layers",
    "check_training",
    "check_whole",
    "edited_layers",
    "fetch",
    "find_checkpoint",
    "is_hub_name",
    "load_checkpoint",
    "load_training",
    "pull",
    "push",
    "read_info",
    "step_folders",
    "write_checkpoint",
]

STATE = "training.json"
TENSORS = "training.safetensors"
KEPT = 2
"""The number of checkpoints that a training folder keeps."""


@dataclass(frozen=True, slots=True)
class EditedLayer:
    """A linear layer whose weight ``[outputs, inputs]`` OpTune changes."""

    name: str
    """Full name in the model, such as ``model.layers.31.self_attn.q_proj``."""
    inputs: int
    outputs: int

    @property
    def shape(self) -> str:
        """The weight's shape as a network's name: ``4096x1024`` has 4096 outputs."""
        return f"{self.outputs}x{self.inputs}"


@dataclass(frozen=True, slots=True)
class OpTuneCheckpoint:
    """A network and its metadata."""

    info: OpTuneInfo
    network: OpTuneNetwork


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What training needs to resume as if it had never stopped.

    Random numbers need no state: each is drawn from a key that names its seed, epoch and example.
    """

    numbers: Mapping[str, Any]
    """Counts of the optimizer and the schedule, and the position in the data."""
    tensors: Mapping[str, Tensor]
    """The optimizer's moments."""


def write_checkpoint(
    folder: Path, info: OpTuneInfo, network: OpTuneNetwork, state: TrainingState
) -> Path:
    """Add ``step-N`` to a training folder, and delete all but the newest two.

    It is written to a temporary folder, synced to disk and renamed, so a kill or a full disk leaves
    the previous checkpoint whole.

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
        for torn in folder.glob(".step-*.partial"):  # left by a killed process
            shutil.rmtree(torn, ignore_errors=True)
        scratch.mkdir(parents=True)
        for name, content in contents.items():
            write_whole(scratch / name, content)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        before = step_folders(folder)
        there = f"{before[-1].name} is whole" if before else "there is none before it: from step 0"
        advice = f"make room or fix the folder's permissions, then resume with --resume ({there})"
        raise cannot_write(target, error, advice) from error
    for old in step_folders(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(source: str | Path, device: str = "cpu") -> OpTuneCheckpoint:
    """Load a trained network from a folder, or from the hub as ``owner/name``.

    Raises:
        UsageError: there is no such checkpoint, or it is broken or of another kind.
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
    """Refuse a checkpoint that training cannot resume from, without loading it.

    Raises:
        UsageError: a file is missing or broken.
    """
    read_info(source)
    folder = find_checkpoint(source)
    _numbers(folder)
    check_whole(folder, TENSORS)


def load_training(source: str | Path) -> TrainingState:
    """What a training folder's newest checkpoint holds to resume from, on the CPU.

    Raises:
        UsageError: a file is missing or broken.
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

    from fttt.engine.adapters.delta import Factors

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


INFO = "optune.json"
NETWORK = "network.safetensors"
FORMAT = 1

Ablation = Literal["none", "shuffle-attempts", "constant-input"]


@dataclass(frozen=True, slots=True)
class OpTuneInfo:
    """A checkpoint's metadata, the content of ``optune.json``."""

    model: str
    """The model that it was trained for, as ``--model`` named it."""
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
    """The training's whole configuration."""


def find_checkpoint(source: str | Path) -> Path:
    """A checkpoint's folder: ``source`` itself, or the newest checkpoint of a training folder.

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
    """A checkpoint's metadata, without loading its weights.

    Raises:
        UsageError: the folder holds no checkpoint, or one that is broken or of another kind.
    """
    folder = find_checkpoint(source)
    try:
        values = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise UsageError(
                f"The checkpoint {str(folder)!r} has another format than {FORMAT}, the one that "
                "this version of fttt reads; use the version that wrote it."
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
    """Refuse a checkpoint whose weight file is not whole.

    Raises:
        UsageError: the file is missing or cut short.
    """
    from fttt.models.locate import find_fault

    fault = find_fault(folder / name)
    if fault is not None:
        raise UsageError(broken(folder, fault))


def broken(folder: Path, what: str) -> str:
    """The message about a broken checkpoint."""
    return (
        f"The OpTune checkpoint {str(folder)!r} is broken: {what}; restore it from a copy or "
        "train it again."
    )


SHARED = (INFO, NETWORK)
"""The files of a checkpoint that are shared; the optimizer's state is not."""
CARD = "README.md"
_HUB_NAME = re.compile(r"[\w.-]*\w/[\w.-]+")


def is_hub_name(source: str | Path) -> bool:
    """Whether ``source`` has the form ``owner/name`` and there is no folder ``owner`` here."""
    text = str(source)
    return bool(_HUB_NAME.fullmatch(text)) and not Path(text).parent.is_dir()


def fetch(source: str | Path) -> Path:
    """The folder of one checkpoint, found in a local folder or downloaded as ``owner/name``.

    Raises:
        UsageError: there is no checkpoint.
        RunError: the hub could not be reached, or has no such repository.
    """
    return find_checkpoint(pull(str(source)) if is_hub_name(source) else source)


def pull(name: str, revision: str | None = None) -> Path:
    """Download a checkpoint into the hub's cache and return its folder.

    Raises:
        RunError: the hub could not be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    try:
        with from_hub(name):
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*SHARED]))
    except (hub_http_error(), OSError) as error:
        raise RunError(
            f"There is no folder {name!r}, and no OpTune checkpoint could be downloaded by that "
            f"name: {_line(error)}; check the path, or the name and the "
            "connection to the hub."
        ) from error


def push(source: str | Path, name: str, *, private: bool = False) -> str:
    """Upload a checkpoint with a short model card as ``owner/name``; return its address.

    Raises:
        UsageError: ``source`` holds no whole checkpoint.
        RunError: the hub refused it or could not be reached.
    """
    from huggingface_hub import HfApi

    folder, info = find_checkpoint(source), read_info(source)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of the hub; give one of the form owner/name.")
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        with TemporaryDirectory() as scratch:
            for file in SHARED:
                (Path(scratch) / file).write_bytes((folder / file).read_bytes())
            (Path(scratch) / CARD).write_text(_card(info, name), encoding="utf-8")
            commit = api.upload_folder(
                repo_id=name, folder_path=scratch, commit_message=f"OpTune, step {info.step}"
            )
    except (hub_http_error(), OSError) as error:
        raise RunError(
            f"The checkpoint {str(folder)!r} could not be uploaded to {name!r}: "
            f"{_line(error)}; check the name, the connection and the token of "
            "`hf auth login`."
        ) from error
    return str(commit.commit_url)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _card(info: OpTuneInfo, name: str) -> str:
    layers = "\n".join(f"- `{layer.name}` ({layer.shape})" for layer in info.layers)
    return (
        f"---\nlibrary_name: fttt\ntags: [optune, test-time-training]\n---\n\n"
        f"An OpTune network ({info.parameters:,} parameters) for `{info.model}`, trained on "
        f"`{info.task}` for {info.step:,} steps. It predicts a change of these weights from one "
        f"failed attempt:\n\n{layers}\n\n"
        f"```sh\nfttt run optune --model {info.model} --task {info.task} --checkpoint {name}\n```\n"
    )


def edited_layers(
    model: nn.Module, targets: Sequence[str] = ("q_proj", "v_proj"), last: int = 2
) -> tuple[EditedLayer, ...]:
    """The linear layers named ``targets`` in the ``last`` layers of a model, in its own order.

    The model may be on the meta device.

    Raises:
        UsageError: no linear layer has one of the names, or the model has fewer layers.
    """
    linear = _linear_layers(model)
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in targets:
        if target not in known:
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise UsageError(
                f"There is no linear layer {target!r} in this model; {hint} are "
                f"{', '.join(known)}; name some of them with --targets."
            )
    chosen: list[EditedLayer] = []
    for target in targets:
        named = [layer for name, layer in linear.items() if name.rsplit(".", 1)[-1] == target]
        if len(named) < last:
            raise UsageError(
                f"The last {last} layers cannot be edited: the model has {len(named)} linear "
                f"layers {target!r}; give --layers a number from 1 to {len(named)}."
            )
        chosen += named[-last:]
    place = {name: n for n, name in enumerate(linear)}
    return tuple(sorted(chosen, key=lambda layer: place[layer.name]))


def check_layers(layers: Sequence[EditedLayer], model: nn.Module, made_for: str) -> None:
    """Refuse a model that lacks the edited layers, or has them in another shape.

    Args:
        layers: the layers that a checkpoint edits.
        model: the model at hand, which may be on the meta device.
        made_for: the name of the model that the checkpoint was made for.

    Raises:
        UsageError: a layer is missing or has another shape; both shapes are named.
    """
    linear = _linear_layers(model)
    for layer in layers:
        found = linear.get(layer.name)
        if found == layer:
            continue
        here = "has no such linear layer" if found is None else f"has it as {_sides(found)}"
        raise UsageError(
            f"The checkpoint was made for {made_for!r}, where {layer.name!r} is {_sides(layer)}, "
            f"but this model {here}; use it with {made_for!r}, or train one for this model."
        )


def _linear_layers(model: nn.Module) -> dict[str, EditedLayer]:
    from torch import nn

    return {
        name: EditedLayer(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _sides(layer: EditedLayer) -> str:
    return f"{layer.outputs} x {layer.inputs}"
