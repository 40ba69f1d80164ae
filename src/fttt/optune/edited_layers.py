"""The linear layers that OpTune edits: their choice, and the check that a model has them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fttt.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EditedLayer", "check_layers", "edited_layers"]


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
