"""Changes of a few weights, one for each question, predicted from the factors of a gradient.

The gradient of a loss by the weight ``W`` of ``y = W x`` is the sum over tokens of ``delta xᵀ``,
where ``delta`` is the gradient by ``y``. OpTune (arXiv 2502.15771, section 4) predicts its update
from these pairs, which are recorded while packed sequences run.

``y = W x`` becomes ``y = W x + ΔW x`` with a ``ΔW`` of the segment's own; the model's weights are
never touched. ``ΔW`` is dense, or a sum over tokens of ``left rightᵀ`` that is never multiplied
out.

Axes: N packed tokens, M tokens that carry a loss, B segments, T tokens of the longest, F factor
tokens of the longest, I inputs and O outputs of a layer, S slots, Q questions or examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fttt.engine import ops
from fttt.engine.adapters.bank import (
    AdapterNeeds,
    Bank,
    Fill,
    Learned,
    layers_by_name,
    slot_index,
)
from fttt.engine.adapters.draws import DrawnRow
from fttt.engine.batch import Batch
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.hidden_cache import HiddenCache, upper_part
from fttt.engine.request import TrainRequest, WeightDeltaSpec
from fttt.engine.sequences import pack_sequences, weighted_nll
from fttt.errors import UsageError

if TYPE_CHECKING:
    from fttt.engine.memory_plan import MemoryPlan
    from fttt.engine.scheduler import LessonQueue

__all__ = [
    "Delta",
    "DeltaBank",
    "DeltaLearner",
    "FactoredDelta",
    "Factors",
    "changed",
    "record_factors",
]


@dataclass(frozen=True, slots=True)
class Factors:
    """Inputs and output gradients of some linear layers, token by token, of one or more examples.

    Tokens are packed as they ran; the last of an example predicts nothing, and its gradients are
    zero.
    """

    x_NI: Mapping[str, Tensor]
    """Inputs by full layer name, in the model's dtype. Layers that were given one tensor (a
    layer's query and value projections, say) share one here."""
    delta_NO: Mapping[str, Tensor]
    """Gradients of each example's loss by the layer's outputs, float32."""
    lengths: tuple[int, ...]
    """Tokens of each example."""
    segment_N: Tensor
    """The example that each token belongs to."""
    loss_Q: Tensor
    """Each example's loss."""

    @property
    def examples(self) -> int:
        """Q."""
        return len(self.lengths)

    def groups(self, size: int) -> Iterator[Factors]:
        """The same in groups of ``size`` examples, the last one smaller; nothing is copied."""
        end = 0
        for first in range(0, self.examples, size):
            lengths = self.lengths[first : first + size]
            own = slice(end, end := end + sum(lengths))
            yield Factors(
                x_NI={name: x_NI[own] for name, x_NI in self.x_NI.items()},
                delta_NO={name: delta_NO[own] for name, delta_NO in self.delta_NO.items()},
                lengths=lengths,
                segment_N=self.segment_N[own] - first,
                loss_Q=self.loss_Q[first : first + size],
            )


@dataclass(frozen=True, slots=True)
class FactoredDelta:
    """``ΔW_b = sum_f left_bf right_bfᵀ``; shorter examples are padded with zeros."""

    left_BFO: Tensor
    right_BFI: Tensor

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """``[B, O, I]``, multiplied in the factors' dtype or another."""
        left_BFO, right_BFI = self.left_BFO, self.right_BFI
        if dtype is not None:
            left_BFO, right_BFI = left_BFO.to(dtype), right_BFI.to(dtype)
        return left_BFO.transpose(1, 2) @ right_BFI


Delta = Tensor | FactoredDelta
"""One layer's changes, ``[B, O, I]`` or factored."""


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


