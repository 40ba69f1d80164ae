"""One train step of many questions at once.

The sum of all questions' losses is differentiated once; since each question's weights touch only
its own segments, each gets exactly the gradient that it would have had alone.

Axes: N packed tokens, M tokens that carry a loss, Q questions, P adapter parameters, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fttt.engine.adapters import LoRABank
from fttt.engine.batch import Batch, Segment, by_length
from fttt.engine.cache import KVCache
from fttt.engine.request import Target
from fttt.engine.slots import Slot

__all__ = ["Lesson", "train_step"]

_WORTH_A_PASS = 1024
"""Tokens of padding that cost about as much as the launches of one more pass."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A train request whose context lies in a cache row."""

    slot: Slot
    row: int
    """It holds the context but for its last token, which may have been sampled and never run."""
    context: tuple[int, ...]
    targets: tuple[Target, ...]

    @property
    def whole(self) -> int:
        """Tokens of the longest sequence that the step runs."""
        return max(self._past(t) + len(t.token_ids) for t in self.targets)

    @property
    def tokens(self) -> int:
        """Tokens that the step runs through the model."""
        return sum(len(self.segment(t).token_ids) for t in self.targets)

    def segment(self, target: Target) -> Segment:
        """The context token that predicts the first target token, and all targets but the last.

        Tokens before it are read from the row.
        """
        past = self._past(target)
        ids = (self.context[past], *target.token_ids[:-1])
        return Segment(ids, self.row, past, self.slot.index, self.whole)

    def _past(self, target: Target) -> int:
        return (len(self.context) if target.after is None else target.after) - 1


Fill = Callable[[Sequence[Segment]], None]
"""Runs segments into their cache rows."""


def train_step(
    model: nn.Module, bank: LoRABank, cache: KVCache, lessons: Sequence[Lesson], fill: Fill
) -> list[tuple[float, ...]]:
    """Update each lesson's adapter once; return its targets' losses before the step.

    Targets of very different lengths are differentiated one length after the other, since
    attention and adapters pad the segments of a pass; the gradients add up before the step.
    A loss that is not finite leaves that question's weights as they were.

    Where layers carry a state, a row's is that after the whole context. For targets that come after
    less of it, that less is run again, under the adapter as it is.
    """
    slots = [lesson.slot.index for lesson in lessons]
    owned = [(q, target) for q, lesson in enumerate(lessons) for target in lesson.targets]
    segments = [lessons[q].segment(target) for q, target in owned]
    index_Q = torch.tensor(slots, device=cache.device)
    weights_QP = bank.weights_SP[index_Q].requires_grad_()
    found: dict[int, Tensor] = {}
    for part in _parts(cache, lessons, [q for q, _ in owned], segments, fill):
        batch = Batch.pack("train", [segments[n] for n in part], cache)
        owners = [owned[n][0] for n in part]
        with torch.enable_grad():
            weights_BP = weights_QP
            if owners != list(range(len(lessons))):
                weights_BP = weights_QP.index_select(0, torch.tensor(owners, device=cache.device))
        with torch.enable_grad(), bank.applied(batch, weights_BP):
            bank.drop_out([slots[q] for q in owners], batch)
            loss_B = _losses(model, batch, [segments[n] for n in part], [owned[n][1] for n in part])
            loss_B.sum().backward()
        found.update(zip(part, loss_B.detach(), strict=True))
    assert weights_QP.grad is not None
    bank.step(slots, weights_QP.grad)
    ordered = torch.stack([found[n] for n in range(len(owned))]).tolist()
    losses: list[list[float]] = [[] for _ in lessons]
    for (q, _), loss in zip(owned, ordered, strict=True):
        losses[q].append(loss)
    return [tuple(per_target) for per_target in losses]


