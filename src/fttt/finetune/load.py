"""Loads a fine-tuned checkpoint as a model that the engine runs.

The folder's ``finetune.json`` says what was trained. Low-rank weights, IA3's vectors and layer
norms are merged into the weights; bottleneck adapters stay modules of their own; a prefix comes
with the model; after full fine-tuning the folder itself is the model.

Where a trained change is small beside the weights, a merge in bfloat16 rounds it away, and so does
adding it to the layer's output. Merged weights are therefore kept as the sum of two half-precision
numbers (:class:`TwoPartLinear`), and one product takes both, so that the sum over the inputs is
rounded once, at its end, as the model's own layers round theirs.

Where the base model's weights are quantised, low-rank weights are added to its layers' outputs
instead (:class:`LowRank`), in float32.

Axes: O outputs and I inputs of a layer, R rank, J the numbers of an output (its weights; with a
bias, that and zeros), K = 2 J their parts.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fttt.errors import UsageError, first_line
from fttt.finetune.metadata import (
    INFO_FILE,
    FinetuneInfo,
    Method,
    check_base,
    read_info,
)
from fttt.finetune.parameters import (
    CONFIG_FILE,
    PEFT_TYPE,
    WEIGHTS_FILE,
    calling_peft,
    load_adapters,
)
from fttt.models import LoadedModel, Prefix, check_model, load_config, load_model
from fttt.models.locate import find_fault, same_model, size_and_ends

__all__ = [
    "LowRank",
    "TwoPartLinear",
    "attach",
    "check_checkpoint",
    "describe_checkpoint",
    "keep_in",
    "load_finetuned",
]

_PEFT_TYPES: dict[Method, str] = {
    "lora": "LORA",
    "ia3": "IA3",
    "ln-tuning": "LN_TUNING",
    "prefix": "PREFIX_TUNING",
}
_TYPES = {**_PEFT_TYPES, "adapter": PEFT_TYPE}
_TRAINED = (".lora_", ".ia3_", ".ln_tuning_layers.")
"""Parts of PEFT's tensor names that follow the module's own name."""


def check_checkpoint(folder: str | Path, model: str, quantize: str | None = None) -> FinetuneInfo:
    """Check, without loading weights, that a checkpoint is whole and belongs to a model.

    Args:
        folder: the checkpoint.
        model: the base model.
        quantize: see :func:`fttt.models.load_model`.

    Raises:
        UsageError: the folder is no whole checkpoint, or it belongs to another model.
    """
    folder = Path(folder)
    info = read_info(folder)
    _check_files(info, folder)
    # after full fine-tuning the base model itself is not needed
    whole = info.method == "full"
    check_base(info, load_config(str(folder) if whole else model), model, folder)
    if not same_model(info.model, model):
        raise _other_base(info, model, folder)
    if quantize is not None:
        check_model(str(folder) if whole else model, quantize)
    if info.method == "ia3" and quantize not in (None, "none"):
        raise _scales_packed(folder)
    return info


def load_finetuned(
    folder: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
) -> LoadedModel:
    """Load a fine-tuned model.

    Args:
        folder: the checkpoint.
        model: the base model, by default the one that the checkpoint names; after full fine-tuning
            its name is only checked.
        dtype: see :func:`fttt.models.load_model`.
        device: see :func:`fttt.models.load_model`.
        quantize: see :func:`fttt.models.load_model`; ``None`` takes what it was trained with.

    Raises:
        UsageError: the folder is no checkpoint, or it belongs to another model.
        RunError: the model does not fit.
    """
    name = read_info(folder).model if model is None else model
    quantize = read_info(folder).quantize if quantize is None else quantize
    info = check_checkpoint(folder, name, quantize)
    if info.method == "full":
        return _whole_model(info, Path(folder), dtype, device, quantize)
    loaded = load_model(name, dtype=dtype, device=device, quantize=quantize)
    return _attached(info, loaded, Path(folder))


def attach(loaded: LoadedModel, folder: str | Path) -> LoadedModel:
    """Apply a checkpoint to a model.

    The weights of ``loaded`` are changed in place, so do not use ``loaded`` itself afterwards.

    Raises:
        UsageError: the folder is no checkpoint, or it belongs to another model.
    """
    folder = Path(folder)
    info = read_info(folder)
    _check_files(info, folder)
    if loaded.adapter is not None:
        raise UsageError(
            f"The model {loaded.name!r} has the fine-tuned weights of "
            f"{loaded.adapter['folder']!r} already; attach one checkpoint to a fresh model."
        )
    if loaded.name != info.base_model:
        raise _other_base(info, loaded.name, folder)
    check_base(info, loaded.model.config, loaded.name, folder)
    if info.method == "full":
        return _whole_model(info, folder, loaded.dtype, loaded.device)
    return _attached(info, loaded, folder)


def _attached(info: FinetuneInfo, loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The model with the trained weights of a checkpoint."""
    described = describe_checkpoint(folder)
    model, prefix, context = loaded.model, None, loaded.max_context
    if info.method == "prefix":
        prefix = _prefix(model, folder)
        context -= prefix.length
    elif info.method == "adapter":
        load_adapters(model, folder)
    elif loaded.quantized is not None and info.method == "ia3":
        raise _scales_packed(folder)
    elif loaded.quantized is not None and info.method == "lora":
        _add_low_rank(model, folder)
    else:
        model, described["change_kept"] = _merged(model, folder)
    model.eval().requires_grad_(False)
    return replace(loaded, model=model, prefix=prefix, max_context=context, adapter=described)


