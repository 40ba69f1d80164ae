"""Running mean and variance of features, over every token that was ever seen.

Welford's method in the form of Chan, Golub and LeVeque (1983): a block of tokens is summed up at
once, and two summaries join into that of both. So the result is that of one pass over all tokens,
whatever the blocks and whichever process saw them.

Axes: N tokens, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningStatistics"]

_BLOCK = 1024
"""Tokens that are held in float64 at once."""
_ROUNDING = 1e-7


class RunningStatistics(nn.Module):
    """Count, mean and sum of squared deviations of each feature, in float64.

    The three are buffers: they are saved and restored with the network that they belong to.
    """

    count: Tensor
    mean_F: Tensor
    squares_F: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_F", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("squares_F", torch.zeros(features, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x_NF: Tensor) -> None:
        """Take in tokens."""
        for block_NF in x_NF.split(_BLOCK) if len(x_NF) else ():
            values_NF = block_NF.double()
            mean_F = values_NF.mean(0)
            squares_F = (values_NF - mean_F).square_().sum(0)
            self._join(float(values_NF.shape[0]), mean_F, squares_F)

    @property
    def std_F(self) -> Tensor:
        """The standard deviation; 1 for a feature that never varied beyond float32's rounding."""
        variance_F = self.squares_F / (self.count - 1).clamp(min=1)
        varied_F = variance_F > (self.mean_F * _ROUNDING).square()
        return torch.where(varied_F, variance_F, 1.0).sqrt()

    def z_score(self, x_NF: Tensor) -> Tensor:
        """Each feature less its mean, in standard deviations, float32."""
        return (x_NF.float() - self.mean_F.float()) / self.std_F.float()

    def _join(self, count: float, mean_F: Tensor, squares_F: Tensor) -> None:
        total = self.count + count
        apart_F = mean_F - self.mean_F
        self.squares_F += squares_F + apart_F.square() * (self.count * count / total)
        self.mean_F += apart_F * (count / total)
        self.count.copy_(total)

    def flat(self) -> Tensor:
        """Count, mean and squares as one vector, to be sent to other processes."""
        return torch.cat([self.count[None], self.mean_F, self.squares_F])

    def join_flat(self, flat: Tensor) -> None:
        """Take in all that another's :meth:`flat` tells."""
        features = self.mean_F.shape[0]
        if float(flat[0]) > 0:
            self._join(float(flat[0]), flat[1 : features + 1], flat[features + 1 :])
