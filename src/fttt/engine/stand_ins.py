"""What takes the place of a model's own operations while an engine runs it.

Faster forms are those of :mod:`fttt.engine.fused` (on a GPU) and :mod:`fttt.engine.narrow` (on a
CPU); what lets mixers run packed is :mod:`fttt.engine.states`. The model's code and weights stay as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

from fttt.engine.attention import NAME, attend
from fttt.engine.batch import Current, noting
from fttt.engine.families import attention_stand_ins, interface
from fttt.engine.narrow import narrow_linears
from fttt.engine.rotary import rotary_stand_ins
from fttt.engine.states import Mixers

__all__ = ["StandIns", "stand_ins_for"]


class StandIns:
    """Attributes of a model's parts, and what replaces them while this is enabled."""

    def __init__(self, replacements: Sequence[tuple[Any, str, Any]]) -> None:
        self._replacements = replacements
        self._active: ExitStack | None = None

    def __len__(self) -> int:
        return len(self._replacements)

    def enable(self) -> None:
        """Let the stand-ins run in place of the model's own code."""
        with ExitStack() as stack:
            for owner, name, replacement in self._replacements:
                stack.enter_context(patch.object(owner, name, replacement))
            self._active = stack.pop_all()

    def disable(self) -> None:
        """Give the model its own code back. Calling it twice is harmless."""
        if self._active is not None:
            self._active.close()
            self._active = None


def stand_ins_for(
    model: Any, device: torch.device, mixers: Mixers, *, faster: bool = True
) -> StandIns:
    """What serves on a device, not enabled yet; without ``faster`` only what packing needs."""
    current = Current()
    needed = [
        *mixers.stand_ins(current),
        *attention_stand_ins(model, attend, current),
        *rotary_stand_ins(model, current),
    ]
    if needed:
        for outer in {id(m): m for m in (model, model.base_model)}.values():
            needed.append((outer, "forward", noting(outer, current)))
    needed += interface(model, NAME)
    if not faster:
        return StandIns(needed)
    if device.type != "cuda":
        return StandIns([*needed, *narrow_linears(model)])
    from fttt.engine.fused import fused_operations

    return StandIns([*needed, *fused_operations(model)])
