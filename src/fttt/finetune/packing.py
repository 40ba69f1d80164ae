"""Packs the samples of one optimizer step end to end, without padding.

One batch holds all samples of a step. They run as one row of tokens, as the engine's passes do
(:mod:`fttt.engine.batch`): only attention needs the borders between samples. A step of more tokens
than fit into one pass is divided into groups, whose gradients are added up, so that the division
does not change the result.

Where passes are captured as graphs (:mod:`fttt.finetune.captured_step`), their tensors are padded
to a few shapes, which changes neither losses nor gradients.

Axes: N packed tokens, B samples, T tokens of the longest, M tokens that carry a loss, D width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fttt.engine.batch import CACHE_KEYWORDS, Batch, Ragged, by_length, put, sent
from fttt.engine.cache import KVCache
from fttt.engine.captured_pass import round_up
from fttt.engine.sequences import pack_sequences, prepared
from fttt.models.loader import Prefix
from fttt.training import GoldExample

__all__ = [
    "PackedPasses",
    "PaddedPass",
    "PaddedShape",
    "SampleGroup",
    "collate",
    "groups",
    "inner_model",
]

MOST_PADDING = 4
"""The largest ratio of padded to real tokens in attention, which alone pads a group's samples to
the longest. It is a small part of the work; a second pass through all layers costs more."""


def collate(examples: Sequence[GoldExample]) -> dict[str, Any]:
    """One batch: the ``samples``, and their ``length [B]``, by which the trainer counts them.

    It holds no tensor, since the loader would copy it to the GPU and wait for that.
    """
    return {"length": np.array([e.length for e in examples]), "samples": list(examples)}


@dataclass(frozen=True)
class SampleGroup:
    """Samples of one pass."""

    samples: tuple[GoldExample, ...]

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The token ids of the pass: all but the last of each sample, which predicts nothing."""
        return [e.prompt_ids + e.solution_ids[:-1] for e in self.samples]

    @property
    def where(self) -> list[int]:
        """The packed positions that predict a token of a solution."""
        found: list[int] = []
        end = 0
        for e in self.samples:
            end += e.length - 1
            found += range(end - len(e.solution_ids), end)
        return found

    @property
    def labels(self) -> list[int]:
        """The tokens that are predicted there."""
        return [i for e in self.samples for i in e.solution_ids]

    @property
    def weights(self) -> list[float]:
        """The share of each in the mean of its solution."""
        return [1 / len(e.solution_ids) for e in self.samples for _ in e.solution_ids]

    def loss(self, logits_MV: Tensor) -> Tensor:
        """The sum over samples of the mean cross-entropy of their solutions."""
        label_M = torch.tensor(self.labels).to(logits_MV.device, non_blocking=True)
        weight_M = torch.tensor(self.weights).to(logits_MV.device, non_blocking=True)
        return _weighted_loss(logits_MV, label_M, weight_M)


def _weighted_loss(logits_MV: Tensor, label_M: Tensor, weight_M: Tensor) -> Tensor:
    ce_M = F.cross_entropy(logits_MV.float(), label_M, reduction="none")
    return (ce_M * weight_M).sum()


class PaddedShape(NamedTuple):
    """The sizes B, N, T and M of a pass."""

    samples: int
    tokens: int
    longest: int
    trained: int

    @classmethod
    def of(cls, group: SampleGroup) -> PaddedShape:
        """The shape that a group's pass is padded to.

        It depends on nothing but the group, so that a resumed training computes the same. The sizes
        are few, since each shape is run plainly and captured before it is replayed, and a capture
        costs as much as a dozen of replays: four token counts between two powers of two, and the
        powers alone of what takes less of a pass. There is at least one place of padding in
        attention, which the packed padding is given.
        """
        lengths = [e.length - 1 for e in group.samples]
        return cls(
            round_up(len(lengths), 4),
            round_up(sum(lengths), 4),
            round_up(max(lengths) + 1, 1),
            round_up(sum(len(e.solution_ids) for e in group.samples), 1),
        )


