"""Random numbers and draws from logits, in plain PyTorch.

The nucleus (Holtzman et al. 2020) is the smallest set of most probable tokens whose mass reaches
``top_p``; tokens as probable as its last one belong to it too, so that it does not depend on the
order of equals. One uniform number a token picks from it by the inverse of the cumulative
distribution in vocabulary order. Nothing is cut off beforehand but tokens too improbable to be in
any nucleus.

Random numbers depend on what they are for, not on who else is asked: each is a hash of a key and a
counter (a counter-based generator in the sense of Salmon et al. 2011, here the SplitMix64
finaliser), so the same (seed, question, generation, position) draws the same number in any batch,
in any order, on any device.

Axes: R rows, V vocabulary, C candidates, B segments, T tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Shape", "derive_key", "keep_mask", "sample", "shaped", "token_logprobs", "uniform"]


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

    def rows(self, count: int) -> Shape:
        """The first rows of it, as views."""
        return Shape(
            self.top_k_R[:count],
            self.min_p_R[:count],
            self.penalty_R[:count],
            self.seen_RV[:count],
        )


def sample(
    logits_RV: Tensor,
    temperature_R: Tensor,
    top_p_R: Tensor,
    noise_R: Tensor,
    shape: Shape | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fttt.engine.ops.sample` in plain PyTorch."""
    shaped_RV = logits_RV
    if shape is not None:
        shaped_RV, top_p_R = shaped(logits_RV, temperature_R, top_p_R, shape)
    warm = temperature_R > 0
    if bool(warm.all()):
        token_R = _warm(shaped_RV, temperature_R, top_p_R, noise_R)
        return token_R, token_logprobs(logits_RV, token_R)
    token_R = shaped_RV.argmax(-1)
    if bool(warm.any()):
        drawn = _warm(shaped_RV[warm], temperature_R[warm], top_p_R[warm], noise_R[warm])
        token_R = token_R.index_put((warm.nonzero()[:, 0],), drawn)
    return token_R, token_logprobs(logits_RV, token_R)


def shaped(
    logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, shape: Shape
) -> tuple[Tensor, Tensor]:
    """Logits and ``top_p`` from which a draw without a shape is as the rows ask.

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


def _warm(logits_RV: Tensor, temperature_R: Tensor, top_p_R: Tensor, noise_R: Tensor) -> Tensor:
    """Draw from rows of a temperature above 0."""
    probs_RV = (logits_RV.float() / temperature_R[:, None]).softmax(-1)
    whole = top_p_R >= 1
    if not bool(whole.any()):
        return _nucleus(probs_RV, top_p_R, noise_R)
    token_R = _pick(probs_RV, noise_R)
    if not bool(whole.all()):
        cut = (~whole).nonzero()[:, 0]
        drawn = _nucleus(probs_RV[cut], top_p_R[cut], noise_R[cut])
        token_R = token_R.index_put((cut,), drawn)
    return token_R


def _nucleus(probs_RV: Tensor, top_p_R: Tensor, noise_R: Tensor) -> Tensor:
    """Draw from the nuclei of rows.

    Tokens under (1 - top_p) / V weigh less than 1 - top_p together: none is in the nucleus. The
    others, a few hundred of a vocabulary, are laid side by side in its order.
    """
    floor_R1 = ((1 - top_p_R) / probs_RV.shape[1])[:, None]
    row_N, token_N = (probs_RV >= floor_R1).nonzero(as_tuple=True)
    count_R = row_N.bincount(minlength=len(probs_RV))
    column_N = torch.arange(len(row_N)) - (count_R.cumsum(0) - count_R)[row_N]
    token_RC = token_N.new_zeros(len(probs_RV), int(count_R.max()))
    token_RC[row_N, column_N] = token_N
    probs_RC = probs_RV.new_zeros(token_RC.shape)
    probs_RC[row_N, column_N] = probs_RV[row_N, token_N]
    top_RC = torch.from_numpy(np.sort(probs_RC.numpy())).flip(-1)  # ten times as fast as torch
    before_RC = top_RC.cumsum(-1) - top_RC
    last_R1 = ((before_RC < top_p_R[:, None]).sum(-1, keepdim=True) - 1).clamp(min=0)
    kept_RC = torch.where(probs_RC >= top_RC.gather(1, last_R1), probs_RC, 0.0)
    return token_RC.gather(1, _pick(kept_RC, noise_R)[:, None])[:, 0]


def _pick(probs_RC: Tensor, noise_R: Tensor) -> Tensor:
    """The column of each row at which the cumulative distribution passes its noise."""
    mass_RC = probs_RC.cumsum(-1)
    target_R1 = noise_R[:, None] * mass_RC[:, -1:]
    picked_R1 = torch.searchsorted(mass_RC, target_R1, right=True)
    last_kept_R1 = (mass_RC < mass_RC[:, -1:]).sum(-1, keepdim=True)  # rounding at the far end
    return torch.minimum(picked_R1, last_kept_R1)[:, 0]


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def derive_key(*parts: int | str) -> int:
    """A signed 64-bit key that names a random stream."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniform(key: Tensor, counter: Tensor) -> Tensor:
    """Float32 numbers in [0, 1) for int64 keys and counters of shapes that broadcast.

    24 bits are used, so that every value is exact in float32.
    """
    x = _mix(key + counter * _GOLDEN)
    return _shift(x, 40).to(torch.float32) * 2.0**-24


def keep_mask(key_B: Tensor, token_BT: Tensor, width: int, dropout: float) -> Tensor:
    """:func:`fttt.engine.ops.keep_mask` in plain PyTorch."""
    feature = torch.arange(width, device=token_BT.device)
    noise = uniform(key_B[:, None, None], token_BT[..., None] * width + feature)
    return (noise >= dropout) / (1 - dropout)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
