"""Changes of weights that need no trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fttt.engine.factors import Factors

__all__ = ["uphill"]


def uphill(factors: Factors, step: float = 3.0) -> dict[str, Tensor]:
    """``step`` times the tanh of each entry of the gradient: large, and each example's own.

    It serves as what :class:`fttt.engine.WeightDeltaSpec` predicts with.
    """
    import torch

    return {
        name: torch.stack(
            [
                step * (one.delta_NO[name].T @ one.x_NI[name].float()).tanh()
                for one in factors.groups(1)
            ]
        )
        for name in factors.x_NI
    }
