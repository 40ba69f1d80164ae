"""State space scans for models whose own code, without their optional kernels, lacks something.

The plain code of ``transformers`` for Mamba begins every scan of several tokens at zero, whatever
came before, and holds the states of all of them; that of Mamba2 holds a product for each pair of
tokens, head and state feature, which takes megabytes a token. These two stand in for it.

Axes: B sequences, T tokens, I channels, H heads, P features of a head, G groups of heads that
share what writes and reads the state, S state features, C chunks of L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mamba2_scan", "mamba_scan"]

CHUNK = 64
"""L: the products of a chunk's tokens among themselves are held at once."""
FEW = 8
"""Tokens whose states are held at once, where no gradient is wanted."""


def mamba_scan(
    x_BIT: Tensor,
    dt_BIT: Tensor,
    a_IS: Tensor,
    b_BST: Tensor,
    c_BST: Tensor,
    state_BIS: Tensor | None,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t``, ``y_t = (c_t h_t + D x_t) silu(z_t)``.

    The selective scan of Gu and Dao (2023, arXiv 2312.00752), from a state on. Arguments are those
    of ``mamba_selective_scan`` in ``transformers``, and the state.

    Returns:
        ``y`` ``[B, I, T]`` and the last state, ``[B, I, S]`` in float32.
    """
    if delta_bias is not None:
        dt_BIT = dt_BIT + delta_bias.to(dt_BIT.dtype)[..., None]
    if delta_softplus:
        dt_BIT = F.softplus(dt_BIT)
    if state_BIS is None:
        state = x_BIT.new_zeros(*x_BIT.shape[:2], a_IS.shape[1], dtype=torch.float32)
    else:
        state = state_BIS.float()
    y: list[Tensor] = []
    for x_BIt, dt_BIt, b_BSt, c_BSt in zip(
        *(t.split(FEW, dim=2) for t in (x_BIT, dt_BIT, b_BST, c_BST)), strict=True
    ):
        dt_BtI1 = dt_BIt.transpose(1, 2).float()[..., None]
        decay_BtIS = (dt_BtI1 * a_IS.float()).exp()
        written_BtIS = dt_BtI1 * b_BSt.transpose(1, 2).float()[:, :, None]
        written_BtIS = written_BtIS * x_BIt.transpose(1, 2).float()[..., None]
        states: list[Tensor] = []
        for decay, written in zip(decay_BtIS.unbind(1), written_BtIS.unbind(1), strict=True):
            state = decay * state + written
            states.append(state)
        c_BtS1 = c_BSt.transpose(1, 2)[..., None]
        y.append((torch.stack(states, 1).to(x_BIT.dtype) @ c_BtS1)[..., 0].transpose(1, 2))
    y_BIT = torch.cat(y, -1)
    if D is not None:
        y_BIT = y_BIT + x_BIT * D[:, None]
    if z is not None:
        y_BIT = y_BIT * F.silu(z)
    return y_BIT, state


def mamba2_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGS: Tensor,
    c_BTGS: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_tᵀ``, ``y_t = h_t c_t + D x_t``, chunk by chunk.

    The state space duality of Dao and Gu (2024, arXiv 2405.21060). Arguments are those of
    ``mamba2_chunk_scan`` in ``transformers``.

    Returns:
        ``y`` ``[B, T, H, P]`` and the last state ``[B, H, P, S]``, in float32.
    """
    tokens, heads, features = x_BTHP.shape[1:]
    groups = b_BTGS.shape[2]
    if dt_bias is not None:
        dt_BTH = dt_BTH + dt_bias.to(dt_BTH.dtype)
    if dt_softplus:
        dt_BTH = F.softplus(dt_BTH)
    dt_BTH = dt_BTH.clamp(*dt_limit).float()
    size = min(CHUNK, tokens)

    def chunked(t: Tensor) -> Tensor:
        """``[B, T, ...] -> [B, C, L, ...]`` in float32; padding neither decays nor writes."""
        pad = (0, 0) * (t.dim() - 2) + (0, -tokens % size)
        cut: Tensor = F.pad(t.float(), pad).unflatten(1, (-1, size))
        return cut

    u_BCLHP = chunked(x_BTHP.float() * dt_BTH[..., None])
    sum_BCHL = chunked(dt_BTH * a_H.float()).cumsum(2).transpose(2, 3)
    b_BCGLS, c_BCGLS = chunked(b_BTGS).transpose(2, 3), chunked(c_BTGS).transpose(2, 3)
    u_BCHLP = u_BCLHP.transpose(2, 3)

    # among the tokens of a chunk
    later = torch.ones(size, size, dtype=torch.bool, device=x_BTHP.device).triu(1)
    between = sum_BCHL[..., :, None] - sum_BCHL[..., None, :]
    decay_BCHLL = between.masked_fill(later, float("-inf")).exp()
    pairs_BCGLL = c_BCGLS @ b_BCGLS.transpose(-1, -2)
    spread = heads // groups
    y = (pairs_BCGLL.repeat_interleave(spread, 2) * decay_BCHLL) @ u_BCHLP

    # what a chunk writes into the state, and what it reads of what was there before
    left_BCHL1 = (sum_BCHL[..., -1:] - sum_BCHL).exp()[..., None]
    b_BCHLS = b_BCGLS.repeat_interleave(spread, 2)
    fresh_BCHPS = (u_BCHLP * left_BCHL1).transpose(-1, -2) @ b_BCHLS
    whole_BCH11 = sum_BCHL[..., -1].exp()[..., None, None]
    if initial_states is None:
        state = torch.zeros_like(fresh_BCHPS[:, 0])
    else:
        state = initial_states.float()
    before: list[Tensor] = []
    for whole, fresh in zip(whole_BCH11.unbind(1), fresh_BCHPS.unbind(1), strict=True):
        before.append(state)
        state = state * whole + fresh
    c_BCHLS = c_BCGLS.repeat_interleave(spread, 2)
    read = c_BCHLS @ torch.stack(before, 1).transpose(-1, -2)
    y = y + read * sum_BCHL.exp()[..., None]

    out_BTHP = y.transpose(2, 3).reshape(x_BTHP.shape[0], -1, heads, features)[:, :tokens]
    out_BTHP = out_BTHP.contiguous()  # the mixers view it
    if D is not None:
        out_BTHP = out_BTHP + D[..., None] * x_BTHP.float()
    return out_BTHP, state
