"""Training passes, forward and backward, captured as graphs of a GPU and replayed.

A pass of a small model is thousands of kernels, and launching them takes longer than they do. A
graph launches them at once, but only for the shape that it was captured with. So a pass is padded
to one of few shapes (:class:`fttt.finetune.packing.PaddedPass`). Before a shape is captured its
passes run plainly, by the same code on the same padded tensors: what is computed, dropout's draw
included, does not depend on which passes were replayed, and a resumed training repeats it.

Gradients are added to tensors that stay where they are; the optimizer runs as it always does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fttt.config.run_config import Section
from fttt.config.training_configs import PrefixSettings
from fttt.engine.captured_pass import Capture, GraphCapture, Replay, can_capture
from fttt.finetune.packing import (
    PackedPasses,
    PaddedPass,
    PaddedShape,
    SampleGroup,
    inner_model,
)

__all__ = ["CapturedSteps", "captures_steps"]

AFTER = 2
"""Passes of a shape that run uncaptured. A capture takes about as long as some ten of them."""
SHAPES = 16
"""That are held at once; their memory is one pool, as large as the largest needs."""
WORK = 1e11
"""Tokens times a layer's parameters, of the largest pass that is captured. A larger one keeps the
GPU busy while it is launched, and needs no padding then."""
ROOM = 1.5
"""Times the memory that passes took so far must be free for a capture."""

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""What versions of ``transformers`` call the argument."""


def captures_steps(model: Any, settings: Section, args: Any) -> bool:
    """Whether a trainer's passes can be captured.

    Several processes talk to each other within a pass; recomputed activations ask for the state of
    the random numbers; a prefix is a cache that is made in each pass; layers that carry a state,
    and experts, ask the host.

    Args:
        model: a ``transformers`` causal language model, or PEFT's wrapper of one.
        settings: the method's.
        args: the trainer's arguments.
    """
    inner = inner_model(model)
    return (
        can_capture(inner)
        and args.world_size == 1
        and not any(getattr(args, name, False) for name in CHECKPOINTING)
        and not isinstance(settings, PrefixSettings)
    )


class CapturedSteps:
    """The captured passes of one training, and the gradients that they add up."""

    def __init__(
        self,
        model: Any,
        packed: PackedPasses,
        context: Callable[[], AbstractContextManager[Any]],
        capture: Callable[[], Capture] = GraphCapture,
    ) -> None:
        """Take what a trainer runs.

        Args:
            model: prepared for a method.
            packed: runs it.
            context: of its forward pass.
            capture: makes what captures passes.
        """
        self._model, self._packed, self._context = model, packed, context
        self._make = capture
        self._capture: Capture | None = None
        self._off = False
        self._learned = [p for p in model.parameters() if p.requires_grad]
        self._gradients: list[Tensor | None] = []
        inner = inner_model(model)
        ends = {inner.get_input_embeddings(), inner.get_output_embeddings()}
        outer = {id(p) for end in ends for p in end.parameters()}
        own = sum(p.numel() for p in inner.parameters() if id(p) not in outer)
        self._layer = own / inner.config.get_text_config().num_hidden_layers
        self._seen: Counter[PaddedShape] = Counter()
        self._passes: dict[PaddedShape, _ReplayedPass] = {}

    def listed(self) -> AbstractContextManager[object]:
        """Let the model list its parameters from memory for a while.

        Each step clips and clears their gradients, and to find them in hundreds of modules takes
        longer than either.
        """
        own = list(self._model.parameters())
        return patch.object(self._model, "parameters", lambda recurse=True: iter(own))

    def begin(self) -> None:
        """Begin a step with gradients of zero."""
        if self._gradients:
            torch._foreach_zero_([own for own in self._gradients if own is not None])
            self._assign()

    def run(self, group: SampleGroup, scale: float) -> Tensor | None:
        """Add the gradient of a group's loss times ``scale``, and return that loss.

        ``None``: the pass is too large; run it plainly.
        """
        shape = PaddedShape.of(group)
        if shape.tokens * self._layer > WORK:
            return None
        held = self._passes.get(shape)
        if held is None:
            self._seen[shape] += 1
            if self._worth(shape):
                held = self._captured(shape)
        if held is not None:
            return held.run(group, scale)
        own = PaddedPass(shape, self._learned[0].device)
        own.fill(group, scale)
        return self._step(own)

    def _worth(self, shape: PaddedShape) -> bool:
        if self._off or self._seen[shape] <= AFTER or len(self._passes) >= SHAPES:
            return False
        device = self._learned[0].device
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free > ROOM * taken

    def _captured(self, shape: PaddedShape) -> _ReplayedPass | None:
        """Capture a pass without weights, which adds nothing to the gradients."""
        self._capture = self._capture or self._make()
        device = self._learned[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            made = _ReplayedPass(PaddedPass(shape, device), self._step, self._capture)
        if made.replay is None:
            self._off = True
            return None
        self._passes[shape] = made
        return made

    def _step(self, own: PaddedPass) -> Tensor:
        """Forward and backward, without asking the host once gradients are there."""
        with self._context():
            loss = own.loss(self._packed(self._model, own))
        # not by ``backward``, whose work for each parameter would run on the stream of an earlier
        # pass, and which adds them up one by one
        found = torch.autograd.grad(loss, self._learned, allow_unused=True)
        if not self._gradients:
            self._gradients = [
                None if x is None else torch.zeros_like(p) if p.grad is None else p.grad
                for p, x in zip(self._learned, found, strict=True)
            ]
            self._assign()
        pairs = zip(self._gradients, found, strict=True)
        both = [(held, x) for held, x in pairs if held is not None and x is not None]
        torch._foreach_add_([held for held, _ in both], [x for _, x in both])
        return loss.detach()

    def _assign(self) -> None:
        for p, own in zip(self._learned, self._gradients, strict=True):
            p.grad = own


class _ReplayedPass:
    """A pass of one shape, and the tensors that it reads and writes."""

    def __init__(
        self, own: PaddedPass, step: Callable[[PaddedPass], Tensor], capture: Capture
    ) -> None:
        self._own, self._step = own, step
        self._loss = torch.zeros((), device=own.ids_N.device)
        self.replay: Replay | None = capture(self._run)

    def _run(self) -> None:
        self._loss.copy_(self._step(self._own))

    def run(self, group: SampleGroup, scale: float) -> Tensor:
        """Replay it for a group of its shape."""
        assert self.replay is not None
        self._own.fill(group, scale)
        self.replay()
        return self._loss.clone()
