"""The engine's own operations, and the one place that chooses who computes them.

Plain PyTorch (:mod:`fttt.engine.ops.sampling`) serves any device; where there is a GPU, Triton's
kernels (:mod:`fttt.engine.ops.triton`, :mod:`fttt.engine.ops.nucleus`,
:mod:`fttt.engine.ops.low_rank`, :mod:`fttt.engine.ops.train_attention`) and fused forms of a
model's own operations (:mod:`fttt.engine.ops.fused`) take its place for tensors that lie there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fttt.engine.ops import cpu, sampling

__all__ = [
    "cpu", "current_device", "fused", "gpu", "keep_mask", "low_rank", "nucleus", "sample",
    "train_attention",
]  # fmt: skip

_CUDA = torch.cuda.is_available() and find_spec("triton") is not None
gpu: Any = import_module("fttt.engine.ops.triton") if _CUDA else None
"""Kernels of a decode step on a GPU: attention, adapters."""
low_rank: Any = import_module("fttt.engine.ops.low_rank") if _CUDA else None
"""The adapters' products in passes of many tokens on a GPU, with their gradients."""
nucleus: Any = import_module("fttt.engine.ops.nucleus") if _CUDA else None
"""The kernel that draws tokens on a GPU."""
train_attention: Any = import_module("fttt.engine.ops.train_attention") if _CUDA else None
"""Attention of train passes, and of prefill passes that SDPA's fused kernels need a mask for."""
fused: Any = import_module("fttt.engine.ops.fused") if _CUDA else None
"""One kernel where a model's own code launches many."""


def current_device(device: torch.device | str) -> AbstractContextManager[object]:
    """Make ``device`` the current one of this thread for a while; a CPU always is.

    Triton launches its kernels, and PyTorch captures graphs and makes streams, on the current GPU,
    wherever the tensors are.
    """
    device = torch.device(device)
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sample(
    logits_RV: Tensor,
    temperature_R: Tensor,
    top_p_R: Tensor,
    noise_R: Tensor,
    shape: sampling.Shape | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row; rows of temperature 0 take the most probable token.

    Args:
        logits_RV: scores of any floating dtype.
        temperature_R: float32, 0 or more.
        top_p_R: float32 in (0, 1].
        noise_R: float32 in [0, 1), one a row.
        shape: what rows ask for beside temperature and nucleus.

    Returns:
        ``[R]`` int64, and ``[R]`` float32: the model's log-probabilities of these tokens, at
        temperature 1 and without a shape.
    """
    chosen = nucleus if logits_RV.is_cuda else sampling
    token_R, logprob_R = chosen.sample(logits_RV, temperature_R, top_p_R, noise_R, shape)
    return token_R, logprob_R


def keep_mask(key_B: Tensor, token_BT: Tensor, width: int, dropout: float) -> Tensor:
    """Dropout's factors for ``[B, T, width]`` features: 0, or ``1 / (1 - dropout)``, float32.

    Feature ``i`` of a token has the counter ``token * width + i`` in its segment's stream.
    """
    chosen = gpu if key_B.is_cuda else sampling
    mask_BTI: Tensor = chosen.keep_mask(key_B, token_BT, width, dropout)
    return mask_BTI
