"""Packs the samples of one optimizer step end to end, without padding.

One batch holds all samples of a step. They run as one row of tokens, as the engine's passes do
(:mod:`fttt.engine.batch`): only attention needs the borders between samples. A step of more tokens
than fit into one pass is divided into groups, whose gradients are added up, so that the division
does not change the result.

Axes: B samples, M tokens that carry a loss, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fttt.engine.batch import CACHE_KEYWORDS, by_length
from fttt.engine.sequences import pack_sequences, prepared
from fttt.models.loader import Prefix
from fttt.training import GoldExample

__all__ = ["PackedPasses", "SampleGroup", "collate", "groups"]

MOST_PADDING = 4
"""The largest ratio of padded to real tokens in attention, which alone pads a group's samples to
the longest. It is a small part of the work; a second pass through all layers costs more."""


def collate(examples: Sequence[GoldExample]) -> dict[str, Any]:
    """One batch: the ``samples``, and their ``length [B]``, by which the trainer counts them."""
    lengths = [e.length for e in examples]
    return {"length": torch.tensor(lengths), "samples": list(examples)}


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

    def loss(self, logits_MV: Tensor) -> Tensor:
        """The sum over samples of the mean cross-entropy of their solutions."""
        labels = [i for e in self.samples for i in e.solution_ids]
        weights = [1 / len(e.solution_ids) for e in self.samples for _ in e.solution_ids]
        label_M = torch.tensor(labels).to(logits_MV.device, non_blocking=True)
        weight_M = torch.tensor(weights).to(logits_MV.device, non_blocking=True)
        ce_M = F.cross_entropy(logits_MV.float(), label_M, reduction="none")
        return (ce_M * weight_M).sum()


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
        self._inner: Any = getattr(model, "get_base_model", lambda: model)()
        self._dtype = dtype
        self._fused = fused
        self._group: SampleGroup | None = None
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

    def __call__(self, model: Any, group: SampleGroup) -> Tensor:
        """Logits ``[M, V]`` of ``model``: the one given before, or a wrapper of it."""
        ids = torch.tensor([[i for own in group.sequences for i in own]])
        self._group = group
        try:
            logits_MV: Tensor = model(input_ids=ids.to(self._inner.device), use_cache=False).logits
        finally:
            self._group = None
        return logits_MV

    def _begin(self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the borders of samples; PEFT's keys and values become each sample's prefix."""
        if self._group is None:
            return None
        # PEFT may know the cache by another name than the model does
        given = [kwargs.pop(name, None) for name in CACHE_KEYWORDS]
        prefix = None
        for layers in (cache.layers for cache in given if cache is not None):
            prefix = Prefix(
                tuple(layer.keys[0] for layer in layers), tuple(layer.values[0] for layer in layers)
            )
        batch = pack_sequences(inner, self._group.sequences, prefix=prefix, dtype=self._dtype)
        batch.recompute = prefix is not None  # masks take more memory than what they come from
        own = {"position_ids": batch.position_N[None], "fttt_batch": batch}
        return args, {**kwargs, **own}

    def _pick(self, _: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._group is None:
            return None
        # by index_select, whose gradient is a plain addition where a mask's would sort
        where_M = torch.tensor(self._group.where).to(inputs[0].device, non_blocking=True)
        return (inputs[0].flatten(0, 1).index_select(0, where_M),)
