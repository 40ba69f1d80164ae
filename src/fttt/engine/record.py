"""Recording the factors of a gradient while packed sequences run through a model.

Axes: N packed tokens, M tokens that carry a loss, Q examples, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fttt.engine.adapters import layers_by_name
from fttt.engine.batch import Batch
from fttt.engine.factors import Factors
from fttt.engine.sequences import weighted_nll

__all__ = ["record_factors"]


def record_factors(
    model: Any,
    batch: Batch,
    layers: Sequence[str],
    weights: Sequence[Sequence[float]] | None = None,
) -> Factors:
    """Run packed sequences and take the factors of each one's loss at the named linear layers.

    An example's loss is the mean negative log-likelihood of all its tokens but the first. The
    losses are added and differentiated once, since no example's loss depends on another's tokens.
    Only what lies above the first named layer keeps a graph.

    Args:
        model: whose own weights are frozen.
        batch: from :func:`fttt.engine.sequences.pack_sequences`.
        layers: full names, as of ``model.named_modules()``.
        weights: of each example's tokens from the second on, instead of one over their number.

    Raises:
        UsageError: a layer that the model does not have.
    """
    lengths = batch.lengths
    if weights is None:
        weights = [(1 / max(1, n - 1),) * (n - 1) for n in lengths]
    # Differentiated at a scale where half precision holds small gradients, then scaled back.
    scales = [max((abs(w) for w in own), default=0.0) or 1.0 for own in weights]
    device = batch.token_ids_N.device
    starts = [end - n for end, n in zip(batch.ends, lengths, strict=True)]
    where_M = torch.tensor(
        [start + t for start, n in zip(starts, lengths, strict=True) for t in range(n - 1)],
        device=device,
    )
    weight_M = torch.tensor([w for own in weights for w in own], device=device)
    scale_Q = torch.tensor(scales, device=device)
    segment_M = batch.segment_N[where_M]
    label_M = batch.token_ids_N[where_M + 1]
    with torch.enable_grad(), _watching(layers_by_name(model, layers), batch) as seen:
        loss, nll_M = weighted_nll(model, batch, where_M, label_M, weight_M / scale_Q[segment_M])
        gradients = torch.autograd.grad(loss, [seen[name].output for name in layers])
    scale_N1 = scale_Q[batch.segment_N, None]
    return Factors(
        x_NI={name: seen[name].x_NI for name in layers},
        delta_NO={
            name: seen[name].packed(gradient).float() * scale_N1
            for name, gradient in zip(layers, gradients, strict=True)
        },
        lengths=lengths,
        segment_N=batch.segment_N,
        loss_Q=torch.zeros_like(scale_Q).index_add(0, segment_M, nll_M * weight_M),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What passed through one layer."""

    source: Tensor
    """The input as it came, to tell whether another layer was given the same."""
    x_NI: Tensor
    output: Tensor
    packed: Callable[[Tensor], Tensor]
    """From what the layer sees to ``[N, ...]``."""


@contextmanager
def _watching(layers: Mapping[str, nn.Linear], batch: Batch) -> Iterator[dict[str, _Seen]]:
    """Note what passes through the layers; the first one's output begins the graph."""
    seen: dict[str, _Seen] = {}

    def watch(name: str, layer: nn.Linear) -> RemovableHandle:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            source = inputs[0]
            same = next((s for s in seen.values() if s.source is source), None)
            if not output.requires_grad:
                output.requires_grad_()
            packed = _packed if batch.inside is None else partial(_unpadded, batch)
            x_NI = same.x_NI if same else packed(source.detach())
            seen[name] = _Seen(source, x_NI, output, packed)

        return layer.register_forward_hook(note)

    hooks = [watch(name, layer) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _packed(x: Tensor) -> Tensor:
    """From ``[1, N, D]`` or ``[N, D]``."""
    return x.flatten(0, -2)


def _unpadded(batch: Batch, x: Tensor) -> Tensor:
    """From ``[B, T, D]`` or ``[B * T, D]``, as a mixer runs all segments."""
    return batch.unpad(x if x.dim() == 3 else x.unflatten(0, (len(batch.lengths), -1)))
