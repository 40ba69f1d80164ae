"""From logits to tokens: greedy, temperature, and the exact nucleus (Holtzman et al. 2020).

The nucleus is the smallest set of most probable tokens whose mass reaches ``top_p``; tokens as
probable as its last one belong to it too, so that it does not depend on the order of equals. One
uniform number a token picks from it by the inverse of the cumulative distribution in vocabulary
order. Nothing is cut off beforehand but tokens too improbable to be in any nucleus.

Axes: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Shape", "sample", "shaped", "token_logprobs"]


def sample(logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, noise_R: Tensor) -> Tensor:
    """Draw one token a row; rows of temperature 0 take the most probable token.

    Args:
        logits_RV: scores of any floating dtype.
        temperature_R: float32, 0 or more.
        top_p_R: float32 in (0, 1].
        noise_R: float32 in [0, 1), one a row.

    Returns:
        ``[R]`` int64.
    """
    if logits_RV.is_cuda:
        from fttt.engine.kernels import sample as sample_cuda

        return sample_cuda(logits_RV, temperature_R, top_p_R, noise_R)[0]
    greedy_R = logits_RV.argmax(-1)
    warm = temperature_R > 0
    if not bool(warm.any()):
        return greedy_R
    drawn = _nucleus(logits_RV[warm], temperature_R[warm], top_p_R[warm], noise_R[warm])
    return greedy_R.index_put((warm.nonzero()[:, 0],), drawn)


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows ask for beside temperature and nucleus; a row that asks for nothing is left alone.

    In the order of ``transformers``: the repetition penalty (Keskar et al. 2019), then the ``k``
    most probable tokens, the nucleus among them, and of it the tokens that are at least ``min_p``
    times as probable as the most probable one (Nguyen et al. 2024).
    """

    top_k_R: Tensor
    """int64; 0 keeps all."""
    min_p_R: Tensor
    """float32 in [0, 1]; 0 keeps all."""
    penalty_R: Tensor
    """float32; 1 changes nothing."""
    seen_RV: Tensor
    """bool: tokens of the prompt and of what was drawn."""


def shaped(
    logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, shape: Shape
) -> tuple[Tensor, Tensor]:
    """Logits and ``top_p`` from which :func:`sample` draws as the rows ask.

    Returns:
        ``[R, V]`` float32, minus infinity for what is never drawn, and ``[R]`` float32.
    """
    wide_RV = logits_RV.float()
    penalty_R1 = shape.penalty_R[:, None]
    less_RV = torch.where(wide_RV < 0, wide_RV * penalty_R1, wide_RV / penalty_R1)
    wide_RV = torch.where(shape.seen_RV & (penalty_R1 != 1), less_RV, wide_RV)
    sorted_RV = wide_RV.sort(-1, descending=True).values
    vocab = wide_RV.shape[1]
    count_R = torch.where(shape.top_k_R > 0, shape.top_k_R, vocab).clamp(max=vocab)
    least_R1 = sorted_RV.gather(1, count_R[:, None] - 1)
    wide_RV = wide_RV.masked_fill(wide_RV < least_R1, float("-inf"))
    sorted_RV = sorted_RV.masked_fill(sorted_RV < least_R1, float("-inf"))
    heat_R1 = torch.where(temperature_R > 0, temperature_R, 1.0)[:, None]
    probs_RV = (sorted_RV / heat_R1).softmax(-1)
    before_RV = probs_RV.cumsum(-1) - probs_RV
    last_R1 = ((before_RV < top_p_R[:, None]).sum(-1, keepdim=True) - 1).clamp(min=0)
    floor_R1 = sorted_RV[:, :1] + shape.min_p_R[:, None].log() * heat_R1
    cut_R1 = torch.maximum(sorted_RV.gather(1, last_R1), floor_R1)
    asked_R = shape.min_p_R > 0
    wide_RV = wide_RV.masked_fill(asked_R[:, None] & (wide_RV < cut_R1), float("-inf"))
    return wide_RV, torch.where(asked_R, 1.0, top_p_R)


def token_logprobs(logits_RV: Tensor, token_R: Tensor) -> Tensor:
    """Log-probability of each row's token at temperature 1, ``[R]`` float32."""
    logits_RV = logits_RV.float()
    return logits_RV.gather(1, token_R[:, None])[:, 0] - logits_RV.logsumexp(-1)


def _nucleus(logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, noise_R: Tensor) -> Tensor:
    probs_RV = (logits_RV.float() / temperature_R[:, None]).softmax(-1)
    # Tokens under (1 - top_p) / V weigh less than 1 - top_p together: none is in the nucleus.
    floor_R1 = ((1 - top_p_R) / probs_RV.shape[1])[:, None]
    candidates = int((probs_RV >= floor_R1).sum(-1).max())
    top_RC = probs_RV.topk(candidates, dim=-1).values
    before_RC = top_RC.cumsum(-1) - top_RC
    last_R1 = ((before_RC < top_p_R[:, None]).sum(-1, keepdim=True) - 1).clamp(min=0)
    threshold_R1 = top_RC.gather(1, last_R1)
    kept_RV = torch.where(probs_RV >= threshold_R1, probs_RV, 0.0)
    mass_RV = kept_RV.cumsum(-1)
    target_R1 = noise_R[:, None] * mass_RV[:, -1:]
    picked_R1 = torch.searchsorted(mass_RV, target_R1, right=True)
    last_kept_R1 = (mass_RV < mass_RV[:, -1:]).sum(-1, keepdim=True)  # rounding at the far end
    return torch.minimum(picked_R1, last_kept_R1)[:, 0]
