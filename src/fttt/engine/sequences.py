"""Whole sequences in one pass, ragged and packed: their rows, losses and log-probabilities.

What learns from question, attempt and feedback together, or from a gold solution, runs the model
through this module: OpTune's factors and its training.

Axes: N packed tokens, B sequences, M tokens that carry a loss (m of them at once), K tokens of a
teacher, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from transformers.utils.generic import ModelOutput

from fttt.engine.adapters.bank import Bank, applied, slot_index
from fttt.engine.attention import KERNELS
from fttt.engine.batch import (
    Batch,
    Segment,
    by_context,
    by_length,
    decoder_of,
    passes,
    sent,
)
from fttt.engine.cache import KeptRow, KVCache, read_heads
from fttt.engine.families import replacements_for
from fttt.engine.request import ScoreRequest
from fttt.engine.states import Mixers
from fttt.errors import RunError, UsageError
from fttt.models.loader import Prefix

__all__ = [
    "Prefiller",
    "Scorer",
    "in_order",
    "pack_sequences",
    "prepared",
    "run_layers",
    "run_model",
    "weighted_loss",
    "weighted_nll",
]

MASK_PLACES = 2**24
"""Most tokens times keys of one pass over a part of a long prompt."""
LEAST_PASS = 256
"""Tokens that such a pass has all the same."""
LOGIT_BYTES = 2**28
"""Of float32 logits that are held at once where a loss is taken in chunks."""
FLOOR = -100.0
"""Lower bound of the log-probability of all tokens outside a list, so that it stays finite."""
Score = tuple[tuple[float, ...], tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]
"""Log-probabilities of given tokens, and the likeliest ones with theirs."""


@contextmanager
def prepared(model: Any, *, faster: bool = True) -> Iterator[None]:
    """Let a model run packed sequences outside an engine, and restore its own code at the end.

    ``faster=False`` leaves all but what packing needs to the model's own code.
    """
    read_heads(model)  # while its code is its own
    replacements = replacements_for(model, model.device, Mixers(model), faster=faster)
    replacements.enable()
    try:
        with sdpa_kernel(KERNELS):
            yield
    finally:
        replacements.disable()


def pack_sequences(
    model: Any,
    sequences: Sequence[Sequence[int]],
    slots: Sequence[int] | None = None,
    cache: KVCache | None = None,
    *,
    prefix: Prefix | None = None,
    dtype: torch.dtype | None = None,
) -> Batch:
    """Lay sequences of token ids end to end; each attends to itself from its first token on.

    Args:
        model: a ``transformers`` model that is :func:`prepared`, or an engine's.
        sequences: token ids, of any lengths.
        slots: the adapter's slot of each; without them the base model runs.
        cache: an engine's, for the prefix that sequences begin with; nothing else of it is read.
        prefix: what every sequence begins with where there is no engine; gradients reach it.
        dtype: of keys and values, where it is not the model's.
    """
    if cache is None:
        room = -(-prefix.length // 8) * 8 if prefix else 0  # aligned for the fused kernels
        cache = KVCache.of(model, rows=0, capacity=room, prefix=prefix, dtype=dtype)
    own = [-1] * len(sequences) if slots is None else slots
    segments = [Segment(ids, -1, 0, slot) for ids, slot in zip(sequences, own, strict=True)]
    return Batch.pack("train", segments, cache)


def weighted_nll(
    model: Any, batch: Batch, where_M: Tensor, label_M: Tensor, weight_M: Tensor
) -> tuple[Tensor, Tensor]:
    """``sum_m weight_m · NLL_m`` of the labels at packed positions, as :func:`weighted_loss`.

    Returns:
        The sum, differentiable where the hidden states are, and ``NLL_M``, which is not.
    """
    loss, log_MK, _ = weighted_loss(
        model, batch, where_M, label_M[:, None], weight_M[:, None], None
    )
    return loss, -log_MK[:, 0]


def weighted_loss(
    model: Any,
    batch: Batch,
    where_M: Tensor,
    id_MK: Tensor,
    weight_MK: Tensor,
    tail_M: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``-sum_mk weight_mk log p_mk - sum_m tail_m log(1 - sum_k p_mk)`` at packed positions.

    The output layer runs chunk by chunk, and the gradient into the hidden states is taken at once,
    so that memory does not grow with tokens times vocabulary. The output layer itself, and the
    weights, receive no gradient.

    Args:
        model: under the engine's attention.
        batch: the pass.
        where_M: the positions that predict.
        id_MK: tokens; where a row has fewer than K, one of them again, with a weight of zero.
        weight_MK: of each token's log-probability.
        tail_M: weight of the log-probability of all others together, where any position has one.

    Returns:
        The sum, differentiable where the hidden states are; ``log p``, ``[M, K]``; and ``[M]``, the
        log-probability of all other tokens, zero where no position asks for it.
    """
    output = run_layers(model, batch)
    hidden_MD = output.last_hidden_state[0].index_select(0, where_M)
    apply: Any = _ChunkedLoss.apply
    loss, log_MK, rest_M = apply(hidden_MD, id_MK, weight_MK, tail_M, model, batch, type(output))
    return loss, log_MK, rest_M


