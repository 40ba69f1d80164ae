"""Random numbers that depend on what they are for, not on who else is asked.

Every number is a hash of a key and a counter (a counter-based generator in the sense of Salmon et
al. 2011, here the SplitMix64 finaliser), so the same (seed, question, generation, position) draws
the same number in any batch, in any order, on any device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["derive_key", "keep_mask", "uniform"]

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def derive_key(*parts: int | str) -> int:
    """A signed 64-bit key that names a random stream."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniform(key: Tensor, counter: Tensor) -> Tensor:
    """Float32 numbers in [0, 1) for int64 keys and counters of shapes that broadcast.

    24 bits are used, so that every value is exact in float32.
    """
    x = _mix(key + counter * _GOLDEN)
    return _shift(x, 40).to(torch.float32) * 2.0**-24


def keep_mask(key_B: Tensor, token_BT: Tensor, width: int, dropout: float) -> Tensor:
    """Dropout's factors for ``[B, T, width]`` features: 0, or ``1 / (1 - dropout)``, float32.

    Feature ``i`` of a token has the counter ``token * width + i`` in its segment's stream.
    """
    feature = torch.arange(width, device=token_BT.device)
    noise = uniform(key_B[:, None, None], token_BT[..., None] * width + feature)
    return (noise >= dropout) / (1 - dropout)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
