"""The samples of one optimizer step, and how they are cut to run with little padding.

One batch holds all samples of a step, longest first. It is cut into groups of neighbours that run
one after the other and whose gradients add up, so that neither the cut nor the memory at hand
changes what a step learns. Padding stands behind a sample, where causal attention never looks at
it: no mask is needed, and attention runs in its fastest form.

Axes: B samples, T tokens of the longest, M tokens that carry a loss, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fttt.training.gold import GoldExample

__all__ = ["Group", "PickedLogits", "collate", "cut", "fixed_tokens", "groups"]


def collate(examples: Sequence[GoldExample]) -> dict[str, Tensor]:
    """One batch: ``input_ids [B, T]``, ``prompt_length [B]``, ``length [B]``, longest first."""
    rows = sorted(examples, key=lambda e: -len(e.prompt_ids) - len(e.solution_ids))
    ids = [torch.tensor(e.prompt_ids + e.solution_ids) for e in rows]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "prompt_length": torch.tensor([len(e.prompt_ids) for e in rows]),
        "length": torch.tensor([len(i) for i in ids]),
    }


def cut(lengths: Sequence[int], most: int, fixed: int) -> list[int]:
    """How many neighbours run together, group by group, so that a step costs least.

    A group costs its samples times its longest sample, plus ``fixed``.

    Args:
        lengths: tokens of each sample, longest first.
        most: tokens that a group may have, padding included; a longer sample runs alone.
        fixed: what starting a group costs, in tokens.
    """
    cost = [0.0]
    first = [0]
    for end in range(1, len(lengths) + 1):
        options = [
            (cost[start] + (end - start) * lengths[start] + fixed, start)
            for start in range(end)
            if end - start == 1 or (end - start) * lengths[start] <= most
        ]
        best, start = min(options)
        cost.append(best)
        first.append(start)
    sizes = []
    end = len(lengths)
    while end:
        sizes.append(end - first[end])
        end = first[end]
    return sizes[::-1]


def fixed_tokens(model: Any, device: torch.device) -> int:
    """About what starting a pass costs, in tokens that could have run in that time.

    A layer's kernels take some time to be launched, forward and backward, however few tokens they
    see; a token takes 6 operations a parameter. What is assumed of the device only says how samples
    are grouped.
    """
    launch, speed = (2e-3, 4e14) if device.type == "cuda" else (3e-4, 1e11)
    layers = int(model.config.get_text_config().num_hidden_layers)
    parameters = sum(int(p.numel()) for p in model.parameters())
    return round(layers * launch * speed / (6 * parameters))


@dataclass(frozen=True)
class Group:
    """Samples that run together."""

    ids_BT: Tensor
    """Without the last token, which predicts nothing."""
    at_M: Tensor
    """The positions that predict a token of a solution, counted through all rows."""
    label_M: Tensor
    """The tokens predicted there, in the same order."""
    weight_M: Tensor
    """One over the length of the token's solution."""

    def loss(self, logits_MV: Tensor) -> Tensor:
        """The sum over samples of the mean cross-entropy of their solutions."""
        ce_M = F.cross_entropy(logits_MV.float(), self.label_M, reduction="none")
        return (ce_M * self.weight_M).sum()


def groups(batch: dict[str, Tensor], most: int, fixed: int, at_least: int = 1) -> list[Group]:
    """Cut a batch; ``at_least`` groups come of it where it has as many samples."""
    lengths = batch["length"].tolist()
    sizes = cut(lengths, most, fixed)
    while len(sizes) < min(at_least, len(lengths)):
        widest = max(range(len(sizes)), key=lambda i: sizes[i])
        half = sizes[widest] // 2
        sizes[widest : widest + 1] = [sizes[widest] - half, half]
    return list(_groups(batch, lengths, sizes))


def _groups(batch: dict[str, Tensor], lengths: list[int], sizes: list[int]) -> Iterator[Group]:
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        longest = lengths[start]
        ids_BT = batch["input_ids"][rows, :longest]
        prompt_B1 = batch["prompt_length"][rows].unsqueeze(1)
        length_B1 = batch["length"][rows].unsqueeze(1)
        at_T = torch.arange(1, longest, device=ids_BT.device)
        where_BT = (at_T >= prompt_B1) & (at_T < length_B1)
        at_M = where_BT.flatten().nonzero().squeeze(1)
        weight_BT = (1.0 / (length_B1 - prompt_B1)).expand_as(where_BT)
        labels_BT = ids_BT[:, 1:]
        yield Group(ids_BT[:, :-1], at_M, labels_BT.flatten()[at_M], weight_BT.flatten()[at_M])
        start += size


class PickedLogits:
    """Lets a model compute logits only where they are asked for.

    A vocabulary is many times as wide as a model; logits of prompts and padding would take most of
    the memory and some of the time.
    """

    def __init__(self, model: Any) -> None:
        """Hook into the output layer of a ``transformers`` causal language model."""
        self._at_M: Tensor | None = None
        self._handle = model.get_output_embeddings().register_forward_pre_hook(self._pick)

    def __call__(self, model: Any, group: Group) -> Tensor:
        """Logits ``[M, V]`` of ``model``, which may wrap the one that was hooked into."""
        self._at_M = group.at_M
        try:
            logits_MV: Tensor = model(input_ids=group.ids_BT, use_cache=False).logits
        finally:
            self._at_M = None
        return logits_MV

    def _pick(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._at_M is None:
            return None
        # by index_select, whose gradient is a plain addition where a mask's would sort
        return (inputs[0].flatten(0, 1).index_select(0, self._at_M),)
