"""Bottleneck adapters: a small network after attention and after the MLP of every layer.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1: what a sublayer
gives out passes through a down-projection, a ReLU, an up-projection and a skip connection before
it joins the residual stream. The up-projection starts at zero, so that an untrained adapter leaves
the model as it is.

Saved in PEFT's form (``adapter_config.json`` and ``adapter_model.safetensors``), which itself has
no such adapter.

Axes: D the model's width, R = D / reduction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fttt.errors import UsageError

__all__ = ["Bottleneck", "add_adapters", "load_adapters", "save_adapters", "sublayers"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_TYPE = "BOTTLENECK"
CHILD = "bottleneck"
"""What the adapter is called inside the sublayer that it follows."""


class Bottleneck(nn.Module):
    """``h + up(relu(down(h)))``."""

    def __init__(self, width: int, inner: int, **factory: Any) -> None:
        """Make an adapter that changes nothing yet.

        Args:
            width: D.
            inner: R.
            factory: ``dtype`` and ``device`` of the weights.
        """
        super().__init__()
        self.down = nn.Linear(width, inner, **factory)
        self.up = nn.Linear(inner, width, **factory)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h_D: Tensor) -> Tensor:
        """Any leading axes; the result has the dtype of the input."""
        changed: Tensor = self.up(torch.relu(self.down(h_D)))
        return h_D + changed.to(h_D.dtype)


def sublayers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The attention and MLP modules of a decoder's layers with their full names, in order.

    Raises:
        UsageError: the architecture has no ``self_attn`` and ``mlp`` in its layers.
    """
    found = [
        (f"{name}.{part}", getattr(module, part))
        for name, module in model.named_modules()
        for part in ("self_attn", "mlp")
        if isinstance(getattr(module, "self_attn", None), nn.Module)
        and isinstance(getattr(module, "mlp", None), nn.Module)
    ]
    if not found:
        raise UsageError(
            f"The architecture {model.config.model_type!r} cannot take the method 'adapter': its "
            "layers have no self_attn and mlp to put one after; choose full or lora."
        )
    return iter(found)


def add_adapters(
    model: Any, reduction: int, *, dtype: torch.dtype | None = None
) -> dict[str, Bottleneck]:
    """Put an adapter after every sublayer of a model, in place.

    Args:
        model: a ``transformers`` causal language model.
        reduction: D / R.
        dtype: of the adapters' weights; by default the model's.

    Returns:
        The adapters by their full module names.
    """
    width = int(model.config.get_text_config().hidden_size)
    if not 1 <= reduction <= width:
        raise UsageError(f"The adapter's reduction must be from 1 to {width}, not {reduction}.")
    added = {}
    for name, sublayer in list(sublayers(model)):
        weight = next(sublayer.parameters())
        adapter = Bottleneck(
            width, width // reduction, dtype=dtype or weight.dtype, device=weight.device
        )
        sublayer.add_module(CHILD, adapter)
        sublayer.register_forward_hook(_apply)
        added[f"{name}.{CHILD}"] = adapter
    return added


def _apply(sublayer: Any, _: Any, output: Any) -> Any:
    """Attention gives out a tuple whose first entry is the hidden states; an MLP a tensor."""
    adapter = sublayer.bottleneck
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def save_adapters(model: Any, folder: Path, base_model: str, reduction: int) -> None:
    """Write a model's adapters, and nothing else of it."""
    config = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "reduction": reduction,
        "non_linearity": "relu",
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {
        key: value.detach().contiguous()
        for key, value in model.state_dict().items()
        if f".{CHILD}." in key
    }
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapters(model: Any, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Put saved adapters into a model that has none yet, in place.

    Raises:
        UsageError: the folder holds no bottleneck adapters, or they are of another shape.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"The adapter in {str(folder)!r} cannot be read: {error}.") from None
    if config.get("peft_type") != PEFT_TYPE:
        raise UsageError(
            f"The folder {str(folder)!r} holds an adapter of type {config.get('peft_type')!r}, "
            f"not {PEFT_TYPE!r}."
        )
    added = add_adapters(model, int(config["reduction"]), dtype=dtype)
    own = {f"{name}.{key}": p for name, a in added.items() for key, p in a.named_parameters()}
    fits = own.keys() == state.keys() and all(own[k].shape == v.shape for k, v in state.items())
    if not fits:
        raise UsageError(
            f"The adapter in {str(folder)!r} does not fit the model "
            f"{model.name_or_path or model.config.model_type!r}; give the model it was trained on."
        )
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)