class PaddedPass:
    """The tensors of a pass, padded to a shape; they stay where they are when they are filled.

    Tokens behind the last sample are seen by none, and carry no loss.
    """

    def __init__(self, shape: PaddedShape, device: torch.device) -> None:
        self.shape = shape
        count, tokens, longest, trained = shape
        self._by_token = torch.zeros(4, tokens, dtype=torch.int64, device=device)
        self._pad_BT = torch.zeros(count, longest, dtype=torch.int64, device=device)
        self._by_label = torch.zeros(2, trained, dtype=torch.int64, device=device)
        self._weight_M = torch.zeros(trained, device=device)
        self._by_sample = torch.zeros(2, count, dtype=torch.int64, device=device)

    def fill(self, group: SampleGroup, scale: float) -> None:
        """Tell the device what the pass is about; ``scale`` is a factor of its loss."""
        count, tokens, longest, trained = self.shape
        missing = [0] * (count - len(group.samples))
        length_B = np.array([e.length - 1 for e in group.samples] + missing)
        solution_B = np.array([len(e.solution_ids) for e in group.samples] + missing)
        end_B = length_B.cumsum()
        real, learned = int(end_B[-1]), int(solution_B.sum())
        id_N = np.fromiter(chain.from_iterable(group.sequences), np.int64, real)
        label_M = np.fromiter(
            chain.from_iterable(e.solution_ids for e in group.samples), np.int64, learned
        )
        where_M = (end_B - solution_B.cumsum()).repeat(solution_B) + np.arange(learned)
        weight_M = (1 / solution_B.clip(1)).repeat(solution_B)
        padding = np.zeros(tokens - real, dtype=np.int64)
        more = np.zeros(trained - learned, dtype=np.int64)
        at_T = np.arange(longest)
        real_BT = at_T < length_B[:, None]
        position_N = np.broadcast_to(at_T, real_BT.shape)[real_BT]
        # behind the first sample, where no gradient comes from
        nowhere = np.full_like(padding, longest - 1)
        by_token = (
            np.append(id_N, padding),
            np.append(position_N, padding),
            np.append(length_B.repeat(length_B), np.ones_like(padding)),
            np.append(np.flatnonzero(real_BT), nowhere),
        )
        put(self._by_token, np.stack(by_token))
        put(self._pad_BT, np.where(real_BT, (end_B - length_B)[:, None] + at_T, 0))
        put(self._by_label, np.stack((np.append(where_M, more), np.append(label_M, more))))
        put(self._weight_M, scale * np.append(weight_M, more))

    @property
    def ids_N(self) -> Tensor:
        """The token ids."""
        return self._by_token[0]

    @property
    def where_M(self) -> Tensor:
        """The packed positions that predict a token of a solution."""
        return self._by_label[0]

    def batch(self, cache: KVCache) -> Batch:
        """What attention needs to know, for one pass; ``cache`` holds nothing."""
        count, _, longest, _ = self.shape
        ids_N, position_N, whole_N, unpad_N = self._by_token
        row_B, past_B = self._by_sample
        batch = Batch(
            "train", cache, ids_N, position_N, row_B, past_B, row_B, lengths=(longest,) * count,
            pasts=(0,) * count, rows=(0,) * count, adapted=False, recompute=False,
        )  # fmt: skip
        batch.ragged = ragged = Ragged(batch.lengths, ids_N.device)
        ragged.packed = ragged.uniform = False
        ragged.pad_BT, ragged.unpad_N = self._pad_BT, unpad_N
        batch.whole_N = whole_N
        return batch

    def loss(self, logits_MV: Tensor) -> Tensor:
        """As :meth:`SampleGroup.loss`, times the scale."""
        return _weighted_loss(logits_MV, self._by_label[1], self._weight_M)


def inner_model(model: Any) -> Any:
    """The model within PEFT's wrapper, or the model itself."""
    return getattr(model, "get_base_model", lambda: model)()