def in_order(parts: list[Tensor], place: list[int]) -> Tensor:
    """What several passes gave, in the order of the places that it belongs to."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.tensor(place).argsort()]


class Prefiller:
    """Fills cache rows, in passes of no more tokens than planned."""

    def __init__(self, model: Any, cache: KVCache, bank: Bank | None, tokens: int) -> None:
        """``tokens`` is how many a pass takes."""
        self._model, self._cache, self._bank = model, cache, bank
        self.tokens = tokens

    def fill(self, segments: Sequence[Segment]) -> None:
        """Fill rows, in as few passes as there is room for."""
        lengths = [len(segment.token_ids) for segment in segments]
        for part in by_length(lengths, lambda padded, _: padded <= self.tokens):
            self.run([segments[n] for n in part])

    def run(self, segments: Sequence[Segment]) -> Tensor:
        """Fill rows with segments that fit one pass; return the logits after each one's end.

        A segment that is longer than a pass alone takes several.
        """
        ends = [self._end_of_long(segment) for segment in segments]
        reads = any(segment.past for segment in ends)
        read = [(x.past + len(x.token_ids)) * reads for x in ends]
        parts = by_context(read, copied=self._cache.read_bytes > 0)
        logits = [self._run_pass([ends[n] for n in part]) for part in parts]
        return in_order(logits, [n for part in parts for n in part])

    def _end_of_long(self, segment: Segment) -> Segment:
        """The end of a segment that is longer than a pass, once passes have filled what is before.

        A mask has a place for each token of a pass and each key, so that of an answer of 32k tokens
        in one pass would take gigabytes.
        """
        ids, past = segment.token_ids, segment.past
        if len(ids) <= self.tokens:
            return segment
        whole = segment.whole or past + len(ids)
        most = min(self.tokens, max(LEAST_PASS, MASK_PLACES // (past + len(ids))))
        for start in range(0, len(ids), most):
            part = replace(
                segment, token_ids=ids[start : start + most], past=past + start, whole=whole
            )
            if start + most < len(ids):
                self._run_pass([part])
        return part

    def _run_pass(self, segments: Sequence[Segment]) -> Tensor:
        batch = Batch.pack("prefill", segments, self._cache)
        with applied(self._bank, batch):
            ends = sent(batch.ends, self._cache.device)
            return run_model(self._model, batch, ends - 1)


class Scorer:
    """Log-probabilities of given tokens, of many requests in a pass."""

    def __init__(self, model: Any, cache: KVCache, bank: Bank | None, tokens: int) -> None:
        """``tokens`` is how many a pass takes."""
        self._model, self._cache, self._bank = model, cache, bank
        self._tokens = tokens

    def check(self, request: ScoreRequest) -> None:
        """Refuse a sequence that is longer than a pass, and one without tokens to score.

        Raises:
            UsageError: the request is such.
            RunError: its adapter is closed, or another engine's.
        """
        if request.adapter is not None:
            if self._bank is None:
                raise RunError("This engine was built without adapters, so it scores with none.")
            self._bank.index_of(request.adapter)
        if not request.token_ids or request.tokens == len(request.token_ids):
            raise UsageError(
                f"{len(request.token_ids)} tokens after {request.tokens - len(request.token_ids)} "
                "cannot be scored; give one at least, after one at least."
            )
        most = max(self._tokens, self._cache.capacity - self._cache.prefix)
        if request.tokens > most:
            raise UsageError(
                f"A sequence of {request.tokens} tokens is longer than the {most} that can be "
                "scored; lower --max-new-tokens."
            )

    def run(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Score all of them, those of similar lengths together.

        A kept sequence's row is read where it was written under the weights as they are.
        """
        rows = [self._row(request) for request in requests]
        segments = [
            Segment(
                request.sequence[past:-1],
                row,
                past,
                slot_index(request.adapter),
                whole=request.tokens,
            )
            for request, (row, past) in zip(requests, rows, strict=True)
        ]
        found: dict[int, Score] = {}
        copied = self._cache.read_bytes > 0
        for part in passes(segments, lambda padded, _: padded <= self._tokens, copied=copied):
            batch = Batch.pack("train", [segments[n] for n in part], self._cache)
            with applied(self._bank, batch):
                scores = self._score(batch, [requests[n] for n in part])
            found.update(zip(part, scores, strict=True))
        return [found[n] for n in range(len(requests))]

    def _row(self, request: ScoreRequest) -> tuple[int, int]:
        """The row that holds the context, if any, and how many of its tokens are read from it."""
        kept = request.context
        past = request.tokens - len(request.token_ids) - 1
        if not isinstance(kept, KeptRow) or kept.row is None or not kept.serves(request.tokens):
            return -1, 0
        slot = slot_index(request.adapter)
        same = kept.version == (self._bank.version(slot) if self._bank else 0)
        stands = self._cache.states is None or past == len(kept.token_ids) - 1
        return (kept.row, past) if same and stands else (-1, 0)

    def _score(self, batch: Batch, requests: Sequence[ScoreRequest]) -> list[Score]:
        counts = [len(request.token_ids) for request in requests]
        device = batch.token_ids_N.device
        where_M = torch.cat(
            [
                torch.arange(end - count, end, device=device)
                for end, count in zip(batch.ends, counts, strict=True)
            ]
        )
        label_M = torch.tensor([i for r in requests for i in r.token_ids], device=device)
        most = max(request.top_k for request in requests)
        output = run_layers(self._model, batch)
        hidden_MD = output.last_hidden_state[0, where_M]
        own: list[Tensor] = []
        tops: list[tuple[Tensor, Tensor]] = []
        for part in _chunks(self._model, len(where_M)):
            logits_mV = _head(self._model, batch, type(output), hidden_MD[part]).float()
            all_m1 = logits_mV.logsumexp(-1, keepdim=True)
            own.append((logits_mV.gather(1, label_M[part, None]) - all_m1)[:, 0])
            if most:
                values, ids = logits_mV.topk(min(most, logits_mV.shape[1]))
                tops.append((ids, values - all_m1))
        logprobs = torch.cat(own).tolist()
        top_ids = torch.cat([ids for ids, _ in tops]).tolist() if most else []
        top_logs = torch.cat([logs for _, logs in tops]).tolist() if most else []
        found: list[Score] = []
        at = 0
        for request, count in zip(requests, counts, strict=True):
            place, k = slice(at, at := at + count), request.top_k
            found.append(
                (
                    tuple(logprobs[place]),
                    tuple(tuple(row[:k]) for row in top_ids[place]) if k else (),
                    tuple(tuple(row[:k]) for row in top_logs[place]) if k else (),
                )
            )
        return found


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


