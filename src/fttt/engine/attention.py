"""Attention over packed segments and cached rows, as an attention function of transformers.

``AttentionInterface`` lets a model of any architecture call it; since no mask function is
registered under the same name, the model builds no mask of its own. The current :class:`Batch`
arrives through the extra keyword arguments of ``forward``.

Axes: N packed tokens, B segments, T tokens of the longest, S keys, H query heads, K key-value
heads, G = H / K query heads a key-value head, Q = G T, D head dimension of queries and keys, E of
values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from fttt.engine import ops
from fttt.engine.batch import Batch
from fttt.errors import UsageError

__all__ = ["KERNELS", "NAME", "attend", "layer_of"]

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
    s_aux: Tensor | None = None,
    slopes: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each segment and to the cached row before it.

    Shapes: ``query [1, H, N, D]``, ``key [1, K, N, D]`` and ``value [1, K, N, E]``, whose heads may
    be of another size; returns ``[1, N, H, E]``.

    Args:
        module: whose ``layer_idx`` says which of the cache's layers this is.
        query: of the packed tokens, as are the others.
        key: likewise.
        value: likewise.
        attention_mask: none; what is seen follows from positions.
        scaling: of the scores.
        fttt_batch: the pass.
        sliding_window: tokens that a token sees, itself among them.
        softcap: scores go through ``softcap * tanh(score / softcap)``.
        s_aux: ``[H]``, a score that takes its part of the softmax and gives nothing (a sink).
        slopes: ``[H]``, what is taken off a score for each token of distance (ALiBi).
        others: nothing that would change the outputs.

    Raises:
        UsageError: the model asks for something that is not known here, so that leaving it out
            would give other outputs than the model's.
    """
    _refuse_unknown(attention_mask, others)
    batch = fttt_batch
    layer = layer_of(module)
    if s_aux is not None and (softcap is not None or slopes is not None):
        raise UsageError("The model's attention has sinks beside a softcap or slopes.")
    if type(module).__name__ in BY_MASK:
        sliding_window = module.config.sliding_window  # type: ignore[union-attr,assignment]
    reach = Reach(sliding_window, _chunk_of(module, layer))
    own = _Own(batch, layer, scaling, reach, softcap, s_aux, slopes)
    if batch.mode == "decode" and query.is_cuda:
        out_NHE = ops.gpu.decode_attention(
            query[0], key[0], value[0], batch, layer, scaling,
            window=reach.window, chunk=reach.chunk, softcap=softcap, sinks=s_aux, slopes=slopes,
        )  # fmt: skip
        return out_NHE.unsqueeze(0), None
    # under autocast rotary positions leave queries and keys in float32
    q_NHD, k_NKD, v_NKE = (  # not x[0], whose gradient is written into zeros
        x.squeeze(0).transpose(0, 1).to(value.dtype) for x in (query, key, value)
    )
    if batch.mode != "train":
        batch.cache.write(layer, *batch.place_N, k_NKD, v_NKE)
    if batch.mode == "decode":
        out_NHE = _decode(q_NHD, own)
    elif not _twice(q_NHD, own):
        out_NHE = _packed(q_NHD, k_NKD, v_NKE, own)
    else:
        out_NHE = checkpoint(
            _packed, q_NHD, k_NKD, v_NKE, own,
            use_reentrant=False, preserve_rng_state=False, determinism_check="none",
        )  # fmt: skip
    return out_NHE.contiguous().unsqueeze(0), None


AttentionInterface.register(NAME, attend)


HARMLESS = frozenset(
    {
        *("dropout", "is_causal", "position_ids", "use_cache"),
        *("output_attentions", "output_router_logits"),
    }
)
"""Arguments that change nothing here: every model is causal, frozen and packed by position."""


def layer_of(module: Any) -> int:
    """The number of an attention module's layer."""
    number = getattr(module, "layer_idx", None)
    return int(module.layer_id if number is None else number)


