"""Faster forms of a model's own operations: norms, sums, rotary positions, gates.

A pass of few tokens is bound by the number of small operations, on a GPU
(:mod:`fttt.engine.ops.fused`) as on a CPU (:mod:`fttt.engine.ops.cpu`). These forms take the place
of the model's own code while the engine runs it, each only where a trial on random numbers shows
that it computes the same; everything else of the model, whatever its architecture, runs as it is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fttt.engine.batch import cache_keyword, rebound

__all__ = ["faster_operations"]

ROTARY = "apply_rotary_pos_emb"
Forms = Any
"""The module of a device's forms."""


def faster_operations(model: nn.Module, forms: Forms) -> list[tuple[Any, str, Any]]:
    """Replacements for norms, gates, sums and the rotary function, where they serve.

    ``forms`` are those of the device that the model lies on.
    """
    found = _residual_layers(model, forms)
    for module in model.modules():
        replacement = _norm_for(module, forms) or _gated_for(module, forms)
        if replacement is not None:
            found.append((module, "forward", replacement))
    home: Any = sys.modules[type(model).__module__]
    own = getattr(home, ROTARY, None)
    if _same_rotary(own, next(model.parameters()), forms):
        for module in model.modules():
            if getattr(sys.modules[type(module).__module__], ROTARY, None) is own:
                methods = rebound(module, {ROTARY: forms.rotary})
                found += [(module, name, method) for name, method in methods.items()]
    return found


def _norm_for(module: nn.Module, forms: Forms) -> Callable[[Tensor], Tensor] | None:
    """A faster forward of a root-mean-square norm, or ``None`` where the module is none."""
    settings = _norm_of(module, forms)
    if settings is None:
        return None

    def replacement(x: Tensor) -> Tensor:
        out: Tensor = forms.rms_norm(x, *settings)
        return out

    return replacement


Norm = tuple[Tensor, float, float]
"""Weight, epsilon, and what is added to the weight."""


def _norm_of(module: nn.Module, forms: Forms) -> Norm | None:
    """The settings of a root-mean-square norm."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if len(inspect.signature(module.forward).parameters) != 1:  # a norm with a gate
        return None
    x = _drawn(weight, 8, weight.shape[0])
    try:
        expected = module(x)
    except (RuntimeError, TypeError):
        return None
    for offset in (0.0, 1.0):  # Gemma's norms scale by one plus the weight
        if _close(forms.rms_norm(x, weight, eps, offset), expected):
            return weight, eps, offset
    return None


PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
"""Of a decoder layer whose norms come before what they are for."""


class _Normed:
    """A layer's output as the next layer's norm makes it, which was computed with the output."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, int, Tensor] | None = None

    def put(self, x: Tensor, normed: Tensor) -> None:
        self._held = x, x._version, normed

    def take(self, x: Tensor) -> Tensor | None:
        held, self._held = self._held, None
        same = held is not None and held[0] is x and held[1] == x._version
        return held[2] if held is not None and same else None


def _residual_layers(model: nn.Module, forms: Forms) -> list[tuple[Any, str, Any]]:
    """Forwards of plain pre-norm layers, with each sum and the norm that follows as one.

    The second sum of a layer is followed by the first norm of the next one.
    """
    found: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        members = module if isinstance(module, nn.ModuleList) else ()
        layers: list[Any] = [layer for layer in members if _is_plain(layer)]
        normed = _Normed()
        for layer, after in zip_longest(layers, layers[1:]):
            middle = _norm_of(layer.post_attention_layernorm, forms)
            last = _norm_of(after.input_layernorm, forms) if after is not None else None
            if middle is not None:
                found.append(
                    (layer, "forward", _residual_forward(layer, forms, middle, last, normed))
                )
    return found