class DeltaBank(Bank):
    """All slots of one :class:`fttt.engine.request.WeightDeltaSpec`, hooked into one model.

    A slot holds a dense change of each edited weight, zero until the first train step.
    """

    spec: WeightDeltaSpec

    @staticmethod
    def needs(model: Any, spec: WeightDeltaSpec, layer_bytes: int) -> AdapterNeeds:
        """What a spec's changes take, beside a decoder layer's ``layer_bytes`` a token.

        A token of a pass that takes factors and predicts changes holds what the first edited layer
        is given, twice, and activations from there on; inputs and output gradients of the edited
        weights, as they are and as a network rewrites them, in float32. A question holds its
        changes in float32, twice.

        Raises:
            UsageError: a layer that the model does not have.
        """
        config = model.config.get_text_config()
        layers = layers_by_name(model, spec.layers)
        numbers = [int(n) for name in layers for n in re.findall(r"\.(\d+)\.", name)[:1]]
        above = config.num_hidden_layers - min(numbers, default=0)
        widths = [layer.in_features + layer.out_features for layer in layers.values()]
        given = 2 * config.hidden_size * next(model.parameters()).element_size()
        weights = sum(layer.in_features * layer.out_features for layer in layers.values())
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

    def __init__(
        self, model: nn.Module, spec: WeightDeltaSpec, slots: int, device: torch.device
    ) -> None:
        """Take the memory.

        Raises:
            UsageError: a layer that the model does not have.
        """
        super().__init__(model, spec, slots, device)
        self.spec = spec
        self.delta_SOI: dict[str, Tensor] = {}
        for name, layer in layers_by_name(model, spec.layers).items():
            shape = (slots, layer.out_features, layer.in_features)
            self.delta_SOI[name] = torch.zeros(shape, dtype=delta_dtype(model), device=device)
            self.hooks.append(layer.register_forward_hook(self._hook(self.delta_SOI[name])))
        self._batch: Batch | None = None

    def learner(self, cache: KVCache, plan: MemoryPlan, fill: Fill) -> DeltaLearner:
        """A learner that predicts changes; of a row it reads hidden states."""
        upper = upper_part(self.model, self.spec.layers)
        below = HiddenCache(upper, cache) if upper else None
        if below:
            self.hooks.append(below.hook)  # which is taken off with the others
        return DeltaLearner(self, cache, plan, below)

    def fill(self, index: int, seed: int, row: DrawnRow | None = None) -> None:
        """Set the change to zero."""
        for delta_SOI in self.delta_SOI.values():
            delta_SOI[index] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy the change."""
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
                ops.gpu.add_delta(x.flatten(0, -2), output.flatten(0, -2), delta_SOI, batch.slot_B)
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


class DeltaLearner:
    """Applies one predicted change of weights a request, from the factors of its loss.

    Only layers from the first edited one on run all of it. Those below run what follows the context
    where that is still kept.
    """

    def __init__(
        self, bank: DeltaBank, cache: KVCache, plan: MemoryPlan, below: HiddenCache | None
    ) -> None:
        """``below`` is ``None`` where the lowest layer is edited."""
        self._bank, self._cache, self._plan = bank, cache, plan
        self._below = below

    def check(self, request: TrainRequest) -> None:
        """Refuse several targets, and losses on other than labels.

        Raises:
            UsageError: the request is such.
        """
        targets = request.targets
        if len(targets) != 1 or targets[0].teacher is not None or targets[0].form != "nll":
            raise UsageError(
                "A predicted change of the weights comes from the labels of one target; give it "
                f'one without a teacher and of the form "nll", not {len(targets)}, or train '
                "another kind of adapter."
            )

    def reads(self, *, adapted: bool) -> bool:
        """Rows whose hidden states below the edited layers the change is predicted from."""
        return self._below is not None and self._bank.spec.learns_from(adapted=adapted)

    def due(self, queue: LessonQueue) -> tuple[int, bool]:
        """All of them, since none needs a row."""
        return len(queue), self._fitting(queue)[1]

    def run(self, queue: LessonQueue) -> list[Learned]:
        """Run as many requests as one pass holds; after an error they stay queued.

        A loss or a change that is not finite is answered by a loss that is not finite.
        """
        jobs = [queue.popleft() for _ in range(self._fitting(queue)[0])]
        try:
            losses = self._learn([job.request for job in jobs])
        except Exception:
            queue.extendleft(reversed(jobs))
            raise
        return [(job, (loss,)) for job, loss in zip(jobs, losses, strict=True)]

    def _fitting(self, queue: LessonQueue) -> tuple[int, bool]:
        """How many requests a pass takes, of different adapters and one at least.

        Also whether it is full: none that comes now could be of it.
        """
        tokens, slots = self._plan.train_tokens, set[object]()
        longest = 0  # the attention and a network may pad all of them to it
        for count, job in enumerate(queue):
            longest = max(longest, _length(job.request))
            if count and ((count + 1) * longest > tokens or job.request.adapter in slots):
                return count, True
            slots.add(job.request.adapter)
        return len(queue), (len(queue) + 1) * longest > tokens

    def _learn(self, requests: Sequence[TrainRequest]) -> list[float]:
        spec, slots = self._bank.spec, [slot_index(request.adapter) for request in requests]
        sequences = [_sequence(request) for request in requests]
        weights = [
            (0.0,) * (len(ids) - 1 - len(target.weights)) + target.weights
            for ids, target in zip(sequences, (r.targets[0] for r in requests), strict=True)
        ]
        under = slots if spec.accumulate else None
        contexts = [request.lessons[0].context for request in requests]
        batch = pack_sequences(self._bank.model, sequences, under, self._cache)
        changed: list[bool] = []
        with torch.no_grad():
            start = self._below.given(sequences, contexts) if self._below else nullcontext()
            with start, self._bank.applied(batch):
                factors = record_factors(self._bank.model, batch, spec.layers, weights)
            for part in factors.groups(self._plan.train_questions):
                own = slots[len(changed) : len(changed) + part.examples]
                changed += self._bank.step(own, spec.predict(part))
        for context in contexts:
            if isinstance(context, KeptRow):
                context.awaited = False  # its owner may still continue it
        losses = factors.loss_Q.tolist()
        return [loss if done else float("nan") for loss, done in zip(losses, changed, strict=True)]


def _sequence(request: TrainRequest) -> tuple[int, ...]:
    """All tokens that the target's loss depends on."""
    ids, target = request.lessons[0].context_ids, request.targets[0]
    return ids[: target.after] + target.token_ids


def _length(request: TrainRequest) -> int:
    """How many these are, which is asked at each turn."""
    held, target = len(request.lessons[0].context_ids), request.targets[0]
    return (held if target.after is None else min(held, target.after)) + len(target.token_ids)
