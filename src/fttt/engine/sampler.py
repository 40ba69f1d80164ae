"""From logits to tokens: greedy, temperature, and the exact nucleus (Holtzman et al. 2020).

The nucleus is the smallest set of most probable tokens whose mass reaches ``top_p``; tokens as
probable as its last one belong to it too, so that it does not depend on the order of equals. One
uniform number a token picks from it by the inverse of the cumulative distribution in vocabulary
order. Nothing is cut off beforehand but tokens too improbable to be in any nucleus.

Axes: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sample", "token_logprobs"]


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
