"""OpTune's network: from the gradient's factors of one attempt to a change of the weights.

For an edited matrix W ``[out, in]`` the gradient of one example is ``sum_t delta_t x_t^T``. The
network rewrites the factors token by token and leaves the sum as it is:

    z_t  = (x_t, delta_t), each feature as a z-score
    z'_t = z_t + U Dropout(D z_t) + b
    dW   = alpha sum_t delta'_t x'_t^T

All matrices of one shape share D, U, b and the running statistics of the z-scores; each matrix has
a step size alpha of its own. There is no minus sign: U and b learn the direction. Source: arXiv
2502.15771, section 4.

Axes: N packed tokens, Q examples, T tokens of the longest, F = I + O features of a shape (I inputs,
O outputs), R rank, L edited matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fttt.engine.adapters.delta import FactoredDelta, Factors
from fttt.engine.ops.sampling import derive_key, keep_mask
from fttt.optune.checkpoint import EditedLayer

__all__ = ["OpTuneNetwork", "RunningStatistics", "ShapeNetwork"]


class ShapeNetwork(nn.Module):
    """The parameters and statistics that the matrices of one shape share."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        features = inputs + outputs
        self.split = (inputs, outputs)
        self.down_RF = nn.Parameter(torch.empty(rank, features))
        self.up_FR = nn.Parameter(torch.zeros(features, rank))
        self.bias_F = nn.Parameter(torch.zeros(features))
        self.x_statistics = RunningStatistics(inputs)
        self.delta_statistics = RunningStatistics(outputs)

    def forward(self, x_NI: Tensor, delta_NO: Tensor, keep_NR: Tensor | None) -> tuple[Tensor, ...]:
        """The rewritten factors ``x'`` and ``delta'``, float32; ``keep_NR`` is dropout's mask."""
        x_NI = self.x_statistics.z_score(x_NI)
        delta_NO = self.delta_statistics.z_score(delta_NO)
        down_x, down_delta = self.down_RF.split(self.split, dim=1)
        hidden_NR = x_NI @ down_x.T + delta_NO @ down_delta.T
        if keep_NR is not None:
            hidden_NR = hidden_NR * keep_NR
        up_x, up_delta = self.up_FR.split(self.split)
        bias_x, bias_delta = self.bias_F.split(self.split)
        return (
            torch.addmm(x_NI + bias_x, hidden_NR, up_x.T),
            torch.addmm(delta_NO + bias_delta, hidden_NR, up_delta.T),
        )


