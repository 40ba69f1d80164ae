"""The rotary positions that a GGUF file's metadata and tensors describe.

Scaling that stretches frequencies evenly (linear), by parts (yarn) or by given factors (longrope)
has keys or tensors of its own. Llama 3's is stored as its result, one divisor a frequency
(``rope_freqs.weight``), from which its settings are told again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fttt.models.gguf.weights import read_tensor

if TYPE_CHECKING:
    from fttt.models.gguf.config import Keys

__all__ = ["llama3_settings", "rotary_parameters"]

_BASE = 10_000.0
_TRAINED = 8192
"""Llama 3's context before it was stretched; only its ratio to the other settings matters."""
_TOLERANCE = 1e-4


def rotary_parameters(keys: Keys, width: int) -> dict[str, Any]:
    """The ``rope_parameters`` of a ``transformers`` config.

    Args:
        keys: the file's metadata.
        width: values of a head that positions turn.

    Raises:
        UsageError: the scaling is of an unknown kind, or its factors follow no known rule.
    """
    base = float(keys.get("rope.freq_base", _BASE))
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor")
    if "rope_factors_long.weight" in keys.file.tensors:
        return found | _long(keys)
    if kind == "linear" or (kind == "none" and keys.get("rope.scale_linear")):
        factor = factor or keys.get("rope.scale_linear")
        return found | {"rope_type": "linear", "factor": float(factor or 1.0)}
    if kind == "yarn":
        return found | _yarn(keys, float(factor or 1.0))
    if kind not in {"none", "longrope"}:
        keys.file.refuse(
            f"scales its rotary positions by {kind!r}, which is not known here",
            "known are none, linear, yarn, longrope and Llama 3's",
        )
    if "rope_freqs.weight" in keys.file.tensors:
        divisors = read_tensor(keys.file, "rope_freqs.weight")[: width // 2]
        settings = llama3_settings(divisors, base, width)
        if settings is None:
            keys.file.refuse(
                "divides its rotary frequencies by factors that are not those of Llama 3's scaling",
                "take the model as safetensors",
            )
        return found | settings
    return found


def _yarn(keys: Keys, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    keys.get("rope.scaling.finetuned")  # says how the model came by it
    if keys.get("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        keys.file.refuse(
            "mixes yarn's frequencies by another share than 1", "take the model as safetensors"
        )
    optional = {
        "original_max_position_embeddings": "original_context_length",
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    for name, key in optional.items():
        value = keys.get(f"rope.scaling.{key}")
        if value is not None:
            found[name] = value
    return found


def _long(keys: Keys) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "longrope"}
    for name in ("short", "long"):
        factors = read_tensor(keys.file, f"rope_factors_{name}.weight")
        found[f"{name}_factor"] = [float(factor) for factor in factors]
    found["original_max_position_embeddings"] = keys.need("rope.scaling.original_context_length")
    attention = keys.get("rope.scaling.attn_factor")
    if attention is not None:
        found["attention_factor"] = attention
    return found


def llama3_settings(divisors: Tensor, base: float, width: int) -> dict[str, Any] | None:
    """The settings of Llama 3's scaling that give these divisors, or ``None`` where none do.

    High frequencies are divided by 1, low ones by the factor; between two wavelengths the share
    ``1/d`` goes over smoothly, linear in the context's length over the wavelength, so that two
    divisors on the way tell both ends. With fewer on the way the ends are only narrowed down, and
    any that agree with the divisors make the same model.

    Args:
        divisors: of each frequency, from the highest to the lowest.
        base: of the frequencies.
        width: values of a head that positions turn.
    """
    given = [float(d) for d in divisors]
    factor = max(given)
    turns = [base ** (-2 * n / width) / (2 * math.pi) for n in range(len(given))]  # a token
    if factor <= 1:
        return {} if min(given) == 1 else None
    share = [(1 / d - 1 / factor) / (1 - 1 / factor) for d in given]  # 1: as it was
    on_the_way = [n for n, s in enumerate(share) if 1e-6 < s < 1 - 1e-6]
    untouched = [turns[n] for n, s in enumerate(share) if s >= 1 - 1e-6]
    divided = [turns[n] for n, s in enumerate(share) if s <= 1e-6]
    high = min(untouched, default=turns[0] * 4)
    low = max(divided, default=turns[-1] / 4)
    if len(on_the_way) > 1:
        first, last = on_the_way[0], on_the_way[-1]
        slope = (share[first] - share[last]) / (turns[first] - turns[last])
        low = turns[first] - share[first] / slope
        high = low + 1 / slope
    elif on_the_way:
        turn, kept = turns[on_the_way[0]], share[on_the_way[0]]
        lower = (turn - kept * high) / (1 - kept)
        if lower < low:  # a low frequency would not be divided whole
            high = low + (turn - low) / kept
        else:
            low = lower
    found = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low * _TRAINED,
        "high_freq_factor": high * _TRAINED,
        "original_max_position_embeddings": _TRAINED,
    }
    again = [_divisor(turn, low, high, factor) for turn in turns]
    alike = all(abs(a - d) <= _TOLERANCE * d for a, d in zip(again, given, strict=True))
    return found if alike and 0 < low < high else None


def _divisor(turn: float, low: float, high: float, factor: float) -> float:
    """What a frequency of so many turns a token is divided by."""
    share = min(1.0, max(0.0, (turn - low) / (high - low)))
    return 1 / ((1 - share) / factor + share)
