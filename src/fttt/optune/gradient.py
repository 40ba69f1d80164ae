"""The loss of a window of examples, and the network's exact gradient.

A window's factors are recorded first and added to the statistics; only then are changes predicted
from them, so that the same statistics serve every example of a window. Losses and gradients are
sums over examples, which the caller divides by the number of examples of the whole window: neither
micro-batches nor processes change the result.

Axes: M tokens that carry a loss, Q examples, P parameters of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fttt.engine.adapters.delta import FactoredDelta, Factors, changed, record_factors
from fttt.engine.batch import Batch
from fttt.engine.hidden_cache import Upper, upper_part
from fttt.engine.ops.sampling import derive_key
from fttt.engine.sequences import pack_sequences, weighted_nll
from fttt.optune.attempts import AttemptExample
from fttt.optune.network import OpTuneNetwork
from fttt.training import GoldExample

__all__ = ["GradientRunner", "Part", "Sums"]


@dataclass(frozen=True, slots=True)
class Part:
    """The examples of one pass, and their factors."""

    examples: tuple[AttemptExample, ...]
    factors: Factors

    def apart(self) -> Iterator[Part]:
        """One part for each example."""
        for example, one in zip(self.examples, self.factors.groups(1), strict=True):
            yield Part((example,), one)


@dataclass(slots=True)
class Sums:
    """Sums over the examples with finite losses and gradients."""

    gradient_P: Tensor
    loss: Tensor
    """A scalar."""
    examples: int = 0

    def add(self, other: Sums) -> None:
        """Add other sums."""
        self.gradient_P += other.gradient_P
        self.loss += other.loss
        self.examples += other.examples


class GradientRunner:
    """Computes a network's losses and gradients on the frozen model that it changes.

    The model is :func:`fttt.engine.sequences.prepared`.
    """

    def __init__(
        self, model: Any, network: OpTuneNetwork, batch_tokens: int, reuse_bytes: int = 0
    ) -> None:
        """Take a model and a network on one device.

        Args:
            model: frozen, in any precision.
            network: a network for layers of the model.
            batch_tokens: maximum tokens of a micro-batch, conversations and solutions together; a
                longer example runs alone.
            reuse_bytes: host memory for the hidden states that the layers below the edited ones
                compute for gold solutions, which are the same for every attempt at a question.
        """
        self.model, self.network = model, network
        self.batch_tokens = batch_tokens
        self.parameters = list(network.parameters())
        self._names = [layer.name for layer in network.layers]
        self._upper = upper_part(model, self._names) if reuse_bytes else None
        self._hidden: dict[GoldExample, Tensor] = {}
        self._room = reuse_bytes

    def record(self, examples: Sequence[AttemptExample]) -> list[Part]:
        """The factors of examples under the unmodified model, without those that are not finite."""
        return [part for group in self._groups(examples) for part in self._record(group)]

    def gradient(self, parts: Sequence[Part], seed: int, step: int) -> Sums:
        """The sums of loss and gradient of recorded examples, under dropout.

        An example whose loss or gradient is not finite is left out, and the others of its
        micro-batch run again without it.

        Args:
            parts: results of :meth:`record`.
            seed: seed of dropout; each example's stream depends on it, the step and the example.
            step: the window's number.
        """
        sums = self.nothing()
        for part in parts:
            sums.add(self._gradient(part, seed, step))
        return sums

    @torch.no_grad()
    def losses(self, parts: Sequence[Part], *, change: bool = True) -> Sums:
        """The sum of losses without dropout or gradient; ``change=False`` for the base model."""
        sums = self.nothing()
        for part in parts:
            loss_Q = self._loss(part, self.network.factored(part.factors) if change else {})[1]
            finite_Q = loss_Q.isfinite()
            sums.loss += loss_Q[finite_Q].sum()
            sums.examples += int(finite_Q.sum())
        return sums

    def nothing(self) -> Sums:
        """Sums over no examples."""
        device = self.network.alpha_L.device
        size = sum(p.numel() for p in self.parameters)
        return Sums(torch.zeros(size, device=device), torch.zeros((), device=device))

    def _record(self, group: Sequence[AttemptExample]) -> list[Part]:
        batch = pack_sequences(self.model, [e.conversation_ids for e in group])
        factors = record_factors(self.model, batch, self._names)
        if _finite(factors):
            return [Part(tuple(group), factors)]
        alone = [[example] for example in group] if len(group) > 1 else []
        return [part for one in alone for part in self._record(one)]

    def _gradient(self, part: Part, seed: int, step: int) -> Sums:
        keys = [derive_key("dropout", seed, step, e.key) for e in part.examples]
        keys_Q = torch.tensor(keys, device=part.factors.segment_N.device)
        with torch.enable_grad():
            loss, _ = self._loss(part, self.network.factored(part.factors, keys_Q))
            gradients = torch.autograd.grad(loss, self.parameters)
        gradient_P = torch.cat([g.flatten() for g in gradients])
        if bool(gradient_P.isfinite().all() & loss.isfinite()):
            return Sums(gradient_P, loss.detach(), len(part.examples))
        sums = self.nothing()
        for one in part.apart() if len(part.examples) > 1 else ():
            sums.add(self._gradient(one, seed, step))
        return sums

    def _loss(self, part: Part, deltas: dict[str, FactoredDelta]) -> tuple[Tensor, Tensor]:
        """The sum of the examples' losses with its graph, and each loss without a graph.

        A loss is the mean cross-entropy of the gold solution's tokens under the changed model.
        """
        golds = [e.gold for e in part.examples]
        counts = [len(g.solution_ids) for g in golds]
        batch = self._pack(golds)
        where_M, segment_M = _solution_tokens(batch, counts)
        device = where_M.device
        label_M = torch.tensor([i for g in golds for i in g.solution_ids], device=device)
        weight_Q = torch.tensor([1 / count for count in counts], device=device)
        weight_M = weight_Q[segment_M]
        with ExitStack() as stack:
            if self._upper is not None:
                stack.enter_context(self._upper.given(self._below(self._upper, golds)))
            stack.enter_context(changed(self.model, batch, deltas))
            loss, nll_M = weighted_nll(self.model, batch, where_M, label_M, weight_M)
        loss_Q = torch.zeros_like(weight_Q).index_add(0, segment_M, nll_M * weight_M)
        return loss, loss_Q

    def _pack(self, golds: Sequence[GoldExample]) -> Batch:
        return pack_sequences(self.model, [g.prompt_ids + g.solution_ids[:-1] for g in golds])

    def _below(self, upper: Upper, golds: Sequence[GoldExample]) -> Tensor:
        """The edited layers' inputs for gold solutions, kept for reuse while memory lasts."""
        device = self.network.alpha_L.device
        found = {g: self._hidden[g].to(device) for g in golds if g in self._hidden}
        missing = [g for g in dict.fromkeys(golds) if g not in found]
        if missing:
            batch = self._pack(missing)
            for gold, hidden_ND in zip(
                missing, upper.hidden(batch).split(batch.lengths), strict=True
            ):
                found[gold] = hidden_ND
                if hidden_ND.nbytes <= self._room:
                    self._room -= hidden_ND.nbytes
                    self._hidden[gold] = hidden_ND.cpu()
        return torch.cat([found[g] for g in golds])

    def _groups(self, examples: Sequence[AttemptExample]) -> Iterator[list[AttemptExample]]:
        """Micro-batches of examples of similar length."""
        group: list[AttemptExample] = []
        tokens = 0
        for example in sorted(examples, key=lambda e: (len(e.conversation_ids), e.key)):
            own = _tokens(example)
            if group and tokens + own > self.batch_tokens:
                yield group
                group, tokens = [], 0
            group.append(example)
            tokens += own
        if group:
            yield group


def _tokens(example: AttemptExample) -> int:
    return len(example.conversation_ids) + example.gold.length


def _solution_tokens(batch: Batch, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The packed positions that predict solution tokens, and the example of each."""
    device = batch.token_ids_N.device
    where = [
        end - count + t for end, count in zip(batch.ends, counts, strict=True) for t in range(count)
    ]
    segment_M = torch.repeat_interleave(torch.tensor(counts))
    return torch.tensor(where, device=device), segment_M.to(device)


def _finite(factors: Factors) -> bool:
    tensors = [*factors.x_NI.values(), *factors.delta_NO.values()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