class OpTuneNetwork(nn.Module):
    """The learned optimizer of a model's edited layers, in float32 whatever the model's precision.

    It has no train mode: dropout is applied exactly where keys for it are given.
    """

    def __init__(
        self,
        layers: Sequence[EditedLayer],
        *,
        rank: int = 16,
        dropout: float = 0.1,
        alpha: float = 1e-4,
        seed: int = 0,
    ) -> None:
        """Start from ``dW = alpha sum_t delta_t x_t^T`` of z-scores: U and b are zero.

        Args:
            layers: the edited layers; layers of one shape share a network.
            rank: rank of D and U.
            dropout: share of the hidden features that training drops.
            alpha: initial step size of every matrix.
            seed: seed of D, which is drawn as ``nn.Linear`` draws its weight.
        """
        super().__init__()
        self.layers = tuple(layers)
        self.rank, self.dropout = rank, dropout
        self.constant: Factors | None = None
        """The factors read in place of any example's own (the ablation ``constant-input``)."""
        self.shapes = nn.ModuleDict()
        for layer in self.layers:
            if layer.shape not in self.shapes:
                self.shapes[layer.shape] = ShapeNetwork(layer.inputs, layer.outputs, rank)
        self.alpha_L = nn.Parameter(torch.full((len(self.layers),), alpha))
        self._draw(seed)

    def forward(self, factors: Factors) -> dict[str, Tensor]:
        """The change ``[Q, out, in]`` of each edited layer's weight, by the layer's name."""
        return {name: delta.dense() for name, delta in self.changes(factors).items()}

    def changes(self, factors: Factors) -> dict[str, FactoredDelta]:
        """The same changes as products of two factors, not multiplied out."""
        if self.constant is None:
            return self.factored(factors)
        size = (factors.examples, -1, -1)
        return {
            name: FactoredDelta(one.left_BFO.expand(size), one.right_BFI.expand(size))
            for name, one in self.factored(self.constant).items()
        }

    def factored(
        self, factors: Factors, dropout_keys_Q: Tensor | None = None
    ) -> dict[str, FactoredDelta]:
        """The changes as factors, with a gradient to the network's own parameters.

        Args:
            factors: recorded under the unmodified model.
            dropout_keys_Q: each example's random stream in training (int64); ``None`` drops
                nothing.
        """
        lengths = list(factors.lengths)
        result = {}
        for index, layer in enumerate(self.layers):
            keep_NR = self._keep(factors.segment_N, dropout_keys_Q, index)
            x_NI, delta_NO = self.shape_of(layer)(
                factors.x_NI[layer.name].detach(), factors.delta_NO[layer.name].detach(), keep_NR
            )
            result[layer.name] = FactoredDelta(
                pad_sequence((delta_NO * self.alpha_L[index]).split(lengths), batch_first=True),
                pad_sequence(x_NI.split(lengths), batch_first=True),
            )
        return result

    @torch.no_grad()
    def summarize(self, parts: Iterable[Factors]) -> Tensor:
        """Statistics of all tokens of recorded factors as one vector, to be sent and observed."""
        device = self.alpha_L.device
        found = {
            name: [RunningStatistics(width).to(device) for width in shape.split]
            for name, shape in self._named_shapes()
        }
        for factors in parts:
            for layer in self.layers:
                of_x, of_delta = found[layer.shape]
                of_x.update(factors.x_NI[layer.name])
                of_delta.update(factors.delta_NO[layer.name])
        return torch.cat([each.flat() for pair in found.values() for each in pair])

    @torch.no_grad()
    def observe(self, summary: Tensor) -> None:
        """Add a result of :meth:`summarize`, of this process or another, to the statistics."""
        running = [m for m in self.modules() if isinstance(m, RunningStatistics)]
        sizes = [each.flat().shape[0] for each in running]
        for each, flat in zip(running, summary.split(sizes), strict=True):
            each.join_flat(flat)

    def shape_of(self, layer: EditedLayer) -> ShapeNetwork:
        """The network of a layer's shape."""
        return cast(ShapeNetwork, self.shapes[layer.shape])

    def _named_shapes(self) -> list[tuple[str, ShapeNetwork]]:
        return [(name, cast(ShapeNetwork, shape)) for name, shape in self.shapes.items()]

    def count_parameters(self) -> tuple[int, int]:
        """The numbers of shared parameters and of step sizes."""
        return sum(p.numel() for p in self.shapes.parameters()), self.alpha_L.numel()

    def _keep(self, segment_N: Tensor, keys_Q: Tensor | None, layer: int) -> Tensor | None:
        """Dropout mask by example, matrix, token and hidden feature, the same in any batch."""
        if keys_Q is None or self.dropout == 0:
            return None
        start_Q = torch.searchsorted(segment_N, torch.arange(len(keys_Q), device=segment_N.device))
        at_N = torch.arange(len(segment_N), device=segment_N.device) - start_Q[segment_N]
        token_N1 = (at_N * len(self.layers) + layer)[:, None]
        return keep_mask(keys_Q[segment_N], token_N1, self.rank, self.dropout)[:, 0]

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        for name, shape in self._named_shapes():
            down_RF = shape.down_RF
            if down_RF.is_meta:
                continue
            bound = 1 / math.sqrt(down_RF.shape[1])
            key = derive_key("optune", seed, name) & (2**63 - 1)
            drawn = torch.empty(down_RF.shape).uniform_(
                -bound, bound, generator=torch.Generator().manual_seed(key)
            )
            down_RF.copy_(drawn)


_BLOCK = 1024
"""Tokens converted to float64 at once."""
_ROUNDING = 1e-7


class RunningStatistics(nn.Module):
    """Running count, mean and sum of squared deviations of each feature, in float64.

    Welford's method in the form of Chan, Golub and LeVeque (1983): a block of tokens is summed up
    at once, and two summaries join into one of both. So the result equals one pass over all tokens,
    whatever the blocks and whichever process saw them. The three numbers are buffers, saved with
    the network.
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
        """Add tokens."""
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
        """Count, mean and squares as one vector, to send to other processes."""
        return torch.cat([self.count[None], self.mean_F, self.squares_F])

    def join_flat(self, flat: Tensor) -> None:
        """Add the tokens behind another's :meth:`flat`."""
        features = self.mean_F.shape[0]
        if float(flat[0]) > 0:
            self._join(float(flat[0]), flat[1 : features + 1], flat[features + 1 :])