def _residual_forward(
    layer: Any, forms: Forms, middle: Norm, last: Norm | None, held: _Normed
) -> Callable[..., Any]:
    own = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        normed = held.take(hidden_states)
        if args or torch.is_grad_enabled() or hidden_states.dtype != middle[0].dtype:
            return own(hidden_states, *args, **kwargs)
        if normed is None:
            normed = layer.input_layernorm(hidden_states)
        out = layer.self_attn(hidden_states=normed, **kwargs)[0]
        hidden, normed = forms.sum_and_norm(hidden_states, out, *middle)
        out = layer.mlp(normed)
        if last is None:
            return hidden + out
        hidden, normed = forms.sum_and_norm(hidden, out, *last)
        held.put(hidden, normed)
        return hidden

    return forward


def _is_plain(layer: Any) -> bool:
    """Whether a layer is ``h = x + attention(norm(x)); h + mlp(norm(h))``, by its own code.

    Tried with other functions in place of its parts, which also see what attention is given.
    """
    parts: list[Any] = [getattr(layer, name, None) for name in PARTS]
    weight = getattr(parts[0], "weight", None)
    if not all(isinstance(part, nn.Module) for part in parts) or not isinstance(weight, Tensor):
        return False
    if any(part._forward_hooks or part._forward_pre_hooks for part in (parts[0], parts[2])):
        return False
    given = {name: object() for name in ("position_ids", "position_embeddings", "fttt_batch")}
    seen: list[dict[str, Any]] = []

    def other(n: int) -> Any:
        def run(hidden_states: Tensor, **kwargs: Any) -> Any:
            out = hidden_states.square() * (n + 1) / 8 - n
            if n == 1:
                seen.append({k: v for k, v in kwargs.items() if v is not None and v is not False})
            return (out, None) if n == 1 else out

        return run

    norm, attention, second, mlp = map(other, range(4))
    x = _drawn(weight, 1, 3, len(weight))
    with ExitStack() as stack, torch.no_grad():
        for n, part in enumerate(parts):
            stack.enter_context(patch.object(part, "forward", other(n)))
        try:
            without = {"attention_mask": None, cache_keyword(layer.forward): None}
            out = layer.forward(x, **without, **given)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        hidden = x + attention(norm(x))[0]
        expected = hidden + mlp(second(hidden))
    return isinstance(out, Tensor) and torch.equal(out, expected) and seen[0] == given


def _gated_for(module: Any, forms: Forms) -> Callable[[Tensor], Tensor] | None:
    """A gated layer's forward with its activation and product as one, or ``None``."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Module) for part in (*parts, getattr(module, "act_fn", None))):
        return None
    weight = getattr(module.gate_proj, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    x = _drawn(weight, 8, weight.shape[1])
    with torch.no_grad():
        try:
            expected = module(x)
        except (RuntimeError, TypeError):
            return None
        for kind in forms.ACTIVATIONS:

            def replacement(x: Tensor, kind: int = kind) -> Tensor:
                product = forms.gated_product(module.gate_proj(x), module.up_proj(x), kind)
                out: Tensor = module.down_proj(product)
                return out

            if _close(replacement(x), expected):
                return replacement
    return None


def _same_rotary(function: Any, like: Tensor, forms: Forms) -> bool:
    """Whether a model's rotary function is the usual one: halves rotated against each other.

    Angles of fewer features than a head has leave the others as they are, where a function takes
    such angles.
    """
    if function is None:
        return False
    q, k = (_drawn(like, 1, h, 5, 64) for h in (4, 2))
    for width in (64, 32):
        cos, sin = (_drawn(like, 1, 5, width), _drawn(like, 1, 5, width).flip(1))
        try:
            expected = function(q, k, cos, sin)
        except (RuntimeError, TypeError):
            return width < 64
        if not all(
            _close(a, b) for a, b in zip(forms.rotary(q, k, cos, sin), expected, strict=True)
        ):
            return False
    return True


def _drawn(like: Tensor, *shape: int) -> Tensor:
    """Random numbers, drawn on the CPU: once graphs are captured, a GPU's generator is theirs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of the dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = 4 * torch.finfo(a.dtype).eps
    return bool((a.double() - b.double()).norm() <= tolerance * b.double().norm())