def describe_checkpoint(folder: str | Path) -> dict[str, Any]:
    """A checkpoint's entry in ``environment.json``: its metadata and a fingerprint of its files."""
    folder = Path(folder)
    facts = read_info(folder).model_dump(mode="json", exclude={"format", "architecture"})
    return {"folder": str(folder), **facts, "fingerprint": _fingerprint(folder)}


def _whole_model(
    info: FinetuneInfo, folder: Path, dtype: str, device: str, quantize: str | None = None
) -> LoadedModel:
    """The model of a full fine-tuning, under the base model's name."""
    own = load_model(str(folder), dtype=dtype, device=device, quantize=quantize)
    return replace(own, name=info.base_model, adapter=describe_checkpoint(folder))


def _merged(model: Any, folder: Path) -> tuple[Any, float]:
    """The model with PEFT's weights merged into its own, and the share of the change they keep.

    The merge is computed in float32 and kept by :func:`keep_in`. The share is the projection of the
    change that was kept on the change that was trained: 1 for all of it, 0 for nothing.
    """
    with _reading(folder):
        from safetensors import safe_open

        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            names = _modules(file.keys())
        before = {name: dict(model.get_submodule(name).named_parameters()) for name in names}
        before = {name: {k: p.data for k, p in own.items()} for name, own in before.items()}
        for name in names:
            model.get_submodule(name).float()
        merged = _peft_model(model, folder).merge_and_unload()
    along = wanted = 0.0
    for name, old in before.items():
        exact = {k: p.data for k, p in merged.get_submodule(name).named_parameters()}
        held = keep_in(next(iter(old.values())).dtype, merged, name)
        for key, was in old.items():
            change = exact[key] - was.float()
            made = held[key] - was.float()
            along += float((change * made).sum(dtype=torch.double))
            wanted += float((change * change).sum(dtype=torch.double))
    return merged, along / wanted if wanted else 1.0


def _add_low_rank(model: Any, folder: Path) -> None:
    """Add trained low-rank updates beside a model's layers, whose weights are packed."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    with _reading(folder):
        config: Any = LoraConfig.from_pretrained(str(folder))
        state = load_file(folder / WEIGHTS_FILE, device=str(model.device))
        for name in _modules(list(state)):
            a_RI, b_OR = (state[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            LowRank(a_RI, b_OR, config.lora_alpha / config.r).follow(model.get_submodule(name))


def _scales_packed(folder: Path) -> UsageError:
    return UsageError(
        f"The checkpoint {str(folder)!r} of kind 'ia3' scales a base model's weights, which "
        "cannot be done where they are quantised; give the base model in full precision."
    )


def _modules(keys: Sequence[str]) -> list[str]:
    """The base model's modules to which saved tensors belong."""
    names: dict[str, None] = {}
    for key in keys:
        name = key.removeprefix("base_model.model.")
        for mark in _TRAINED:
            name = name.partition(mark)[0]
        names[name] = None
    return list(names)


def _prefix(model: Any, folder: Path) -> Prefix:
    """The keys and values of a trained prefix."""
    with _reading(folder), torch.no_grad():
        cache: Any = _peft_model(model, folder).get_prompt(1)
        return Prefix(
            tuple(layer.keys[0].clone() for layer in cache.layers),
            tuple(layer.values[0].clone() for layer in cache.layers),
        )


def _peft_model(model: nn.Module, folder: Path) -> Any:
    from peft import PeftModel

    with calling_peft():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return PeftModel.from_pretrained(model, folder, torch_device=str(model.device))


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn errors about files that do not fit the model into one that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, ValueError, AttributeError, UserWarning, SafetensorError) as bad:
        if isinstance(bad, torch.OutOfMemoryError):
            raise
        first = first_line(bad)
        raise UsageError(
            f"The checkpoint {str(folder)!r} does not fit its model: {first}; restore the folder "
            "from a copy, or train it again."
        ) from bad


