"""One train step of many questions at once.

The sum of all questions' losses is differentiated together; since each question's weights touch
only its own segments, each gets exactly the gradient that it would have had alone. What does not
fit one pass is taken in several, whose gradients add up before the step.

Axes: N packed tokens, M tokens that carry a loss, Q questions, P adapter parameters, K tokens of a
teacher, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fttt.engine.adapters.bank import Fill, decoder_layers, slot_index
from fttt.engine.batch import Batch, Segment, passes, sent
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.request import Target, TrainRequest
from fttt.engine.sequences import weighted_loss
from fttt.errors import UsageError

if TYPE_CHECKING:
    from fttt.engine.adapters.lora import LoRABank
    from fttt.engine.captured_pass import CapturedPasses

__all__ = ["LossTerms", "check_targets", "pass_loss", "train_step", "worth_padding"]

_WORTH_A_PASS = 1024
"""Tokens of padding that cost about as much as the launches of one more pass."""


@dataclass(slots=True)
class ContextTargets:
    """A context, the row that holds its first tokens, and all targets of a question after it."""

    question: int
    """Its number in the step."""
    slot: int
    context: tuple[int, ...]
    kept: KeptRow | None = None
    """Where its keys and values may be held."""
    targets: list[tuple[int, Target]] = field(default_factory=list)
    """Each with its number among all targets of the request."""
    row: int = -1
    held: int = 0
    """Tokens of the context in the row."""

    @property
    def whole(self) -> int:
        """Tokens of the longest sequence that the step runs."""
        return max(self.past(t) + 1 + len(t.token_ids) for _, t in self.targets)

    @property
    def needed(self) -> int:
        """Tokens of the context that some target reads from a row."""
        return max(self.past(t) for _, t in self.targets)

    @property
    def tokens(self) -> int:
        """Tokens that the step runs through the model."""
        return sum(len(t.token_ids) for _, t in self.targets)

    def past(self, target: Target) -> int:
        """Tokens before the one that predicts the first of a target."""
        return (len(self.context) if target.after is None else target.after) - 1

    def segment(self, target: Target) -> Segment:
        """The context token that predicts the first target token, and all targets but the last.

        Tokens before it are read from the row.
        """
        past = self.past(target)
        ids = (self.context[past], *target.token_ids[:-1])
        return Segment(ids, self.row, past, self.slot, self.whole)


def check_targets(request: TrainRequest, max_length: int, longest: int) -> None:
    """Refuse a request whose numbers do not fit each other, a row, or a pass of ``longest`` tokens.

    Raises:
        UsageError: it is such.
    """
    if not any(lesson.targets for lesson in request.lessons):
        raise UsageError("A train step needs a target; give one lesson with one or more.")
    for lesson in request.lessons:
        context = lesson.context_ids
        for target in lesson.targets:
            after = len(context) if target.after is None else target.after
            if not 1 <= after <= len(context):
                raise UsageError(
                    f"A target comes after {after} of a context's {len(context)} tokens; let it "
                    f"come after 1 to {len(context)}."
                )
            places = len(target.token_ids)
            teacher = places if target.teacher is None else len(target.teacher.token_ids)
            if not len(target.weights) == teacher == places > 0:
                raise UsageError(
                    f"A target of {places} tokens has {len(target.weights)} weights and a teacher "
                    f"of {teacher} places; give one for each of one token or more."
                )
            if after > max_length or places > longest:
                raise UsageError(
                    f"A target of {places} tokens after {after} does not fit a train step of "
                    f"{longest} after {max_length}; lower --max-new-tokens."
                )


def train_step(
    bank: LoRABank,
    cache: KVCache,
    requests: Sequence[TrainRequest],
    tokens: int,
    fill: Fill,
    room: int = 0,
    captured: CapturedPasses | None = None,
) -> list[tuple[float, ...]]:
    """Update each request's adapter once; return its targets' losses before the step.

    Contexts take rows of the cache, as many at once as it has and as ``tokens`` allow; ``room`` is
    the memory that such a pass was planned with. Targets of very different lengths are
    differentiated one length after the other, since attention pads the segments of a pass. A
    gradient that is not finite leaves that question's weights as they were. The device is not
    waited for before all passes are launched.

    Args:
        captured: runs the passes that it has captured.
    """
    slots = [slot_index(request.adapter) for request in requests]
    question_of = {slot: q for q, slot in enumerate(slots)}
    gradient_QP: Tensor | None = None
    losses = [[0.0] * len(request.targets) for request in requests]
    found: list[tuple[list[tuple[ContextTargets, int, Target]], Tensor]] = []
    waiting = _contexts(requests, slots)
    while waiting:
        now = _place(waiting, bank, cache, tokens, fill)
        waiting = waiting[len(now) :]
        owned = [(lesson, n, target) for lesson in now for n, target in lesson.targets]
        segments = [lesson.segment(target) for lesson, _, target in owned]
        for part in _parts(cache, [lesson for lesson, _, _ in owned], segments, tokens, fill):
            own = [owned[n] for n in part]
            given = [segments[n] for n in part], [x for _, _, x in own], [n for _, n, _ in own]
            done = captured.run(*given) if captured is not None else None
            loss_B, gradient_UP = done or _run_pass(bank, cache, *given, tokens, room)
            found.append((own, loss_B))
            questions = [question_of[x] for x in dict.fromkeys(x.slot for x in given[0])]
            if questions == list(range(len(slots))) and gradient_QP is None:
                gradient_QP = gradient_UP
                continue
            if gradient_QP is None:
                gradient_QP = gradient_UP.new_zeros(len(slots), gradient_UP.shape[1])
            gradient_QP.index_add_(0, sent(questions, cache.device), gradient_UP)
        for lesson in now:
            if lesson.held:
                cache.give(lesson.row)
    assert gradient_QP is not None
    bank.step(slots, gradient_QP)
    for own, loss_B in found:
        for (lesson, n, _), loss in zip(own, loss_B.tolist(), strict=True):
            losses[lesson.question][n] = loss
    return [tuple(all_of_one) for all_of_one in losses]


def _run_pass(
    bank: LoRABank,
    cache: KVCache,
    segments: Sequence[Segment],
    targets: Sequence[Target],
    numbers: Sequence[int],
    tokens: int,
    room: int,
) -> tuple[Tensor, Tensor]:
    """The losses of targets ``[B]``, and their gradient ``[U, P]``, in the order of their slots."""
    batch = Batch.pack("train", segments, cache)
    share = len(segments) * batch.longest / (1.25 * tokens)
    again = _rerun(bank.model) if share > 1 else nullcontext()
    batch.recompute = _read_bytes(batch) > (1 - share) * room
    weights_UP = bank.weights_SP[sent(batch.groups.slots, cache.device)]
    weights_UP.requires_grad_()
    key_B = bank.dropout_keys([s.slot for s in segments], numbers)
    terms = _terms(batch, targets)
    with torch.enable_grad(), bank.applied(batch, weights_UP, key_B), again:
        total, loss_B = pass_loss(bank.model, batch, terms)
        (gradient_UP,) = torch.autograd.grad(total, weights_UP)
    return loss_B, gradient_UP


def _read_bytes(batch: Batch) -> float:
    """What all layers' keys and values take where each is held for the gradient as it is read."""
    if batch.cache.states is not None:  # whose scans take more
        return inf
    return len(batch.lengths) * (max(batch.pasts) + batch.longest) * batch.cache.read_bytes