def _parts(
    cache: KVCache,
    lessons: Sequence[Lesson],
    owners: Sequence[int],
    segments: Sequence[Segment],
    fill: Fill,
) -> Iterator[list[int]]:
    """Numbers of segments to run at once, whose rows are ready for them when they are handed out.

    Args:
        owners: the lesson of each segment.
    """
    waiting = list(range(len(segments)))
    ready = waiting
    while waiting:
        if cache.states is not None:
            ready = _with_one_past(lessons, owners, segments, waiting)
            again = {
                segments[n].row: Segment(
                    lessons[owners[n]].context[: segments[n].past],
                    segments[n].row,
                    0,
                    segments[n].slot,
                )
                for n in ready
                if segments[n].past not in {0, len(lessons[owners[n]].context) - 1}
            }
            if again:
                fill(list(again.values()))
        for part in by_length([len(segments[n].token_ids) for n in ready], _worth_padding):
            yield [ready[i] for i in part]
        waiting = [n for n in waiting if n not in ready]


def _with_one_past(
    lessons: Sequence[Lesson],
    owners: Sequence[int],
    segments: Sequence[Segment],
    waiting: Sequence[int],
) -> list[int]:
    """The segments to read a row's state at one place: first at its end, where it stands."""
    chosen: dict[int, int] = {}
    for n in sorted(waiting, key=lambda n: -segments[n].past):
        chosen.setdefault(owners[n], segments[n].past)
    return [n for n in waiting if segments[n].past in {0, chosen[owners[n]]}]


def _worth_padding(padded: int, own: int) -> bool:
    """A part may hold a quarter more than its own tokens, and what a pass costs in any case."""
    return padded <= 1.25 * own + _WORTH_A_PASS


def _losses(
    model: nn.Module, batch: Batch, segments: Sequence[Segment], targets: Sequence[Target]
) -> Tensor:
    """The weighted cross-entropy of each segment's target."""
    where: list[int] = []
    segment_of: list[int] = []
    weight: list[float] = []
    labels: list[int] = []
    for b, (segment, target, end) in enumerate(zip(segments, targets, batch.ends, strict=True)):
        first = end - len(segment.token_ids)
        for t, w in enumerate(target.weights):
            if w != 0:
                where.append(first + t)
                segment_of.append(b)
                weight.append(w)
                labels.append(target.token_ids[t])
    device = batch.token_ids_N.device
    where_M, segment_M, label_M = torch.tensor([where, segment_of, labels], device=device)
    logits_MV = run_model(model, batch, where_M).float()
    teachers = any(target.teacher_ids is not None for target in targets)
    if teachers:
        ce_M = _against_teachers(logits_MV, targets)
    else:
        ce_M = torch.nn.functional.cross_entropy(logits_MV, label_M, reduction="none")
    weighted_M = ce_M * torch.tensor(weight, device=device)
    return torch.zeros(len(segments), device=device).index_add(0, segment_M, weighted_M)


def _against_teachers(logits_MV: Tensor, targets: Sequence[Target]) -> Tensor:
    """Cross-entropy against each token's teacher, or its own label where there is none."""
    rows: list[tuple[Sequence[int], Sequence[float]]] = []
    for target in targets:
        for t, w in enumerate(target.weights):
            if w == 0:
                continue
            if target.teacher_ids is None or target.teacher_logprobs is None:
                rows.append(([target.token_ids[t]], [0.0]))
            else:
                rows.append((target.teacher_ids[t], target.teacher_logprobs[t]))
    widest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*i, *([0] * (widest - len(i)))] for i, _ in rows])
    logs = torch.tensor([[*lp, *([float("-inf")] * (widest - len(lp)))] for _, lp in rows])
    ids, probs = ids.to(logits_MV.device), logs.exp().to(logits_MV.device)
    return -(probs * logits_MV.log_softmax(-1).gather(1, ids)).sum(-1)


def run_model(model: Any, batch: Batch, where: Tensor | slice) -> Tensor:
    """One forward pass; logits ``[M, V]`` at the packed positions ``where``."""
    output = model(
        input_ids=batch.token_ids_N[None],
        position_ids=batch.position_N[None],
        use_cache=False,
        logits_to_keep=where if isinstance(where, Tensor) else 0,
        fttt_batch=batch,
    )
    logits: Tensor = output.logits[0]
    return logits
