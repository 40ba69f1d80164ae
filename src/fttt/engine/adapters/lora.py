"""Low-rank weights, stacked, with a per-question AdamW, stacked.

A slot is one question's place. All its numbers, over all layers, are one row of a flat float32
matrix ``[slots, P]``, first every layer's A, then every B; a layer's A and B are views of that row.
So what is drawn is its beginning, a batch of slots is one gather, its gradient is one tensor, and
AdamW for any number of questions is the same few elementwise operations. State: 12 bytes a
parameter and slot (weights and two moments), 4 more while training.

Axes: S slots, Q slots of one train step, P parameters of a slot, B segments, T tokens, R rank,
I inputs and O outputs of a layer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fttt.engine import ops
from fttt.engine.adapters.bank import AdapterNeeds, Bank, Fill, Learned, decoder_layers
from fttt.engine.adapters.draws import DrawnRow, RowDraws
from fttt.engine.adapters.product import InputScale, add_low_rank
from fttt.engine.batch import Batch, sent
from fttt.engine.cache import KVCache
from fttt.engine.captured_pass import CapturedPasses, can_capture
from fttt.engine.merged import GROUPS
from fttt.engine.ops.sampling import derive_key
from fttt.engine.request import LoRASpec, TrainRequest
from fttt.engine.train_step import train_step
from fttt.errors import UsageError

if TYPE_CHECKING:
    from fttt.engine.memory_plan import MemoryPlan
    from fttt.engine.scheduler import LessonQueue

__all__ = ["LoRABank", "LoRALearner", "target_layers"]

STEP_NUMBERS = 2**26
"""Parameters, of all questions together, that a step updates at once."""
DRAWN_AT_ONCE = 2**18
"""Numbers of a fresh slot that are drawn when it is opened, in about a millisecond; more are drawn
in a thread, whose answer may wait for a pass to end."""
ALL_LINEAR = "all-linear"
"""Among the targets of a spec, as PEFT has it: every linear layer within the decoder layers."""


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """One adapted linear layer's place in the flat row."""

    index: int
    a_at: int
    b_at: int
    inputs: int
    outputs: int
    group: int
    """The number of its :class:`SharedInput`."""


@dataclass(frozen=True, slots=True)
class SharedInput:
    """Layers of one module that are given one input in most models, q, k and v say."""

    layers: list[int]
    """Their numbers."""
    a_at_G: Tensor
    """Where their A begin in the flat row, on the device."""


def target_layers(model: Any, spec: LoRASpec) -> dict[str, nn.Linear]:
    """The linear layers that a spec names, by their full name.

    The output layer is none of them, nor is the router of Llama 4, which gives no plain tensor, nor
    the experts of a mixture, which are one tensor for all of them.

    Raises:
        UsageError: a name that no linear layer of the model has, or a model without any.
    """
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and not type(module).__name__.endswith("Router")
    }
    if not linear:
        raise UsageError(
            f"No layer of {type(model).__name__} can carry low-rank weights: none is an nn.Linear; "
            "take a method that learns nothing, as best-of-n."
        )
    if spec.targets == (ALL_LINEAR,):
        return {name: module for name, module in linear.items() if re.search(r"\.\d+\.", name)}
    known = {n.rsplit(".", 1)[-1] for n in linear}
    for target in spec.targets:
        if target not in known:
            raise UsageError(
                f"{_what_it_is(model, target)}; it has {', '.join(sorted(known))}, and "
                f"{ALL_LINEAR!r} alone names those of all decoder layers."
            )
    return {n: m for n, m in linear.items() if n.rsplit(".", 1)[-1] in spec.targets}


def _what_it_is(model: nn.Module, target: str) -> str:
    """Why no linear layer is called so, as a sentence begins."""
    for name, parameter in model.named_parameters():
        owner, _, own = name.removesuffix(".weight").rpartition(".")
        if own == target and parameter.dim() == 3:
            return (
                f"The layers {target!r} are experts of a mixture, which {owner.rpartition('.')[2]} "
                "of this model holds as one tensor, and carry no adapter"
            )
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == target:
            kind = type(module).__name__
            return f"The layer {target!r} of this model is no nn.Linear but {kind}"
    return f"No linear layer {target!r} in this model"


