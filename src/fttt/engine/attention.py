"""Attention over packed segments and cached rows, as an attention function of transformers.

``AttentionInterface`` lets a model of any architecture call it; since no mask function is
registered under the same name, the model builds no mask of its own. The current :class:`Batch`
arrives through the extra keyword arguments of ``forward``.

Axes: N packed tokens, B segments, T tokens of the longest, S keys, H query heads, K key-value
heads, G = H / K query heads a key-value head, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from fttt.engine.batch import Batch
from fttt.errors import UsageError

__all__ = ["KERNELS", "NAME", "attend"]

NAME = "fttt"
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""For ``sdpa_kernel``. cuDNN's attention is left out: it plans anew for every shape, and shapes
keep changing."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    fttt_batch: Batch,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each segment and to the cached row before it.

    Shapes: ``query [1, H, N, D]``, ``key`` and ``value [1, K, N, D]``; returns ``[1, N, H, D]``.

    Raises:
        UsageError: the model asks for something that is not known here, so that leaving it out
            would give other outputs than the model's.
    """
    _refuse_unknown(attention_mask, others)
    batch = fttt_batch
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    own = _Own(batch, layer, scaling, sliding_window, softcap)
    if batch.mode == "decode" and query.is_cuda:
        from fttt.engine.kernels import decode_attention

        out_NHD = decode_attention(
            query[0], key[0], value[0], batch, layer, scaling, sliding_window, softcap
        )
        return out_NHD.unsqueeze(0), None
    # under autocast rotary positions leave queries and keys in float32
    q_NHD, k_NKD, v_NKD = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if batch.mode != "train":
        batch.cache.write(layer, batch.row_N, batch.position_N, k_NKD, v_NKD)
    if batch.mode == "decode":
        out_NHD = _decode(q_NHD, own)
    elif batch.mode == "prefill":
        out_NHD = _prefill(q_NHD, k_NKD, v_NKD, own)
    elif _fused(q_NHD, own) and not batch.recompute:
        out_NHD = _causal(q_NHD, k_NKD, v_NKD, own)
    else:
        out_NHD = checkpoint(
            _train, q_NHD, k_NKD, v_NKD, own,
            use_reentrant=False, preserve_rng_state=False, determinism_check="none",
        )  # fmt: skip
    return out_NHD.unsqueeze(0), None


AttentionInterface.register(NAME, attend)


HARMLESS = frozenset(
    {
        *("dropout", "is_causal", "position_ids", "use_cache"),
        *("output_attentions", "output_router_logits"),
    }
)
"""Arguments that change nothing here: every model is causal, frozen and packed by position."""