def _check_files(info: FinetuneInfo, folder: Path) -> None:
    """Check that the folder holds safetensors of the method that ``finetune.json`` names."""
    if info.method == "full":
        return
    if info.method in _PEFT_TYPES and find_spec("peft") is None:
        raise UsageError(
            f"The checkpoint {str(folder)!r} of kind {info.method!r} needs PEFT, which is not "
            "installed; run: pip install 'fttt[train]'"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UsageError(
                f"The checkpoint {str(folder)!r} of kind {info.method!r} has no {name}; restore "
                "the folder from a copy, or train it again."
            )
    fault = find_fault(folder / WEIGHTS_FILE)
    if fault is not None:
        raise UsageError(
            f"The checkpoint {str(folder)!r} is broken: {fault}; restore the folder from a copy, "
            "or train it again."
        )
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"The file {str(folder / CONFIG_FILE)!r} cannot be read ({error}); restore the folder "
            "from a copy, or train it again."
        ) from None
    if found != _TYPES[info.method]:
        raise UsageError(
            f"The checkpoint {str(folder)!r} is of kind {info.method!r} by its {INFO_FILE}, but "
            f"its {CONFIG_FILE} says {found!r}; restore the folder from a copy."
        )


def _other_base(info: FinetuneInfo, model: str, folder: Path) -> UsageError:
    return UsageError(
        f"The checkpoint {str(folder)!r} was trained on {info.model!r} and cannot be used with "
        f"{model!r}, which is another model; give --model {info.model}, or leave --model out."
    )


def _fingerprint(folder: Path) -> str:
    """A hash of ``finetune.json``, and of each weight file's size and two ends."""
    digest = hashlib.sha256((folder / INFO_FILE).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size, first, last = size_and_ends(file)
        digest.update(f"{file.name} {size}".encode() + first + last)
    return digest.hexdigest()[:16]


ONES = 8
"""Constant inputs for a bias: two are used; the others, with zero weights, keep rows aligned."""


class LowRank(nn.Module):
    """A trained low-rank update of a layer, in float32, that is added to the layer's output."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        """Take the two factors, and the number that their product is multiplied by."""
        super().__init__()
        self.a_RI, self.b_OR = (nn.Parameter(x.float(), requires_grad=False) for x in (a_RI, b_OR))
        self.scale = scale

    def follow(self, layer: nn.Module) -> None:
        """Become a part of the layer."""
        layer.add_module("low_rank", self)
        layer.register_forward_hook(_add_update)

    def forward(self, x: Tensor) -> Tensor:
        """What is added."""
        return F.linear(F.linear(x.float(), self.a_RI), self.b_OR) * self.scale


def _add_update(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook; the update is found by the layer, so that a copy of the model has its own."""
    added: Tensor = layer.low_rank(inputs[0])
    return output + added.to(output.dtype)


class TwoPartLinear(nn.Linear):
    """A linear layer in which each weight is the sum of two half-precision numbers.

    It takes twice the memory and twice the multiplications of a plain layer.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        """Take the weights of a float32 layer.

        Args:
            layer: the layer, which is not changed.
            dtype: dtype of the parts, of the inputs and of the outputs.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # Both parts of a number lie side by side: where a product is summed in pieces, and each
        # piece is rounded, they are in the same piece.
        parts = [_two_parts(layer.weight.data, dtype).flatten(1)]
        if layer.bias is not None:  # as weights of inputs that are always 1
            parts.append(F.pad(_two_parts(layer.bias.data, dtype), (0, ONES - 2)))
        self.parts_OK = nn.Parameter(torch.cat(parts, 1))
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The first parts of the weights, ``[O, I]``."""
        return self.parts_OK[:, : 2 * self.in_features : 2]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; the argument has torch's own name."""
        twice_K = input[..., None].expand(*input.shape, 2).flatten(-2)
        ones = self.parts_OK.shape[1] - twice_K.shape[-1]
        return F.linear(F.pad(twice_K, (0, ones), value=1.0) if ones else twice_K, self.parts_OK)

    def numbers(self) -> dict[str, Tensor]:
        """The sums of the parts, in float32, as ``weight`` and ``bias``."""
        sum_OJ = self.parts_OK.data.float().unflatten(1, (-1, 2)).sum(-1)
        numbers = {"weight": sum_OJ[:, : self.in_features]}
        if sum_OJ.shape[1] > self.in_features:
            numbers["bias"] = sum_OJ[:, self.in_features]
        return numbers


def _two_parts(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 numbers rounded, and their remainders rounded, along a new last axis."""
    first = numbers.to(dtype)
    return torch.stack([first, (numbers - first.float()).to(dtype)], -1)


def keep_in(dtype: torch.dtype, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Keep a module's float32 parameters in a model of another dtype.

    A linear layer is replaced by a :class:`TwoPartLinear`. Any other module, such as a norm,
    computes in float32, and its outputs have the dtype of its inputs.

    Args:
        dtype: the model's dtype; with float32 nothing is changed.
        model: changed in place.
        name: the module's full name.

    Returns:
        The parameters that the module computes with now, in float32, by name.
    """
    module: Any = model.get_submodule(name)
    if dtype != torch.float32 and isinstance(module, nn.Linear):
        kept = TwoPartLinear(module, dtype)
        model.set_submodule(name, kept)
        return kept.numbers()
    if dtype != torch.float32:
        module.forward = _in_float32(module.forward)
    return {key: parameter.data for key, parameter in module.named_parameters()}


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def widened(x: Tensor) -> Tensor:
        return forward(x.float()).to(x.dtype)

    return widened