class LoRABank(Bank):
    """All slots of one :class:`LoRASpec`, hooked into one model."""

    spec: LoRASpec

    @staticmethod
    def needs(model: Any, spec: LoRASpec, layer_bytes: int) -> AdapterNeeds:
        """What a spec's adapters take, beside a decoder layer's ``layer_bytes`` a token.

        Inputs of the target layers are held in their own dtype on a GPU; on a CPU in float32, with
        dropout's factors. A slot has weights, two moments and, while tokens run, a copy of the
        weights; a step another one and the gradient.
        """
        config = model.config.get_text_config()
        targets = target_layers(model, spec)
        parameters = sum(spec.rank * (m.in_features + m.out_features) for m in targets.values())
        itemsize = next(model.parameters()).element_size()
        input_bytes = itemsize if model.device.type == "cuda" else 8
        inputs: Counter[str] = Counter()
        for name, layer in targets.items():
            number = re.search(r"\.\d+\.", name)
            inputs[number.group() if number else ""] += input_bytes * layer.in_features
        token = layer_bytes * config.num_hidden_layers + inputs.total()
        hidden_bytes = config.hidden_size * itemsize
        long_token = hidden_bytes * config.num_hidden_layers + layer_bytes + max(inputs.values())
        return AdapterNeeds(
            slot=16 * parameters,
            token=token,
            long_token=long_token if decoder_layers(model) else token,
            question=8 * parameters,
            questions=256,
            share=0.25,
            captures=can_capture(model),
        )

    def __init__(self, model: nn.Module, spec: LoRASpec, slots: int, device: torch.device) -> None:
        super().__init__(model, spec, slots, device)
        self.spec = spec
        self.scale = spec.alpha / spec.rank
        self._scale_1 = torch.tensor([self.scale], device=device)
        self._layers: list[TargetLayer] = []
        targets = target_layers(model, spec)
        a_at, b_at = 0, spec.rank * sum(module.in_features for module in targets.values())
        self._drawn = b_at
        groups: dict[tuple[str, int, object], int] = {}
        for index, (name, module) in enumerate(targets.items()):
            inputs, outputs = module.in_features, module.out_features
            owner, _, own = name.rpartition(".")
            together = next((names for names in GROUPS if own in names), own)
            group = groups.setdefault((owner, inputs, together), len(groups))
            layer = TargetLayer(index, a_at, b_at, inputs, outputs, group)
            self._layers.append(layer)
            a_at, b_at = a_at + spec.rank * layer.inputs, b_at + spec.rank * layer.outputs
            self.hooks.append(module.register_forward_hook(self._hook(layer)))
        self.parameters = b_at
        members: list[list[TargetLayer]] = [[] for _ in groups]
        for layer in self._layers:
            members[layer.group].append(layer)
        self._groups = [
            SharedInput([x.index for x in own], torch.tensor([x.a_at for x in own], device=device))
            for own in members
        ]
        self._draw = partial(draw_first, [(x.inputs, spec.rank * x.inputs) for x in self._layers])
        if self._drawn > DRAWN_AT_ONCE:
            self.draws = RowDraws(self._draw, self._drawn, slots, device)
        self.weights_SP = torch.zeros(slots, self.parameters, device=device)
        self.moment_SP = torch.zeros_like(self.weights_SP)
        self.square_SP = torch.zeros_like(self.weights_SP)
        self.steps_S = torch.zeros(slots, device=device)
        self._seeds = [0] * slots
        self._updates = [0] * slots
        self._batch: Batch | None = None
        self._parts: tuple[Tensor, ...] | None = None
        self._shared: tuple[Tensor, int, dict[int, Tensor]] | None = None
        """The last input, its version, and ``x Aᵀ`` of the layers to come that are given it."""
        self._dropout_key_B: Tensor | None = None
        self._dropout_key_N: Tensor | None = None
        self._cached: tuple[tuple[int, ...], tuple[Tensor, ...]] | None = None

    def learner(self, cache: KVCache, plan: MemoryPlan, fill: Fill) -> LoRALearner:
        """A learner that takes AdamW steps."""
        return LoRALearner(self, cache, plan, fill)

    def factors(self, slot: int) -> list[tuple[Tensor, Tensor]]:
        """Views of a slot's A ``[rank, in]`` and B ``[out, rank]``, layer by layer."""
        parts = self._split(self.weights_SP[slot : slot + 1])
        shaped = (self._factors(parts, layer) for layer in self._layers)
        return [(a_BRI[0], b_BOR[0]) for a_BRI, b_BOR in shaped]

    @contextmanager
    def applied(
        self, batch: Batch, weights_UP: Tensor | None = None, key_B: Tensor | None = None
    ) -> Iterator[None]:
        """Add each segment's adapter to the model's layers for one forward pass.

        ``weights_UP`` replaces the stored weights where gradients are wanted, in the order of
        ``batch.groups``. ``key_B`` are the :meth:`dropout_keys` of segments whose inputs drop out.
        """
        if not batch.adapted:
            yield
            return
        self._batch = batch
        if key_B is not None:
            self._dropout_key_B, self._dropout_key_N = key_B, key_B[batch.segment_N]
        if weights_UP is not None:
            self._parts = self._split(weights_UP)
        elif not (batch.mode == "decode" and batch.token_ids_N.is_cuda):
            self._parts = self._gather(batch)
        try:
            yield
        finally:
            self._batch = self._parts = self._shared = None
            self._dropout_key_B = self._dropout_key_N = None

    def dropout_keys(self, slots: Sequence[int], numbers: Sequence[int]) -> Tensor | None:
        """The streams of a train pass's dropout: each a question's own, of its update.

        ``slots`` are those of the segments, ``numbers`` theirs among a step's targets.
        """
        if self.spec.dropout == 0:
            return None
        keys = [
            derive_key("dropout", self._seeds[slot], self._updates[slot], *([n] if n else []))
            for slot, n in zip(slots, numbers, strict=True)
        ]
        return sent(keys, self.weights_SP.device)

    def step(self, slots: Sequence[int], gradient_QP: Tensor) -> None:
        """One AdamW step (Loshchilov and Hutter 2019) of each slot's own weights.

        A slot whose gradient is not finite is left as it was.
        """
        spec, size = self.spec, max(1, STEP_NUMBERS // len(slots))
        updated = [bool(finite) for finite in gradient_QP.isfinite().all(-1).tolist()]
        chosen = [n for n, done in enumerate(updated) if done]
        index_Q = torch.tensor(slots, device=gradient_QP.device)[chosen]
        if len(chosen) < len(slots):
            gradient_QP = gradient_QP[chosen]
        scale_Q1 = torch.ones(len(chosen), 1, device=gradient_QP.device)
        if spec.max_grad_norm is not None:  # with the constant of torch.nn.utils.clip_grad_norm_
            norm_Q1 = gradient_QP.norm(dim=-1, keepdim=True)
            scale_Q1 = (spec.max_grad_norm / (norm_Q1 + 1e-6)).clamp(max=1)
        self.steps_S[index_Q] += 1
        t_Q1 = self.steps_S[index_Q, None].double()
        beta1, beta2 = spec.betas
        step_Q1 = (spec.lr / (1 - beta1**t_Q1)).float()
        root_Q1 = (1 - beta2**t_Q1).sqrt().float()
        for start in range(0, self.parameters, size):  # so that copies stay small
            part = slice(start, start + size)
            grad = gradient_QP[:, part] * scale_Q1
            moment = self.moment_SP[index_Q, part].lerp_(grad, 1 - beta1)
            square = self.square_SP[index_Q, part].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            weights = self.weights_SP[index_Q, part] * (1 - spec.lr * spec.weight_decay)
            weights -= step_Q1 * (moment / (square.sqrt() / root_Q1 + spec.eps))
            self.weights_SP[index_Q, part] = weights
            self.moment_SP[index_Q, part] = moment
            self.square_SP[index_Q, part] = square
        self._cached = None
        for slot in (slots[n] for n in chosen):
            self._updates[slot] += 1
            self.changed(slot)

    def fill(self, index: int, seed: int, row: DrawnRow | None = None) -> None:
        """A as PEFT draws it (Kaiming uniform: within ``1 / sqrt(in)``), B zero, no moments."""
        first_P = self.weights_SP[index, : self._drawn]
        if row is not None and self.draws is not None:
            self.draws.upload(row, first_P)
        else:
            numbers_P = torch.empty(self._drawn)
            self._draw(seed, numbers_P)
            first_P.copy_(numbers_P)
        self.weights_SP[index, self._drawn :] = 0
        self.moment_SP[index] = 0
        self.square_SP[index] = 0
        self.steps_S[index] = 0
        self._seeds[index], self._updates[index] = seed, 0
        self._cached = None

    def copy(self, source: int, target: int) -> None:
        """Weights, moments, steps, and the stream of the dropout."""
        for tensor in (self.weights_SP, self.moment_SP, self.square_SP, self.steps_S):
            tensor[target] = tensor[source]
        self._seeds[target], self._updates[target] = self._seeds[source], self._updates[source]
        self._cached = None

    def _gather(self, batch: Batch) -> tuple[Tensor, ...]:
        """Weights of each slot of a pass; kept for the next one, since decode steps are many."""
        slots = batch.groups.slots
        if self._cached is None or self._cached[0] != slots:
            if len(slots) == 1:
                weights_UP = self.weights_SP[slots[0] : slots[0] + 1]
            else:
                weights_UP = self.weights_SP[sent(slots, self.weights_SP.device)]
            self._cached = (slots, self._split(weights_UP))
        return self._cached[1]

    def _split(self, weights_BP: Tensor) -> tuple[Tensor, ...]:
        """Each layer's A, then each one's B, flat: one split, so that one backward joins them."""
        sizes = [layer.inputs for layer in self._layers] + [layer.outputs for layer in self._layers]
        parts: tuple[Tensor, ...] = weights_BP.split([self.spec.rank * n for n in sizes], dim=1)
        return parts

    def _factors(self, parts: tuple[Tensor, ...], layer: TargetLayer) -> tuple[Tensor, Tensor]:
        """A ``[B, rank, in]`` and B ``[B, out, rank]`` of a layer."""
        a = parts[layer.index].unflatten(1, (self.spec.rank, layer.inputs))
        b = parts[len(self._layers) + layer.index].unflatten(1, (layer.outputs, self.spec.rank))
        return a, b

    def _hook(self, layer: TargetLayer):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            batch = self._batch
            if batch is None:
                return None
            if self._parts is None:
                hidden_NSR = self._of_inputs(inputs[0], batch, layer)
                ops.gpu.add_lora(
                    hidden_NSR, output.flatten(0, -2), self.weights_SP, batch.slot_B,
                    b_at=layer.b_at, rank=self.spec.rank, scale=self.scale,
                )  # fmt: skip
                return output
            a_URI, b_UOR = self._factors(self._parts, layer)
            scale = InputScale(
                self._scale_1,
                self.spec.dropout,
                self._dropout_key_N,
                batch.position_N,
                len(self._layers),
                layer.index,
            )
            x = inputs[0]
            if batch.inside is not None:
                return self._add_inside(x, output, batch, scale, a_URI, b_UOR)
            tokens = x.shape[:-1].numel()
            if tokens != len(batch.position_N):
                raise UsageError(
                    f"A layer that carries an adapter is given {tokens} of the "
                    f"{len(batch.position_N)} tokens of a pass, as an expert of a mixture is; "
                    "choose other target layers."
                )
            return add_low_rank(output, x, a_URI, b_UOR, batch.groups, scale)

        return add

    def _of_inputs(self, x: Tensor, batch: Batch, layer: TargetLayer) -> Tensor:
        """``x Aᵀ`` of a layer, computed at once for all layers that are given this very input."""
        held, group = self._shared, self._groups[layer.group]
        known = held is not None and held[0] is x and held[1] == x._version
        if not known or held is None or layer.index not in held[2]:
            hidden_GNSR = ops.gpu.lora_inputs(
                x.flatten(0, -2), self.weights_SP, batch.slot_B, group.a_at_G, self.spec.rank
            )
            held = self._shared = x, x._version, dict(zip(group.layers, hidden_GNSR, strict=True))
        return held[2].pop(layer.index)

    def _add_inside(
        self,
        x: Tensor,
        output: Tensor,
        batch: Batch,
        scale: InputScale,
        a_URI: Tensor,
        b_UOR: Tensor,
    ) -> Tensor:
        """The same within a mixer, which runs some segments as a padded batch."""
        assert batch.inside is not None
        groups = [batch.groups.group_of[n] for n in batch.inside]
        own = [n for n, group in enumerate(groups) if group >= 0]
        own_B, group_B = torch.tensor(
            [own, [groups[n] for n in own]], dtype=torch.int64, device=x.device
        )
        x_BTI = batch.by_segment(x).float()
        if self._dropout_key_B is not None:
            segment_B = torch.tensor(batch.inside, device=x.device)
            token_BT = batch.past_B[segment_B, None] + torch.arange(x_BTI.shape[1], device=x.device)
            key_B = self._dropout_key_B[segment_B]
            x_BTI = x_BTI * scale.mask(key_B, token_BT, x_BTI.shape[-1])
        delta = (x_BTI[own_B] @ a_URI[group_B].transpose(1, 2)) @ b_UOR[group_B].transpose(1, 2)
        out_BTO = output.view(*x_BTI.shape[:2], -1)
        delta = (delta * self.scale).to(output.dtype)
        return out_BTO.index_add(0, own_B, delta).view_as(output)


def draw_first(layers: Sequence[tuple[int, int]], seed: int, row_P: Tensor) -> None:
    """Draw the A of all layers, of each its inputs and its size, as one layer after the other.

    Layers of the same bound are drawn at once, which gives the same numbers: between two draws a
    thread waits for Python's lock.
    """
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    at = 0
    for inputs, same in groupby(layers, key=itemgetter(0)):
        bound, size = 1 / math.sqrt(inputs), sum(size for _, size in same)
        row_P[at : at + size].uniform_(-bound, bound, generator=generator)
        at += size


class LoRALearner:
    """Takes one AdamW step a request, on contexts whose keys and values lie in cache rows."""

    def __init__(self, bank: LoRABank, cache: KVCache, plan: MemoryPlan, fill: Fill) -> None:
        self._bank, self._cache, self._plan, self._fill = bank, cache, plan, fill
        self._captured: CapturedPasses | None = None
        if plan.captured_bytes:
            token = plan.train_bytes / (1.25 * plan.train_tokens)
            self._captured = CapturedPasses(bank, cache, token, plan.captured_bytes)

    def check(self, request: TrainRequest) -> None:
        """Accept any request."""

    def reads(self, *, adapted: bool) -> bool:
        """Rows of adapted sequences, for their keys and values."""
        return self._bank.spec.learns_from(adapted=adapted)

    def due(self, queue: LessonQueue) -> tuple[int, bool]:
        """All of them, where each context of the first one can have a row."""
        if not queue:
            return 0, False
        plan, (rows, pages) = self._plan, self._cache.room(awaited=True)
        longest = max(len(lesson.context_ids) for lesson in queue[0].request.lessons)
        if rows <= 0 or pages < self._cache.count(longest):
            return 0, False
        full = queue.fills(self._cache, plan.train_tokens, plan.train_questions)
        return len(queue), full

    def run(self, queue: LessonQueue) -> list[Learned]:
        """Run as many requests as one pass holds; after an error they stay queued."""
        plan = self._plan
        jobs = queue.next_pass(self._cache, plan.train_tokens, plan.train_questions)
        try:
            losses = train_step(
                self._bank,
                self._cache,
                [job.request for job in jobs],
                plan.train_tokens,
                self._fill,
                plan.train_bytes,
                self._captured,
            )
        except Exception:
            queue.extendleft(reversed(jobs))
            raise
        return list(zip(jobs, losses, strict=True))