def _refuse_unknown(attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    """Refuse an attention that is more than this one."""
    if attention_mask is not None:
        raise UsageError(
            "The model's attention has a mask of its own, which the engine does not know."
        )
    asked = (name for name, value in others.items() if value is not None)
    unknown = next((name for name in asked if name not in HARMLESS), None)
    if unknown is not None:
        raise UsageError(
            f"The model's attention takes {unknown!r}, which the engine does not know."
        )
    if others.get("is_causal") is False:
        raise UsageError("The model's attention is not causal.")
    if others.get("dropout"):
        raise UsageError(
            f"The model's attention has dropout ({others['dropout']}), which the engine has not; "
            "set it to 0 in the model's config.json."
        )


@dataclass(frozen=True, slots=True)
class _Own:
    """What is one layer's own in a pass."""

    batch: Batch
    layer: int
    scaling: float
    window: int | None
    softcap: float | None

    @property
    def cached(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows."""
        return self.batch.cache.keys[self.layer], self.batch.cache.values[self.layer]

    @property
    def plainly_causal(self) -> bool:
        """Whether each token sees its own segment from its first token on, and nothing else."""
        windowed = self.window is not None and self.window < self.batch.longest
        return max(self.batch.pasts) == 0 and not windowed and self.softcap is None

    def mask(self, make: Callable[[], Tensor]) -> Tensor:
        """Which keys are seen: the same for all layers of one window, so made once a pass."""
        masks = self.batch.masks
        if self.window not in masks:
            masks[self.window] = make()
        return masks[self.window]


def _decode(q_NHD: Tensor, own: _Own) -> Tensor:
    """One token a row, on the CPU: rows are read where they lie unless few of them are running."""
    batch, (keys, values) = own.batch, own.cached
    if batch.row_of_BS is not None:
        return _decode_scattered(q_NHD, own)
    running, used = len(batch.rows), max(batch.rows) + 1
    length = max(batch.pasts) + 1
    q_BKGD = q_NHD.unflatten(1, (keys.shape[1], -1))
    past_B = batch.past_B
    if batch.rows == tuple(range(running)) or used > 2 * running:
        rows = slice(running) if used == running else batch.row_B
        k, v = keys[rows, :, :length], values[rows, :, :length]
    else:  # the rows between are attended to as well, and nobody reads what comes of it
        k, v = keys[:used, :, :length], values[:used, :, :length]
        past_B = past_B.new_zeros(used).index_copy(0, batch.row_B, past_B)
        q_BKGD = q_BKGD.new_zeros(used, *q_BKGD.shape[1:]).index_copy(0, batch.row_B, q_BKGD)

    def seen() -> Tensor:
        at_S = torch.arange(length, device=past_B.device)
        return _visible(at_S, past_B[:, None, None, None], own.window)

    mask = own.mask(seen)
    out = _softmax_attention(q_BKGD, k, v, mask, own)
    if out.shape[0] > running:
        out = out[batch.row_B]
    return out.flatten(1, 2)


def _decode_scattered(q_NHD: Tensor, own: _Own) -> Tensor:
    """One token a sequence whose earlier tokens lie in several rows."""
    batch = own.batch
    assert batch.row_of_BS is not None
    past_B = batch.past_B
    length = int(past_B.max()) + 1
    at_S = torch.arange(length, device=past_B.device)
    row_BS = torch.where(at_S == past_B[:, None], batch.row_B[:, None], batch.row_of_BS[:, :length])
    k, v = (cached[row_BS, :, at_S].transpose(1, 2) for cached in own.cached)
    mask = own.mask(lambda: _visible(at_S, past_B[:, None, None, None], own.window))
    q_BKGD = q_NHD.unflatten(1, (k.shape[1], -1))
    return _softmax_attention(q_BKGD, k, v, mask, own).flatten(1, 2)


def _prefill(q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, own: _Own) -> Tensor:
    """Segments of any length whose keys and values were just written to their rows."""
    if q_NHD.is_cuda and own.plainly_causal:
        return _causal(q_NHD, k_NKD, v_NKD, own)
    batch = own.batch
    if max(batch.pasts) == 0:
        k, v = (batch.pad(x).transpose(1, 2) for x in (k_NKD, v_NKD))
    else:
        length = max(p + n for p, n in zip(batch.pasts, batch.lengths, strict=True))
        k, v = (cached[batch.row_B, :, :length] for cached in own.cached)

    def seen() -> Tensor:
        at_S = torch.arange(k.shape[2], device=k.device)
        at_BT = batch.past_B[:, None] + torch.arange(batch.longest, device=k.device)
        return _visible(at_S, at_BT[:, None, :, None], own.window)

    return _folded(q_NHD, k, v, own.mask(seen), own)


def _train(q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, own: _Own) -> Tensor:
    """Segments after cached rows that take no gradient; the rows are read, never written."""
    if _fused(q_NHD, own):
        return _causal(q_NHD, k_NKD, v_NKD, own)
    batch = own.batch
    cached = -(-max(batch.pasts) // 8) * 8  # aligned for the fused kernels
    cached = min(cached, batch.cache.capacity)
    k, v = (
        torch.cat([rows[batch.row_B, :, :cached], batch.pad(x).transpose(1, 2)], dim=2)
        for rows, x in zip(own.cached, (k_NKD, v_NKD), strict=True)
    )

    def seen() -> Tensor:
        at_P = torch.arange(cached, device=k.device)
        past_B111 = batch.past_B[:, None, None, None]
        at_BT = batch.past_B[:, None] + torch.arange(batch.longest, device=k.device)
        query_B1T1, own_B11T = at_BT[:, None, :, None], at_BT[:, None, None, :]
        before = _visible(at_P, query_B1T1, own.window) & (at_P < past_B111)
        return torch.cat([before, _visible(own_B11T, query_B1T1, own.window)], dim=-1)

    return _folded(q_NHD, k, v, own.mask(seen), own)


def _fused(q_NHD: Tensor, own: _Own) -> bool:
    """Whether a train pass needs no mask and has a precision that the fused kernel is made for."""
    half = q_NHD.is_cuda and q_NHD.dtype != torch.float32
    return half and own.plainly_causal


def _causal(q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, own: _Own) -> Tensor:
    """Plainly causal segments without a mask, as the fused kernels of a GPU take them."""
    batch = own.batch
    q, k, v = (batch.pad(x).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKD))
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=own.scaling, enable_gqa=True
    )
    return batch.unpad(out.transpose(1, 2))


def _visible(key_at: Tensor, query_at: Tensor, window: int | None) -> Tensor:
    """Which keys a query sees by their positions: its own and earlier ones, within the window."""
    seen = key_at <= query_at
    return seen if window is None else seen & (key_at > query_at - window)


def _folded(q_NHD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_B1TS: Tensor, own: _Own) -> Tensor:
    """Grouped heads without copying keys: a group's query heads become more query positions."""
    batch, kv_heads = own.batch, k_BKSD.shape[1]
    q_BTHD = batch.pad(q_NHD)
    groups = q_BTHD.shape[2] // kv_heads
    q = q_BTHD.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = mask_B1TS.repeat(1, 1, groups, 1)
    out = _softmax_attention(q, k_BKSD, v_BKSD, mask, own)
    out_BTHD = out.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return batch.unpad(out_BTHD)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, own: _Own) -> Tensor:
    """``[B, K, Q, D]`` queries over ``[B, K, S, D]`` keys; ``mask`` is true where they may look."""
    if own.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=own.scaling)
    scores = (q.float() @ k.float().transpose(-1, -2)) * own.scaling
    scores = (scores / own.softcap).tanh() * own.softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(v.dtype)