def _refuse_unknown(attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    """Refuse an attention with parts that are not implemented here."""
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


BY_MASK = frozenset({"PhimoeAttention"})
"""Attention whose window only the model's own mask knows."""


def _chunk_of(module: nn.Module, layer: int) -> int | None:
    """The chunk that a layer's tokens see of the sequence; only the configuration tells it."""
    config: Any = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds and layer < len(kinds) and kinds[layer] == "chunked_attention":
        return int(config.attention_chunk_size)
    return None


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a layer's tokens see."""

    window: int | None
    """Tokens, a token itself among them."""
    chunk: int | None
    """Tokens of the chunks that sequences are cut into; nothing is seen beyond one's own."""

    def visible(self, key_at: Tensor, query_at: Tensor) -> Tensor:
        """Which keys a query sees by their positions: its own and earlier ones, within reach."""
        seen = key_at <= query_at
        if self.window is not None:
            seen = seen & (key_at > query_at - self.window)
        if self.chunk is not None:
            seen = seen & (key_at // self.chunk == query_at // self.chunk)
        return seen

    def covers(self, length: int) -> bool:
        """Whether nothing of a sequence of this length is out of reach."""
        return (self.window is None or self.window >= length) and (
            self.chunk is None or self.chunk >= length
        )


@dataclass(frozen=True, slots=True)
class _Own:
    """The settings of one layer's attention in a pass."""

    batch: Batch
    layer: int
    scaling: float
    reach: Reach
    softcap: float | None
    sinks_H: Tensor | None
    slopes_H: Tensor | None

    @property
    def cached(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all pages."""
        return self.batch.cache.keys[self.layer], self.batch.cache.values[self.layer]

    def read(self, positions: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first positions of each segment's row, ``[B, K, S, D]``."""
        batch, (keys, values) = self.batch, self.cached
        read = batch.cache.read
        return read(keys, batch.page_BP, positions), read(values, batch.page_BP, positions)

    @property
    def plainly_causal(self) -> bool:
        """Whether each token sees its own segment from its first token on, and nothing else."""
        scores_as_they_are = self.softcap is None and self.slopes_H is None
        fresh = max(self.batch.pasts) == 0
        return fresh and scores_as_they_are and self.reach.covers(self.batch.longest)

    def mask(self, make: Callable[[], tuple[Tensor, Tensor]]) -> Seen:
        """What is seen: the same for all layers of one reach, so made once a pass.

        ``make`` gives the positions of keys and of queries, of shapes that broadcast; a key that
        is there for nobody has the position ``NOWHERE``.
        """
        masks = self.batch.masks
        if self.reach not in masks:
            key_at, query_at = make()
            masks[self.reach] = Seen(self.reach.visible(key_at, query_at), key_at, query_at)
        seen: Seen = masks[self.reach]
        return seen


NOWHERE = 2**40
"""A position after every query's."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Which keys the queries of a pass see, ``[B, 1, T, S]``."""

    visible: Tensor
    key_at: Tensor
    query_at: Tensor
    biases: dict[tuple[int, torch.dtype, bool], Tensor] = field(default_factory=dict)

    def bias(self, heads: int, dtype: torch.dtype, *, sink: bool) -> Tensor:
        """What is added to the scores of so many heads' queries, as the fused kernels take it.

        A truth value for each key would be made into this by each layer, forward and backward.
        Rows are aligned for those kernels. ``sink``: a key that all see comes before the others.
        """
        key = heads, dtype, sink
        if key not in self.biases:
            visible = self.visible.repeat(1, 1, heads, 1) if heads > 1 else self.visible
            keys = visible.shape[-1] + sink
            visible = F.pad(visible, (int(sink), 0), value=True)
            hidden = ~F.pad(visible, (0, -keys % 8), value=True)
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.biases[key] = bias.masked_fill_(hidden, float("-inf"))[..., :keys]
        return self.biases[key]


def _decode(q_NHD: Tensor, own: _Own) -> Tensor:
    """One token a row, on the CPU.

    Rows of one piece are read where they lie unless few of them are running; others are gathered.
    """
    batch, (keys, values) = own.batch, own.cached
    if batch.row_of_BS is not None:
        return _decode_scattered(q_NHD, own)
    length = max(batch.pasts) + 1
    q_BKGD = q_NHD.unflatten(1, (keys.shape[1], -1))
    past_B, pieces = batch.past_B, batch.pieces
    running, used = len(batch.rows), max(pieces or (), default=0) + 1
    between = False
    if pieces == tuple(range(running)):
        k, v = keys[:running, :, :length], values[:running, :, :length]
    elif pieces is None or used > 2 * running:
        k, v = own.read(length)
    else:  # the rows between are attended to as well, and nobody reads what comes of it
        between, piece_B = True, batch.page_BP[:, 0]
        k, v = keys[:used, :, :length], values[:used, :, :length]
        past_B = past_B.new_zeros(used).index_copy(0, piece_B, past_B)
        q_BKGD = q_BKGD.new_zeros(used, *q_BKGD.shape[1:]).index_copy(0, piece_B, q_BKGD)

    def positions() -> tuple[Tensor, Tensor]:
        return torch.arange(length, device=past_B.device), past_B[:, None, None, None]

    out = _softmax_attention(q_BKGD, k, v, own.mask(positions), own)
    if between:
        out = out[batch.page_BP[:, 0]]
    return out.flatten(1, 2)


def _decode_scattered(q_NHD: Tensor, own: _Own) -> Tensor:
    """One token a sequence whose earlier tokens lie in several rows."""
    batch, cache = own.batch, own.batch.cache
    assert batch.row_of_BS is not None
    past_B = batch.past_B
    length = int(past_B.max()) + 1
    at_S = torch.arange(length, device=past_B.device)
    row_BS = torch.where(at_S == past_B[:, None], batch.row_B[:, None], batch.row_of_BS[:, :length])
    page_BS = cache.table_RP[row_BS, at_S // cache.page].long()
    k, v = (cached[page_BS, :, at_S % cache.page].transpose(1, 2) for cached in own.cached)
    seen = own.mask(lambda: (at_S, past_B[:, None, None, None]))
    q_BKGD = q_NHD.unflatten(1, (k.shape[1], -1))
    return _softmax_attention(q_BKGD, k, v, seen, own).flatten(1, 2)


def _packed(q_NHD: Tensor, k_NKD: Tensor, v_NKE: Tensor, own: _Own) -> Tensor:
    """Segments of any length, by what serves them best."""
    if _fused(q_NHD, own):
        return _causal(q_NHD, k_NKD, v_NKE, own)
    if _in_place(q_NHD, own):
        out_NHE: Tensor = ops.train_attention.train_attention(
            q_NHD, k_NKD, v_NKE, own.batch, own.layer, own.scaling,
            window=own.reach.window, chunk=own.reach.chunk, softcap=own.softcap,
            sinks=own.sinks_H, slopes=own.slopes_H,
        )  # fmt: skip
        return out_NHE
    if own.batch.mode == "prefill":
        return _prefill(q_NHD, k_NKD, v_NKE, own)
    return _train(q_NHD, k_NKD, v_NKE, own)


def _fused(q_NHD: Tensor, own: _Own) -> bool:
    """Whether a pass needs no mask and has a precision that PyTorch's fused kernel is made for."""
    made_for = own.batch.mode == "prefill" or q_NHD.dtype != torch.float32
    return q_NHD.is_cuda and made_for and own.plainly_causal


def _in_place(q_NHD: Tensor, own: _Own) -> bool:
    """Whether the engine's own kernel serves, which reads cached rows where they lie.

    It gives these no gradient, which the prefix of prefix tuning takes; and the host is to know
    the segments' lengths, which change where :mod:`fttt.finetune` replays a captured pass.
    """
    return q_NHD.is_cuda and own.batch.ragged.packed and not own.cached[0].requires_grad


def _twice(q_NHD: Tensor, own: _Own) -> bool:
    """Whether a train pass computes attention again for the gradient, one layer at a time.

    So it does where the batch says so or scores are written out, but for the engine's kernel, which
    holds neither copies of rows nor scores.
    """
    if own.batch.mode != "train" or (_in_place(q_NHD, own) and not _fused(q_NHD, own)):
        return False
    return own.batch.recompute or own.softcap is not None or own.slopes_H is not None


def _prefill(q_NHD: Tensor, k_NKD: Tensor, v_NKE: Tensor, own: _Own) -> Tensor:
    """Segments of any length whose keys and values were just written to their rows."""
    batch = own.batch
    if max(batch.pasts) == 0:
        k, v = (batch.pad(x).transpose(1, 2) for x in (k_NKD, v_NKE))
    else:
        k, v = own.read(max(p + n for p, n in zip(batch.pasts, batch.lengths, strict=True)))

    def positions() -> tuple[Tensor, Tensor]:
        at_BT = batch.past_B[:, None] + torch.arange(batch.longest, device=k.device)
        return torch.arange(k.shape[2], device=k.device), at_BT[:, None, :, None]

    return _folded(q_NHD, k, v, own.mask(positions), own)


def _train(q_NHD: Tensor, k_NKD: Tensor, v_NKE: Tensor, own: _Own) -> Tensor:
    """Segments after cached rows, which are read, never written."""
    batch = own.batch
    cached = -(-max(batch.pasts) // 8) * 8  # aligned for the fused kernels
    cached = min(cached, batch.cache.capacity)
    k, v = (
        torch.cat([held, batch.pad(x).transpose(1, 2)], dim=2)
        for held, x in zip(own.read(cached), (k_NKD, v_NKE), strict=True)
    )

    def positions() -> tuple[Tensor, Tensor]:
        past_B1 = batch.past_B[:, None]
        at_P = torch.arange(cached, device=k.device)
        at_BP = torch.where(at_P < past_B1, at_P, NOWHERE)
        at_BT = past_B1 + torch.arange(batch.longest, device=k.device)
        return torch.cat([at_BP, at_BT], 1)[:, None, None, :], at_BT[:, None, :, None]

    return _folded(q_NHD, k, v, own.mask(positions), own)


def _causal(q_NHD: Tensor, k_NKD: Tensor, v_NKE: Tensor, own: _Own) -> Tensor:
    """Plainly causal segments without a mask, as the fused kernels of a GPU take them."""
    batch = own.batch
    q, k, v = (batch.pad(x).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKE))
    if own.sinks_H is not None:  # seen by all, so it comes first, and a query before it as well
        sinks_HT = own.sinks_H[:, None].expand(-1, q.shape[2])
        q, k, v = _with_sink(q, k, v, sinks_HT, own.scaling)
        q = F.pad(q, (0, 0, 1, 0))
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=own.scaling, enable_gqa=True
    )
    if own.sinks_H is not None:
        out = out[:, :, 1:]
    return batch.unpad(out.transpose(1, 2))


def _folded(q_NHD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, seen: Seen, own: _Own) -> Tensor:
    """Grouped heads without copying keys: a group's query heads become more query positions."""
    batch, kv_heads = own.batch, k_BKSD.shape[1]
    q_BTHD = batch.pad(q_NHD)
    groups = q_BTHD.shape[2] // kv_heads
    q = q_BTHD.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    out = _softmax_attention(q, k_BKSD, v_BKSE, seen, own)
    out_BTHE = out.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return batch.unpad(out_BTHE)


def _softmax_attention(
    q_BKQD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, seen: Seen, own: _Own
) -> Tensor:
    """Queries of all heads of each group over its keys, ``[B, K, Q, E]``."""
    kv_heads, queries = q_BKQD.shape[1:3]
    visible, tokens = seen.visible, seen.visible.shape[2]
    heads = queries // tokens if tokens > 1 else 1  # one query position of all is broadcast
    if own.softcap is not None or own.slopes_H is not None:
        scores = (q_BKQD.float() @ k_BKSD.float().transpose(-1, -2)) * own.scaling
        if own.softcap is not None:
            scores = (scores / own.softcap).tanh() * own.softcap
        if own.slopes_H is not None:
            distance = (seen.query_at - seen.key_at).repeat(1, 1, heads, 1)
            scores = scores - _by_query(own.slopes_H, kv_heads, queries)[..., None] * distance
        visible = visible.repeat(1, 1, heads, 1) if heads > 1 else visible
        scores = scores.masked_fill(~visible, float("-inf"))
        out: Tensor = (scores.softmax(-1) @ v_BKSE.float()).to(v_BKSE.dtype)
        return out
    if own.sinks_H is not None:
        sinks_KQ = _by_query(own.sinks_H, kv_heads, queries)
        q_BKQD, k_BKSD, v_BKSE = _with_sink(q_BKQD, k_BKSD, v_BKSE, sinks_KQ, own.scaling)
    bias = seen.bias(heads, q_BKQD.dtype, sink=own.sinks_H is not None)
    return F.scaled_dot_product_attention(q_BKQD, k_BKSD, v_BKSE, attn_mask=bias, scale=own.scaling)


def _by_query(x_H: Tensor, kv_heads: int, queries: int) -> Tensor:
    """A number of each head for all of its queries, ``[K, Q]``."""
    x_KG: Tensor = x_H.unflatten(0, (kv_heads, -1))
    return x_KG.repeat_interleave(queries // x_KG.shape[1], 1)


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, sinks_HQ: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Put a key before the others that scores ``sinks_HQ`` and whose value is zero.

    It takes more features, on which the other keys are zero, so that any kernel serves: eight of
    them, since those of a GPU are made for such sizes.
    """
    sinks_HQ1 = (sinks_HQ / scaling).to(q.dtype)[..., None]
    more = F.pad(sinks_HQ1, (0, 7)).expand(q.shape[0], -1, -1, -1)
    k = F.pad(k, (0, 8, 1, 0))
    k[:, :, 0, -8].fill_(1)
    return torch.cat([q, more], -1), k, F.pad(v, (0, 0, 1, 0))