def groups(samples: Sequence[GoldExample], most: int, at_least: int = 1) -> list[SampleGroup]:
    """Divide a step's samples into groups of similar length.

    Args:
        samples: the samples of one step.
        most: maximum tokens of a group; a longer sample is a group of its own.
        at_least: minimum number of groups, as far as there are samples.
    """
    lengths = [e.length for e in samples]
    parts = by_length(
        lengths, lambda padded, own: own <= most and padded <= MOST_PADDING * min(own, most)
    )
    while len(parts) < min(at_least, len(samples)):
        fullest = max(range(len(parts)), key=lambda n: len(parts[n]))
        half = len(parts[fullest]) // 2
        parts[fullest : fullest + 1] = [parts[fullest][half:], parts[fullest][:half]]
    return [SampleGroup(tuple(samples[n] for n in part)) for part in parts]


class PackedPasses:
    """Lets a model, and its wrappers, run groups of samples while this context is open.

    Logits are computed only for tokens of solutions: a vocabulary is many times as wide as a model,
    and logits of prompts would take most of the memory and some of the time.
    """

    def __init__(
        self, model: Any, *, dtype: torch.dtype | None = None, fused: bool = False
    ) -> None:
        """Take a model that is prepared for a method.

        Args:
            model: a ``transformers`` causal language model, or PEFT's wrapper of one.
            dtype: dtype of attention, where it is not the model's.
            fused: on a GPU, replace norms and rotary positions by fused kernels, which hold the
                norms' current weights.
        """
        self._inner: Any = inner_model(model)
        self._dtype = dtype
        self._fused = fused
        self._pass: SampleGroup | PaddedPass | None = None
        self._open = ExitStack()

    def __enter__(self) -> PackedPasses:
        inner = self._inner
        with ExitStack() as stack:
            faster = self._fused and inner.device.type == "cuda"
            stack.enter_context(prepared(inner, faster=faster))
            begin = inner.register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(begin.remove)
            pick = inner.get_output_embeddings().register_forward_pre_hook(self._pick)
            stack.callback(pick.remove)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def __call__(self, model: Any, group: SampleGroup | PaddedPass) -> Tensor:
        """Logits ``[M, V]`` of ``model``: the one given before, or a wrapper of it."""
        if isinstance(group, PaddedPass):
            ids_N = group.ids_N
        else:
            ids_N = sent([i for own in group.sequences for i in own], self._inner.device)
        self._pass = group
        try:
            logits_MV: Tensor = model(input_ids=ids_N[None], use_cache=False).logits
        finally:
            self._pass = None
        return logits_MV

    @cached_property
    def _nothing(self) -> KVCache:
        """The cache of passes that begin with none."""
        return KVCache.of(self._inner, rows=0, capacity=0, dtype=self._dtype)

    def _begin(self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the borders of samples; PEFT's keys and values become each sample's prefix."""
        if self._pass is None:
            return None
        # PEFT may know the cache by another name than the model does
        given = [kwargs.pop(name, None) for name in CACHE_KEYWORDS]
        if isinstance(self._pass, PaddedPass):
            batch = self._pass.batch(self._nothing)
        else:
            prefix = None
            for layers in (cache.layers for cache in given if cache is not None):
                prefix = Prefix(
                    tuple(layer.keys[0] for layer in layers),
                    tuple(layer.values[0] for layer in layers),
                )
            batch = pack_sequences(inner, self._pass.sequences, prefix=prefix, dtype=self._dtype)
            batch.recompute = prefix is not None  # masks take more memory than what they come from
        own = {"position_ids": batch.position_N[None], "fttt_batch": batch}
        return args, {**kwargs, **own}

    def _pick(self, _: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._pass is None:
            return None
        if isinstance(self._pass, PaddedPass):
            where_M = self._pass.where_M
        else:
            where_M = torch.tensor(self._pass.where).to(inputs[0].device, non_blocking=True)
        # by index_select, whose gradient is a plain addition where a mask's would sort
        return (inputs[0].flatten(0, 1).index_select(0, where_M),)
