"""Linear layers that are given one input, as one product: q, k and v, gate and up.

Their weights become views of one tensor, which holds them end to end, so that no memory is taken
and the model's code, its ``state_dict`` and what learns from its weights see what they saw. Layers
are still called one by one, each with its own hooks: the first of them runs the product of all, the
others are handed their parts of it. An adapter adds to a layer's part in place, as it does to an
output of its own.

Axes: O outputs, I inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fttt.models.quantized import is_plain

__all__ = ["GROUPS", "merged_linears"]

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Names of layers of one module that are given one input in most models."""


Product = Callable[[Sequence[nn.Linear], Tensor, Tensor, Tensor | None], Tensor]
"""Of layers, their input, and their weights and biases, which lie end to end."""


def _plain(_: Sequence[nn.Linear], x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return F.linear(x, weight_OI, bias_O)


def merged_linears(model: nn.Module, product: Product = _plain) -> list[tuple[Any, str, Any]]:
    """A replacement for the ``forward`` of each such layer; the weights are laid end to end here.

    Left alone are layers that are no plain linear ones (quantised ones, say), have weights that are
    trained or used by another layer as well, or look at their input before they run.
    """
    count = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        for names in GROUPS:
            layers = [getattr(module, name, None) for name in names]
            plain = [x for x in layers if isinstance(x, nn.Linear) and is_plain(x)]
            if len(plain) == len(names) and _serve(plain, count):
                merged = _Merged(plain, product)
                found += [(x, "forward", partial(merged.run, n)) for n, x in enumerate(plain)]
    if found and found[0][0].weight.is_cuda:
        torch.cuda.empty_cache()  # what the weights lay in before
    return found


def _serve(layers: Sequence[nn.Linear], count: Counter[int]) -> bool:
    """Whether these layers can be one product."""
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return (
        len({(w.shape[1], w.dtype, w.device) for w in weights}) == 1
        and len(biases) in {0, len(layers)}
        and all(count[id(p)] == 1 and not p.requires_grad for p in (*weights, *biases))
        and all(w.is_contiguous() and not w.is_meta for w in weights)
        and not any(x._forward_pre_hooks or "forward" in vars(x) for x in layers)
    )


class _Merged:
    """Layers of one input."""

    def __init__(self, layers: Sequence[nn.Linear], product: Product) -> None:
        self._layers, self._product = layers, product
        self._sizes = [layer.out_features for layer in layers]
        self._weight_OI = _end_to_end([layer.weight for layer in layers])
        self._bias_O: Tensor | None = None
        if layers[0].bias is not None:
            self._bias_O = _end_to_end([layer.bias for layer in layers])
        self._places = self._where()
        self._input: tuple[Tensor, tuple[int, bool]] | None = None
        self._parts: dict[int, Tensor] = {}
        self._apart = False

    def run(self, n: int, x: Tensor) -> Tensor:
        """The output of layer ``n``."""
        now = x._version, torch.is_grad_enabled()
        held = self._input is not None and self._input[0] is x and self._input[1] == now
        if held and n in self._parts:
            part = self._parts.pop(n)
            if not self._parts:
                self._input = None
            return part
        layer = self._layers[n]
        if self._parts:  # not all of them were asked for: they are no layers of one input
            self._apart, self._input, self._parts = True, None, {}
        if self._apart or self._where() != self._places:
            return F.linear(x, layer.weight, layer.bias)
        out = self._product(self._layers, x, self._weight_OI, self._bias_O)
        # parts that models may change in place, also where they have a gradient
        parts = out.unsafe_split_with_sizes(self._sizes, -1)
        self._input, self._parts = (x, now), {m: part for m, part in enumerate(parts) if m != n}
        return parts[n]

    def _where(self) -> list[int]:
        """Where the weights lie; elsewhere where the model was moved or given others."""
        return [layer.weight.data_ptr() for layer in self._layers]


def _end_to_end(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of which these are views from now on; it may be so already."""
    first, rows = parameters[0], sum(len(p) for p in parameters)
    storage, at = first.untyped_storage(), first.storage_offset()
    for p in parameters:
        same = p.untyped_storage().data_ptr() == storage.data_ptr() and p.storage_offset() == at
        at += p.numel()
        if not same:
            break
    else:
        return first.detach().as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([p.detach() for p in parameters])
    for p, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
        p.data = part
    return whole