@contextmanager
def _rerun(model: nn.Module) -> Iterator[None]:
    """Let decoder layers keep only their inputs, and run again for the gradient one by one.

    A sequence that is longer than a pass then holds little more than a layer's activations.
    """

    def held(forward: Callable[..., Any]) -> Callable[..., Any]:
        return partial(
            checkpoint, forward,
            use_reentrant=False, preserve_rng_state=False, determinism_check="none",
        )  # fmt: skip

    with ExitStack() as stack:
        for layer in decoder_layers(model):
            stack.enter_context(patch.object(layer, "forward", held(layer.forward)))
        yield


def _contexts(requests: Sequence[TrainRequest], slots: Sequence[int]) -> list[ContextTargets]:
    """The contexts of all requests; lessons of one question after the same tokens share one."""
    found: dict[tuple[int, tuple[int, ...]], ContextTargets] = {}
    for q, request in enumerate(requests):
        number = 0
        for lesson in request.lessons:
            context, ids = lesson.context, lesson.context_ids
            own = found.setdefault((q, ids), ContextTargets(q, slots[q], ids))
            if isinstance(context, KeptRow) and context.row is not None:
                own.kept = context
            own.targets += enumerate(lesson.targets, number)
            number += len(lesson.targets)
    return [own for own in found.values() if own.targets]


def _place(
    waiting: Sequence[ContextTargets], bank: LoRABank, cache: KVCache, tokens: int, fill: Fill
) -> Sequence[ContextTargets]:
    """Give the first contexts a row each, up to ``tokens`` or what the cache has, and fill them.

    A kept row is taken over where it holds what the adapter, as it is, would write.
    """
    rows, pages = cache.room(awaited=True)
    total, count = 0, 0
    for lesson in waiting:
        needs = lesson.needed > 0
        rows -= needs
        pages -= cache.count(max(lesson.needed, len(lesson.context) * (lesson.kept is not None)))
        if count and (total >= tokens or (needs and min(rows, pages) < 0)):
            break
        total += lesson.tokens
        count += 1
    now = waiting[:count]
    for lesson in now:
        kept = lesson.kept
        if kept is None:
            continue
        kept.awaited = False
        if kept.version == bank.version(lesson.slot) and kept.serves(lesson.whole):
            row = cache.claim(kept)
            assert row is not None
            lesson.row, lesson.held = row, len(lesson.context) - 1
    missing = [lesson for lesson in now if lesson.needed and not lesson.held]
    for lesson in missing:
        row = cache.take(lesson.needed)
        assert row is not None
        lesson.row, lesson.held = row, lesson.needed
    fill(
        [
            Segment(lesson.context[: lesson.held], lesson.row, 0, lesson.slot, lesson.whole)
            for lesson in missing
        ]
    )
    return now


