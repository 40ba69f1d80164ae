"""Train passes: which requests one takes, and what each kind of adapter does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from fttt.engine.adapters import LoRABank
from fttt.engine.batch import Segment
from fttt.engine.below import Below
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.deltas import DeltaBank
from fttt.engine.jobs import LessonQueue, TrainJob
from fttt.engine.plan import MemoryPlan
from fttt.engine.record import record_factors
from fttt.engine.request import AdapterSpec, LoRASpec, TrainRequest
from fttt.engine.sequences import pack_sequences
from fttt.engine.slots import Bank, slot_index
from fttt.engine.trainer import train_step
from fttt.engine.upper import upper_part
from fttt.errors import UsageError

__all__ = ["DeltaLearner", "Learner", "LoRALearner", "learner_for", "make_bank"]

Learned = tuple[TrainJob, tuple[float, ...]]
"""A request that was carried out, and its targets' losses before the step."""


class Learner(Protocol):
    """Carries out train requests."""

    def check(self, request: TrainRequest) -> None:
        """Refuse what this kind of adapter cannot learn from.

        Raises:
            UsageError: the request is such.
        """

    def reads(self, *, adapted: bool) -> bool:
        """Whether a step reads the rows of sequences written with an adapter, or without one."""

    def due(self, queue: LessonQueue) -> int:
        """How many requests could be carried out now, 0 where the first one must wait."""

    def run(self, queue: LessonQueue) -> list[Learned]:
        """Take as many requests as one pass holds and carry them out; an error leaves them."""


class LoRALearner:
    """One AdamW step each, on contexts whose keys and values lie in cache rows."""

    def __init__(
        self,
        model: nn.Module,
        bank: LoRABank,
        cache: KVCache,
        plan: MemoryPlan,
        fill: Callable[[Sequence[Segment]], None],
    ) -> None:
        self._model, self._bank, self._cache = model, bank, cache
        self._plan, self._fill = plan, fill

    def check(self, request: TrainRequest) -> None:
        """Anything can be learned from."""

    def reads(self, *, adapted: bool) -> bool:
        """Those that the adapter learns from, by their keys and values."""
        return self._bank.spec.learns_from(adapted=adapted)

    def due(self, queue: LessonQueue) -> int:
        """All, where a context that needs a row can have one."""
        return len(queue) if self._cache.free + self._cache.kept > 0 else 0

    def run(self, queue: LessonQueue) -> list[Learned]:
        """Take as many requests as one pass holds and carry them out; an error leaves them."""
        plan = self._plan
        jobs = queue.next_pass(self._cache, plan.train_tokens, plan.train_questions)
        try:
            losses = train_step(
                self._model,
                self._bank,
                self._cache,
                [job.request for job in jobs],
                self._plan.train_tokens,
                self._fill,
            )
        except Exception:
            queue.extendleft(reversed(jobs))
            raise
        return list(zip(jobs, losses, strict=True))


class DeltaLearner:
    """One predicted change of the weights each, from the factors of the whole sequence's loss.

    Only layers from the first edited one on run all of it. Those below run what follows the context
    where that is still kept.
    """

    def __init__(
        self, model: Any, bank: DeltaBank, cache: KVCache, plan: MemoryPlan, below: Below | None
    ) -> None:
        """``below`` is ``None`` where the lowest layer is edited."""
        self._model, self._bank, self._cache, self._plan = model, bank, cache, plan
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
        """Those that the change learns from, by what the layers below the edited ones gave."""
        return self._below is not None and self._bank.spec.learns_from(adapted=adapted)

    def due(self, queue: LessonQueue) -> int:
        """All: none needs a row."""
        return len(queue)

    def run(self, queue: LessonQueue) -> list[Learned]:
        """Take as many requests as one pass holds and carry them out; an error leaves them.

        A loss or a change that is not finite is answered by a loss that is not finite.
        """
        jobs, sequences = self._take(queue)
        try:
            losses = self._learn([job.request for job in jobs], sequences)
        except Exception:
            queue.extendleft(reversed(jobs))
            raise
        return [(job, (loss,)) for job, loss in zip(jobs, losses, strict=True)]

    def _take(self, queue: LessonQueue) -> tuple[list[TrainJob], list[tuple[int, ...]]]:
        """Requests of different adapters, one at least, and the tokens of each."""
        jobs: list[TrainJob] = []
        sequences: list[tuple[int, ...]] = []
        slots: set[object] = set()
        longest = 0  # the attention and a network may pad all of them to it
        while queue:
            request = queue[0].request
            ids = _sequence(request)
            longest = max(longest, len(ids))
            padded = (len(jobs) + 1) * longest
            if jobs and (padded > self._plan.train_tokens or request.adapter in slots):
                break
            slots.add(request.adapter)
            jobs.append(queue.popleft())
            sequences.append(ids)
        return jobs, sequences

    def _learn(
        self, requests: Sequence[TrainRequest], sequences: Sequence[tuple[int, ...]]
    ) -> list[float]:
        spec, slots = self._bank.spec, [slot_index(request.adapter) for request in requests]
        weights = [
            (0.0,) * (len(ids) - 1 - len(target.weights)) + target.weights
            for ids, target in zip(sequences, (r.targets[0] for r in requests), strict=True)
        ]
        under = slots if spec.accumulate else None
        contexts = [request.lessons[0].context for request in requests]
        batch = pack_sequences(self._model, sequences, under, self._cache)
        changed: list[bool] = []
        with torch.no_grad():
            start = self._below.given(sequences, contexts) if self._below else nullcontext()
            with start, self._bank.applied(batch):
                factors = record_factors(self._model, batch, spec.layers, weights)
            for part in factors.groups(self._plan.train_questions):
                own = slots[len(changed) : len(changed) + part.examples]
                changed += self._bank.step(own, spec.predict(part))
        for context in contexts:
            if isinstance(context, KeptRow):
                context.awaited = False  # its owner may still go on from it
        losses = factors.loss_Q.tolist()
        return [loss if done else float("nan") for loss, done in zip(losses, changed, strict=True)]


def make_bank(model: nn.Module, spec: AdapterSpec, slots: int, device: torch.device) -> Bank:
    """The slots of a kind of adapter, hooked into a model's layers."""
    if isinstance(spec, LoRASpec):
        return LoRABank(model, spec, slots, device)
    return DeltaBank(model, spec, slots, device)


def learner_for(
    model: nn.Module,
    bank: Bank | None,
    cache: KVCache,
    plan: MemoryPlan,
    fill: Callable[[Sequence[Segment]], None],
) -> Learner | None:
    """What carries out the train requests of a bank's adapters."""
    if isinstance(bank, LoRABank):
        return LoRALearner(model, bank, cache, plan, fill)
    if not isinstance(bank, DeltaBank):
        return None
    upper = upper_part(model, bank.spec.layers)
    below = Below(upper, cache) if upper else None
    if below:
        bank.hooks.append(below.hook)  # which the bank takes off with its own
    return DeltaLearner(model, bank, cache, plan, below)


def _sequence(request: TrainRequest) -> tuple[int, ...]:
    """All tokens that the target's loss depends on."""
    context, target = request.lessons[0].context, request.targets[0]
    ids = context if isinstance(context, tuple) else context.token_ids
    return ids[: target.after] + target.token_ids
