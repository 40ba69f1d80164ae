"""Whole sequences in one pass, ragged and packed, with a loss on their tokens and no cached rows.

What learns from question, attempt and feedback together, or from a gold solution, runs the model
through this module: OpTune's factors and its training.

Axes: N packed tokens, B sequences, M tokens that carry a loss, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from transformers.utils.generic import ModelOutput

from fttt.engine.attention import KERNELS
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import KVCache
from fttt.engine.heads import read_heads
from fttt.engine.plan import LOGIT_BYTES
from fttt.engine.stand_ins import stand_ins_for
from fttt.engine.states import Mixers
from fttt.engine.trainer import run_model
from fttt.models.loader import Prefix

__all__ = ["pack_sequences", "prepared", "weighted_nll"]


@contextmanager
def prepared(model: Any, *, faster: bool = True) -> Iterator[None]:
    """Let a model run packed sequences outside an engine; it gets its own code back at the end.

    ``faster=False`` leaves all but what packing needs to the model's own code.
    """
    read_heads(model)  # while its code is its own
    stand_ins = stand_ins_for(model, model.device, Mixers(model), faster=faster)
    stand_ins.enable()
    try:
        with sdpa_kernel(KERNELS):
            yield
    finally:
        stand_ins.disable()


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
        cache: an engine's, for the prefix that its rows begin with; nothing else of it is read.
        prefix: what every sequence begins with where there is no engine; gradients reach it.
        dtype: of keys and values, where it is not the model's.
    """
    if cache is None:
        room = -(-prefix.length // 8) * 8 if prefix else 0  # aligned for the fused kernels
        cache = KVCache.of(model, rows=0, capacity=room, prefix=prefix, dtype=dtype)
    own = [-1] * len(sequences) if slots is None else slots
    segments = [Segment(ids, 0, 0, slot) for ids, slot in zip(sequences, own, strict=True)]
    return Batch.pack("train", segments, cache)


def weighted_nll(
    model: Any, batch: Batch, where_M: Tensor, label_M: Tensor, weight_M: Tensor
) -> tuple[Tensor, Tensor]:
    """``sum_m weight_m · NLL_m`` of the labels at packed positions, without holding all logits.

    The output layer runs chunk by chunk, and the gradient into the hidden states is taken at once,
    so that memory does not grow with tokens times vocabulary. The output layer itself, and the
    weights, receive no gradient.

    Returns:
        The sum, differentiable where the hidden states are, and ``NLL_M``, which is not.
    """
    output = model.base_model(
        input_ids=batch.token_ids_N[None],
        position_ids=batch.position_N[None],
        use_cache=False,
        fttt_batch=batch,
    )
    hidden_MD = output.last_hidden_state[0, where_M]
    apply: Any = _ChunkedNLL.apply
    loss, nll_M = apply(hidden_MD, label_M, weight_M, model, batch, type(output))
    return loss, nll_M


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        label_M: Tensor,
        weight_M: Tensor,
        model: Any,
        batch: Batch,
        form: type[ModelOutput],
    ) -> tuple[Tensor, Tensor]:
        vocabulary = model.config.get_text_config().vocab_size
        size = max(1, LOGIT_BYTES // (4 * vocabulary))
        wanted = ctx.needs_input_grad[0]
        gradient_MD = torch.empty_like(hidden_MD) if wanted else None
        nll: list[Tensor] = []
        for start in range(0, hidden_MD.shape[0], size):
            part = slice(start, start + size)
            with torch.set_grad_enabled(wanted):
                hidden = hidden_MD[part].detach().requires_grad_(wanted)
                logits = _head(model, batch, form, hidden)
            label_m1 = label_M[part, None]
            log_p_mV = logits.detach().log_softmax(-1, dtype=torch.float32)
            nll.append(-log_p_mV.gather(1, label_m1)[:, 0])
            if gradient_MD is not None:
                # Written out, since autograd would hold several of these large tensors.
                one = log_p_mV.new_ones(label_m1.shape)
                up_mV = log_p_mV.exp_().scatter_add_(1, label_m1, -one)
                up_mV *= weight_M[part, None]
                gradient_MD[part] = torch.autograd.grad(logits, hidden, up_mV.to(logits.dtype))[0]
        nll_M = torch.cat(nll)
        if gradient_MD is not None:
            ctx.save_for_backward(gradient_MD)
        ctx.mark_non_differentiable(nll_M)
        return (nll_M * weight_M).sum(), nll_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient_MD,) = ctx.saved_tensors
        return (gradients[0] * gradient_MD).to(gradient_MD.dtype), None, None, None, None, None


def _head(model: Any, batch: Batch, form: type[ModelOutput], hidden_MD: Tensor) -> Tensor:
    """Logits of hidden states by the model's own code, whatever it does to them on the way.

    ``form`` is what its layers answer with; some hold more than hidden states.
    """

    def given(*_: Any, **__: Any) -> ModelOutput:
        return form(last_hidden_state=hidden_MD[None])

    with patch.object(model.base_model, "forward", given):
        return run_model(model, batch, slice(None))
