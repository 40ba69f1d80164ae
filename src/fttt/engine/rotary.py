"""Rotary frequencies that follow the length of a sequence, for each sequence of a pass on its own.

``transformers`` takes them by the longest position of a pass, so that a short question would be
answered otherwise beside a long one. Here each packed token has the frequencies of its own
sequence, as long as it is then: the modelling code runs as it is, with a sequence a batch item.

- ``dynamic`` (NTK): the base grows with the length, past the context that the model was made for.
- ``longrope``: one set of factors up to a length, another beyond it. A row whose keys were made
  with the first set does not go on with the second: from :func:`edge_of` on it is made anew.

Axes: N packed tokens, F frequencies, D head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fttt.engine.batch import Current

__all__ = ["edge_of", "rotary_stand_ins"]

Frequencies = Callable[[Tensor], Tensor]
"""Of sequences of these lengths ``[N]``: ``[N, F]``."""


def edge_of(model: nn.Module) -> int | None:
    """Tokens of the longest sequence whose frequencies are the first ones; ``None`` if of all."""
    edges = [
        int(parameters["original_max_position_embeddings"])
        for module, layer_type in _scaled(model)
        if (parameters := _parameters(module, layer_type))["rope_type"] == "longrope"
    ]
    return min(edges, default=None)


def rotary_stand_ins(model: nn.Module, current: Current) -> list[tuple[Any, str, Any]]:
    """Stand-ins for rotary modules whose frequencies depend on the length of what they see."""
    found: dict[int, tuple[Any, dict[str | None, Frequencies]]] = {}
    for module, layer_type in _scaled(model):
        own = found.setdefault(id(module), (module, {}))[1]
        own[layer_type] = _frequencies(module, layer_type)
    return [(m, "forward", _per_sequence(m, own, current)) for m, own in found.values()]


def _scaled(model: nn.Module) -> list[tuple[Any, str | None]]:
    """Rotary modules, and their kinds of layers, whose frequencies depend on the length."""
    found: list[tuple[Any, str | None]] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind):
                found.append((module, layer_type))
    return found


def _parameters(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters: dict[str, Any] = module.config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


def _frequencies(module: Any, layer_type: str | None) -> Frequencies:
    parameters, config = _parameters(module, layer_type), module.config
    more = {} if layer_type is None else {"layer_type": layer_type}
    kind = parameters["rope_type"]
    device = next(module.buffers()).device
    make: Any = ROPE_INIT_FUNCTIONS[kind]
    if kind == "longrope":
        edge = int(parameters["original_max_position_embeddings"])
        short_F, long_F = (
            make(config, device, seq_len=length, **more)[0] for length in (edge, edge + 1)
        )
        return lambda length_N: torch.where(length_N[:, None] > edge, long_F, short_F)
    most, factor = config.max_position_embeddings, parameters["factor"]
    base_F: Tensor = make(config, device, seq_len=most, **more)[0]
    features = 2 * base_F.shape[0]
    exponent_F = torch.arange(0, features, 2, device=device) / features

    def dynamic(length_N: Tensor) -> Tensor:
        stretch_N = (factor * length_N.clamp(min=most) / most - (factor - 1)).float()
        stretch_N = stretch_N ** (features / (features - 2))
        frequencies_NF: Tensor = base_F / stretch_N[:, None] ** exponent_F
        return frequencies_NF

    return dynamic


class _Held:
    """Stands for a buffer of frequencies: asked for one row of them, it gives one a token."""

    def __init__(self, frequencies_NF: Tensor) -> None:
        self._frequencies_NF = frequencies_NF

    def __getitem__(self, place: tuple[None, slice, None]) -> Tensor:
        return self._frequencies_NF[:, :, None]


class _Itself:
    """A module with other frequencies, for its own code to run on."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self.__dict__.update(changed)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _per_sequence(
    module: Any, frequencies: dict[str | None, Frequencies], current: Current
) -> Callable[..., Any]:
    forward = module.forward
    plain: Any = inspect.unwrap(type(module).forward)

    @torch.no_grad()
    def rotate(
        x: Tensor, position_ids: Tensor, layer_type: str | None = None, **kwargs: Any
    ) -> Any:
        more = kwargs if layer_type is None else {**kwargs, "layer_type": layer_type}
        batch = current.batch
        if batch is None or layer_type not in frequencies:
            return forward(x, position_ids, **more)
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        held = _Held(frequencies[layer_type](batch.whole_N))
        out = plain(_Itself(module, **{name: held}), x, position_ids.T, **more)
        if isinstance(out, Tensor):  # complex numbers of unit length
            return out.transpose(0, 1)
        return tuple(part.transpose(0, 1) for part in out)

    return rotate