def run_layers(model: Any, batch: Batch) -> Any:
    """The decoder's pass without the output layer."""
    return decoder_of(model)(
        input_ids=batch.token_ids_N[None],
        position_ids=batch.position_N[None],
        use_cache=False,
        fttt_batch=batch,
    )


def _chunks(model: Any, tokens: int) -> Iterator[slice]:
    """Slices of so many tokens, each with logits of at most ``LOGIT_BYTES``."""
    size = max(1, LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size))
    for start in range(0, tokens, size):
        yield slice(start, start + size)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        id_MK: Tensor,
        weight_MK: Tensor,
        tail_M: Tensor | None,
        model: Any,
        batch: Batch,
        form: type[ModelOutput],
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        gradient_MD = torch.empty_like(hidden_MD) if wanted else None
        log_MK = torch.empty(id_MK.shape, device=id_MK.device)
        rest_M = torch.zeros(len(id_MK), device=id_MK.device)
        for part in _chunks(model, hidden_MD.shape[0]):
            with torch.set_grad_enabled(wanted):
                hidden = hidden_MD[part].detach().requires_grad_(wanted)
                logits = _head(model, batch, form, hidden)
            id_mK, weight_mK = id_MK[part], weight_MK[part]
            pushed_m1 = weight_mK.sum(-1, keepdim=True)  # what is subtracted in all, times p
            log_mV = logits.detach().log_softmax(-1, dtype=torch.float32)
            log_MK[part] = log_mK = log_mV.gather(1, id_mK)
            if tail_M is not None:
                log_mV.scatter_(1, id_mK, float("-inf"))
                rest_m1 = log_mV.logsumexp(-1, keepdim=True)
                # no slope below the floor
                tail_m1 = torch.where(rest_m1 > FLOOR, tail_M[part, None], 0.0)
                rest_M[part] = rest_m1.clamp_(min=FLOOR)[:, 0]
                pushed_m1 = pushed_m1 + tail_m1
            if gradient_MD is not None:
                # Written out, since autograd would hold several of these large tensors.
                up_mV = log_mV.exp()
                up_mV *= pushed_m1
                if tail_M is not None:
                    up_mV -= log_mV.sub_(rest_m1).exp_().mul_(tail_m1)
                    up_mV.scatter_(1, id_mK, log_mK.exp() * pushed_m1)
                up_mV.scatter_add_(1, id_mK, -weight_mK)
                gradient_MD[part] = torch.autograd.grad(logits, hidden, up_mV.to(logits.dtype))[0]
        if gradient_MD is not None:
            ctx.save_for_backward(gradient_MD)
        ctx.mark_non_differentiable(log_MK, rest_M)
        loss = -(weight_MK * log_MK).sum()
        if tail_M is not None:
            loss -= (tail_M * rest_M).sum()
        return loss, log_MK, rest_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_MD,) = ctx.saved_tensors
        return (gradients[0] * gradient_MD).to(gradient_MD.dtype), *(None,) * 6


def _head(model: Any, batch: Batch, form: type[ModelOutput], hidden_MD: Tensor) -> Tensor:
    """Logits of hidden states by the model's own code, softcaps and scales included.

    ``form`` is what its layers answer with; some hold more than hidden states.
    """

    def given(*_: Any, **__: Any) -> ModelOutput:
        return form(last_hidden_state=hidden_MD[None])

    with patch.object(decoder_of(model), "forward", given):
        return run_model(model, batch, slice(None))