def _parts(
    cache: KVCache,
    owners: Sequence[ContextTargets],
    segments: Sequence[Segment],
    tokens: int,
    fill: Fill,
) -> Iterator[list[int]]:
    """Yield numbers of segments that run in one pass, with their rows ready for them.

    Where layers carry a state, a row's is that after all tokens that it holds. For targets that
    come after less of it, that less is run again, under the adapter as it is.

    Args:
        owners: of each segment.
    """

    waiting = list(range(len(segments)))
    ready = waiting
    while waiting:
        if cache.states is not None:
            ready = _with_one_past(owners, segments, waiting)
            again = {
                segments[n].row: Segment(
                    owners[n].context[: segments[n].past], segments[n].row, 0, segments[n].slot
                )
                for n in ready
                if segments[n].past not in {0, owners[n].held}
            }
            if again:
                fill(list(again.values()))
        fits = partial(worth_padding, tokens=tokens)
        for part in passes([segments[n] for n in ready], fits, copied=cache.read_bytes > 0):
            yield [ready[i] for i in part]
        waiting = [n for n in waiting if n not in ready]


def worth_padding(padded: int, own: int, tokens: int) -> bool:
    """Whether a pass may have ``padded`` tokens where ``own`` of them are no padding.

    A quarter may be padding, and as many tokens more as cost what another pass would.
    """
    return padded <= min(1.25 * tokens, 1.25 * own + _WORTH_A_PASS)


def _with_one_past(
    owners: Sequence[ContextTargets], segments: Sequence[Segment], waiting: Sequence[int]
) -> list[int]:
    """Segments that read their row's state at one place: first at the row's end."""
    chosen: dict[int, int] = {}
    for n in sorted(waiting, key=lambda n: -segments[n].past):
        chosen.setdefault(id(owners[n]), segments[n].past)
    return [n for n in waiting if segments[n].past in {0, chosen[id(owners[n])]}]


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What a pass's loss is made of: ``log p`` of tokens at packed positions, with weights."""

    where_M: Tensor
    segment_M: Tensor
    id_MK: Tensor
    weight_MK: Tensor
    tail_M: Tensor | None = None


def pass_loss(model: nn.Module, batch: Batch, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """The sum of the losses, differentiable, and that of each segment's target, ``[B]``."""
    weight_MK, tail_M = terms.weight_MK, terms.tail_M
    total, log_MK, rest_M = weighted_loss(
        model, batch, terms.where_M, terms.id_MK, weight_MK, tail_M
    )
    loss_M = -(weight_MK * log_MK).sum(-1)
    if tail_M is not None:
        loss_M -= tail_M * rest_M
    return total, loss_M.new_zeros(len(batch.lengths)).index_add_(0, terms.segment_M, loss_M)


def _terms(batch: Batch, targets: Sequence[Target]) -> LossTerms:
    """The terms of targets' losses.

    Every form is a teacher's: a label has its own token with a weight of 1, and what is unlearned
    has it with none and a tail of 1.
    """
    where: list[int] = []
    segment_of: list[int] = []
    ids: list[tuple[int, ...]] = []
    weights: list[Sequence[float]] = []
    tails: list[float] = []
    for b, (target, end, length) in enumerate(zip(targets, batch.ends, batch.lengths, strict=True)):
        for t, w in enumerate(target.weights):
            if w == 0:
                continue
            where.append(end - length + t)
            segment_of.append(b)
            teacher = target.teacher
            label = 1.0 if target.form == "nll" else 0.0
            own = (target.token_ids[t],)
            if teacher is not None and not teacher.token_ids[t]:  # all tokens as one: certain
                ids.append(own)
                weights.append([0.0])
                tails.append(0.0)
                continue
            ids.append(own if teacher is None else teacher.token_ids[t])
            weights.append([w * x for x in ([label] if teacher is None else teacher.weights[t])])
            tails.append(w * (1 - label if teacher is None else teacher.tail[t]))
    device = batch.token_ids_N.device
    where_M, segment_M = sent(torch.tensor([where, segment_of], dtype=torch.int64), device)
    widest = max(map(len, ids), default=0)
    id_MK = sent([[*i, *(i[:1] * (widest - len(i)))] for i in ids], device)
    id_MK = id_MK.view(len(ids), widest).long()
    padded = [[*w, *([0.0] * (widest - len(w)))] for w in weights]
    weight_MK = sent(padded, device).view(len(ids), widest)
    # Known here, so that the device need not be asked while the pass is launched.
    tail_M = sent(tails, device) if any(tails) else None
    return LossTerms(where_M, segment_M, id_MK, weight_MK, tail_M)
