"""What the code of some families needs, so that its attention is that of the engine.

Most models call attention through an interface of ``transformers`` and hand the pass down to it.
Some do not hand it down; some have an attention written out in their own code; Llama 4 counts
positions by the length of a cache. Stand-ins for their methods do what is missing; the arithmetic
around attention stays the model's own.

Axes: N packed tokens, H heads, D head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fttt.engine.batch import Current

__all__ = ["WRITTEN_OUT", "attention_stand_ins", "interface"]

Attend = Callable[..., tuple[Tensor, None]]
"""As :func:`fttt.engine.attention.attend` is called, and what only looks as well."""


INTERFACE = "_attn_implementation_internal"
"""Where a configuration holds the name of its attention. The library's own way to set it refuses
models whose attention is written out."""


def interface(model: nn.Module, name: str) -> list[tuple[Any, str, Any]]:
    """The attention of that name in all of a model's configurations."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, INTERFACE):
            configs[id(config)] = config
    return [(config, INTERFACE, name) for config in configs.values()]


def attention_stand_ins(
    model: nn.Module, attend: Attend, current: Current
) -> list[tuple[Any, str, Any]]:
    """Stand-ins for the methods of a model's attention modules, where they are needed."""
    found: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        name = type(module).__name__
        if name in WRITTEN_OUT:
            method, make = WRITTEN_OUT[name]
            found.append((module, method, make(module, attend, current)))
            if name == "MptAttention":  # its model cannot do without a mask
                home = sys.modules[type(module).__module__]
                found.append((home, "create_causal_mask", _no_mask))
        elif name == "Llama4TextAttention":
            found.append((module, "forward", _with_places(module, current)))
        elif name in {"StableLmAttention", "NemotronAttention"}:
            found.append((module, "forward", _handed_down(module, current)))
    return found


def _no_mask(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(())


def _handed_down(module: nn.Module, current: Current) -> Callable[..., Any]:
    """A ``forward`` that is told of the pass, which its decoder layer keeps to itself."""
    forward = module.forward

    def told(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **current.handed, **kwargs)

    return told


class _Places:
    """Stands for a cache whose length says where each packed token is in its sequence."""

    def __init__(self, position_N: Tensor) -> None:
        self._position_N = position_N

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:
        """What the caller adds to the tokens' numbers in the pass."""
        return self._position_N - torch.arange(
            len(self._position_N), device=self._position_N.device
        )

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """As they are: what came before lies in the engine's own cache."""
        return key, value


def _with_places(module: nn.Module, current: Current) -> Callable[..., Any]:
    """Llama 4's attention, which scales queries by positions that it counts itself."""
    forward = module.forward

    def placed(*args: Any, **kwargs: Any) -> Any:
        if current.batch is not None:
            kwargs["past_key_values"] = _Places(current.batch.position_N)
        return forward(*args, **kwargs)

    return placed


def _bloom(module: Any, attend: Attend, current: Current) -> Callable[..., Any]:
    home: Any = sys.modules[type(module).__module__]

    def forward(hidden_states: Tensor, residual: Tensor, *_: Any, **__: Any) -> Any:
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        slopes_H = _slopes(home, module.num_heads, query.device)
        given = {"scaling": module.inv_norm_factor, "slopes": slopes_H, **current.handed}
        out = module.dense(attend(module, query, key, value, None, **given)[0].flatten(2))
        return home.dropout_add(out, residual, module.hidden_dropout, module.training), None

    return forward


def _mpt(module: Any, attend: Attend, current: Current) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, position_bias: Tensor, *_: Any, **__: Any) -> Any:
        mixed = module.Wqkv(hidden_states)
        if module.clip_qkv:
            mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        query, key, value = (
            x.unflatten(2, (module.n_heads, module.head_dim)).transpose(1, 2)
            for x in mixed.chunk(3, dim=2)
        )
        slopes_H = position_bias[:, 0, -1] - position_bias[:, 0, -2]
        given = {"scaling": module.softmax_scale, "slopes": slopes_H, **current.handed}
        return module.out_proj(attend(module, query, key, value, None, **given)[0].flatten(2)), None

    return forward


def _falcon(module: Any, attend: Attend, current: Current) -> Callable[..., Any]:
    home: Any = sys.modules[type(module).__module__]

    def forward(
        hidden_states: Tensor,
        alibi: Tensor | None,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **__: Any,
    ) -> Any:
        split = module._split_heads(module.query_key_value(hidden_states))
        query, key, value = (x.transpose(1, 2) for x in split)
        slopes_H = None
        if alibi is None:
            assert position_embeddings is not None
            query, key = home.apply_rotary_pos_emb(query, key, *position_embeddings)
        else:
            slopes_H = _slopes(home, module.num_heads, query.device) * module.inv_norm_factor
        given = {"scaling": module.inv_norm_factor, "slopes": slopes_H, **current.handed}
        return module.dense(attend(module, query, key, value, None, **given)[0].flatten(2)), None

    return forward


def _slopes(home: Any, heads: int, device: torch.device) -> Tensor:
    """ALiBi's slopes, by how the modelling code's own bias grows from one position to the next."""
    two = torch.ones(1, 2, dtype=torch.int64, device=device)
    bias: Tensor = home.build_alibi_tensor(two, heads, torch.float32)
    return bias[:, 0, 1] - bias[:, 0, 0]


def _core(scaled: bool) -> Callable[[Any, Attend, Current], Callable[..., Any]]:
    """A method of queries, keys and values alone; ``scaled`` by the root of the head dimension."""

    def make(module: Any, attend: Attend, current: Current) -> Callable[..., Any]:
        local = getattr(module, "attention_type", "global") == "local"

        def core(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Any:
            given: dict[str, Any] = {"scaling": query.shape[-1] ** -0.5 if scaled else 1.0}
            if local:
                given["sliding_window"] = module.config.window_size
            given |= current.handed
            query, key = (x.to(value.dtype) for x in (query, key))
            return attend(module, query, key, value, None, **given)[0].transpose(1, 2), None

        return core

    return make


WRITTEN_OUT: dict[str, tuple[str, Callable[[Any, Attend, Current], Callable[..., Any]]]] = {
    "BloomAttention": ("forward", _bloom),
    "MptAttention": ("forward", _mpt),
    "FalconAttention": ("forward", _falcon),
    "GPTJAttention": ("_attn", _core(scaled=True)),
    "CodeGenAttention": ("_attn", _core(scaled=True)),
    "GPTNeoSelfAttention": ("_attn", _core(scaled=False)),
}
"""Attention modules that are written out: the method that is replaced, and by what."""
