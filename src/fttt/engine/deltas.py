"""Changes of a few weights, one for each example or question, added to what the layers compute.

``y = W x`` becomes ``y = W x + ΔW x`` with a ``ΔW`` of the segment's own; the model's weights are
never touched. ``ΔW`` is dense, or a sum over tokens of ``left rightᵀ`` that is never multiplied
out.

Axes: N packed tokens, B segments, T tokens of the longest, F factor tokens of the longest, I inputs
and O outputs of a layer, S slots, Q questions of one train step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fttt.engine.adapters import AdapterNeeds, layers_by_name
from fttt.engine.batch import Batch
from fttt.engine.factors import Delta, FactoredDelta
from fttt.engine.request import WeightDeltaSpec
from fttt.engine.slots import Bank
from fttt.engine.upper import upper_part

__all__ = ["DeltaBank", "changed", "delta_needs"]


@contextmanager
def changed(model: nn.Module, batch: Batch, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Add each segment's own change to the named layers while ``batch`` runs; gradients reach it.

    Args:
        model: whose layers are named in full.
        batch: whose segments the changes belong to, in turn.
        deltas: by layer name.

    Raises:
        UsageError: a layer that the model does not have.
    """
    layers = layers_by_name(model, list(deltas))

    def hook(delta: Delta):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            y_BTO = _product(batch.pad(inputs[0][0]), delta)
            return output + batch.unpad(y_BTO).to(output.dtype)

        return add

    hooks = [layers[name].register_forward_hook(hook(delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _product(x_BTI: Tensor, delta: Delta) -> Tensor:
    """``ΔW x``, in the change's dtype."""
    if isinstance(delta, FactoredDelta):
        x_BTI = x_BTI.to(delta.right_BFI.dtype)
        return (x_BTI @ delta.right_BFI.transpose(1, 2)) @ delta.left_BFO
    return x_BTI.to(delta.dtype) @ delta.transpose(1, 2)


def _in_dtype(delta: Delta, dtype: torch.dtype) -> Tensor:
    """A change as a dense one, ``[B, O, I]``."""
    return delta.dense(dtype) if isinstance(delta, FactoredDelta) else delta.to(dtype)


def delta_dtype(model: nn.Module) -> torch.dtype:
    """Of stored changes: the model's own on a GPU, where each step reads them; else float32."""
    weight = next(model.parameters())
    return weight.dtype if weight.is_cuda else torch.float32


def delta_needs(model: Any, spec: WeightDeltaSpec, layer_bytes: int) -> AdapterNeeds:
    """What a spec's changes take, beside a decoder layer's ``layer_bytes`` a token.

    A token of a pass that takes factors and predicts changes holds what the first edited layer is
    given, twice, and activations from there on; inputs and output gradients of the edited weights,
    as they are and as a network rewrites them, in float32. A question holds its changes in float32,
    twice.

    Raises:
        UsageError: a layer that the model does not have.
    """
    config = model.config.get_text_config()
    layers = layers_by_name(model, spec.layers)
    numbers = [int(n) for name in layers for n in re.findall(r"\.(\d+)\.", name)[:1]]
    above = config.num_hidden_layers - min(numbers, default=0)
    widths = [layer.in_features + layer.out_features for layer in layers.values()]
    given = 2 * config.hidden_size * next(model.parameters()).element_size()
    weights = sum(layer.weight.numel() for layer in layers.values())
    hidden = config.hidden_size if upper_part(model, spec.layers) is not None else 0
    return AdapterNeeds(
        slot=delta_dtype(model).itemsize * weights,
        token=given + layer_bytes * above + 12 * (sum(widths) + max(widths)),
        long_token=0,
        question=8 * weights,
        questions=256 if next(model.parameters()).is_cuda else 16,
        share=0.1,
        hidden=hidden,
        keeps=hidden > 0,
    )


class DeltaBank(Bank):
    """All slots of one :class:`fttt.engine.request.WeightDeltaSpec`, hooked into one model.

    A slot holds a dense change of each edited weight, zero until the first train step.
    """

    spec: WeightDeltaSpec

    def __init__(
        self, model: nn.Module, spec: WeightDeltaSpec, slots: int, device: torch.device
    ) -> None:
        """Take the memory.

        Raises:
            UsageError: a layer that the model does not have.
        """
        super().__init__(slots)
        self.spec = spec
        self.delta_SOI: dict[str, Tensor] = {}
        for name, layer in layers_by_name(model, spec.layers).items():
            self.delta_SOI[name] = torch.zeros(
                slots, *layer.weight.shape, dtype=delta_dtype(model), device=device
            )
            self.hooks.append(layer.register_forward_hook(self._hook(self.delta_SOI[name])))
        self._batch: Batch | None = None

    def fill(self, index: int, seed: int) -> None:
        """No change."""
        for delta_SOI in self.delta_SOI.values():
            delta_SOI[index] = 0

    def copy(self, source: int, target: int) -> None:
        """The change."""
        for delta_SOI in self.delta_SOI.values():
            delta_SOI[target] = delta_SOI[source]

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[None]:
        """Add each segment's change to the model's layers for one forward pass."""
        self._batch = batch if batch.adapted else None
        try:
            yield
        finally:
            self._batch = None

    def step(self, slots: Sequence[int], deltas: Mapping[str, Delta]) -> list[bool]:
        """Set the slots' changes, of Q questions by layer, or add to them where the spec says so.

        Factored ones are multiplied in the dtype in which the changes are held. In bfloat16 that
        rounds the factors as well as the product, an error of 0.3 % of a change's norm rather than
        0.2 %; in float32 a GPU would multiply without its matrix units.

        A change that is not finite is not applied: nothing is added, or the slot is zero. The
        answer says which were.
        """
        index_Q = torch.tensor(slots, device=next(iter(self.delta_SOI.values())).device)
        fresh: dict[str, Tensor] = {}
        finite_Q = torch.ones(len(slots), dtype=torch.bool, device=index_Q.device)
        for name, delta_SOI in self.delta_SOI.items():
            fresh[name] = _in_dtype(deltas[name], delta_SOI.dtype)
            if self.spec.accumulate:
                fresh[name] = fresh[name] + delta_SOI[index_Q]
            # A sum is finite where all of it is, and takes one look at these large tensors.
            finite_Q &= fresh[name].sum((1, 2), dtype=torch.float32).isfinite()
        finite = [bool(f) for f in finite_Q.tolist()]
        for name, delta_SOI in self.delta_SOI.items():
            new_QOI = fresh[name]
            if not all(finite):
                old = delta_SOI[index_Q] if self.spec.accumulate else torch.zeros_like(new_QOI)
                new_QOI = torch.where(finite_Q[:, None, None], new_QOI, old)
            delta_SOI[index_Q] = new_QOI
        for slot in slots:
            self.changed(slot)
        return finite

    def _hook(self, delta_SOI: Tensor):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            batch = self._batch
            if batch is None:
                return None
            x = inputs[0]
            if batch.mode == "decode" and x.is_cuda:
                from fttt.engine.kernels_delta import add_delta

                add_delta(x.flatten(0, -2), output.flatten(0, -2), delta_SOI, batch.slot_B)
                return output
            if batch.inside is None:
                rows, own = x.flatten(0, -2).split(batch.lengths), batch.slots
            else:
                rows = batch.by_segment(x).unbind()
                own = tuple(batch.slots[n] for n in batch.inside)
            parts: list[Tensor] = []
            for x_TI, slot in zip(rows, own, strict=True):
                if slot < 0:
                    parts.append(output.new_zeros(x_TI.shape[0], output.shape[-1]))
                else:
                    parts.append((x_TI.to(delta_SOI.dtype) @ delta_SOI[slot].T).to(output.dtype))
            return output + torch.cat(parts).view_as(output)

        return add
