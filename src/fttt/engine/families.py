"""What takes the place of a model's own operations while an engine runs it.

- Most models call attention through an interface of ``transformers`` and hand the pass down to it.
  Some do not hand it down; some have an attention written out in their own code; Llama 4 counts
  positions by the length of a cache. Replacements of their methods do what is missing; the
  arithmetic around attention stays the model's own.
- ``transformers`` takes rotary frequencies that follow the length by the longest position of a
  pass, so that a short question would be answered otherwise beside a long one. Here each packed
  token has the frequencies of its own sequence, as long as it is then: ``dynamic`` (NTK), whose
  base grows with the length past the context that the model was made for, and ``longrope``, one set
  of factors up to a length, another beyond it. A row whose keys were made with the first set does
  not continue with the second: from :func:`edge_of` on it is made anew.
- Faster forms: those of :mod:`fttt.engine.operations`, and on a GPU those of
  :mod:`fttt.engine.merged`, on a CPU those of :mod:`fttt.engine.linear`.

All of it is done to a model's own parts, never to a module that other models share, and undone when
the engine is closed; the model's code and weights stay as they are.

Axes: N packed tokens, H heads, F frequencies, D head dimension.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fttt.engine import ops
from fttt.engine.attention import NAME, attend
from fttt.engine.batch import Current, cache_keyword, decoder_of, noting, rebound
from fttt.engine.linear import linear_replacements
from fttt.engine.merged import merged_linears
from fttt.engine.operations import faster_operations
from fttt.engine.states import Mixers

__all__ = [
    "Replacements",
    "attention_replacements",
    "edge_of",
    "follows_length",
    "has_experts",
    "interface",
    "replacements_for",
    "rotary_replacements",
]

Attend = Callable[..., tuple[Tensor, None]]
"""As :func:`fttt.engine.attention.attend` is called, and what only looks as well."""


def has_experts(model: nn.Module) -> bool:
    """Whether a model chooses experts for each token."""
    kinds = {type(module) for module in model.modules()}
    return any(hasattr(kind, "_apply_gate") or "Experts" in kind.__name__ for kind in kinds)


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


def attention_replacements(
    model: Any, attend: Attend, current: Current, own: Mapping[int, Callable[..., Any]]
) -> list[tuple[Any, str, Any]]:
    """Replacements for the methods of a model's attention modules, where they are needed.

    ``own`` are other modules' ``forward``, by their identity, that have been replaced already.
    """
    found: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        name, forward = type(module).__name__, own.get(id(module), module.forward)
        method, make = WRITTEN_OUT.get(name, ("", None))
        if make is not None and hasattr(module, method):  # later versions have not all of these
            found.append((module, method, make(module, attend, current)))
            if name == "MptAttention":  # its model cannot do without a mask
                base = decoder_of(model)
                methods = rebound(base, {"create_causal_mask": _no_mask})
                found += [(base, name, method) for name, method in methods.items()]
        elif name == "Llama4TextAttention":
            found.append((module, "forward", _with_places(forward, current)))
        elif name in {"StableLmAttention", "NemotronAttention"}:
            found.append((module, "forward", _handed_down(forward, current)))
    return found


def _no_mask(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(())


def _handed_down(forward: Callable[..., Any], current: Current) -> Callable[..., Any]:
    """A ``forward`` that is told of the pass, which its decoder layer keeps to itself."""

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

    def update(self, key: Tensor, value: Tensor, layer_idx: int, **_: Any) -> tuple[Tensor, Tensor]:
        """As they are: what came before lies in the engine's own cache."""
        return key, value


def _with_places(forward: Callable[..., Any], current: Current) -> Callable[..., Any]:
    """Llama 4's attention, which scales queries by positions that it counts itself."""

    name = cache_keyword(forward)

    def placed(*args: Any, **kwargs: Any) -> Any:
        if current.batch is not None:
            kwargs[name] = _Places(current.batch.position_N)
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


Frequencies = Callable[[Tensor], Tensor]
"""Of sequences of these lengths ``[N]``: ``[N, F]``."""


def edge_of(model: nn.Module) -> int | None:
    """Tokens of the longest sequence whose frequencies are the first ones; ``None`` if of all."""
    edges = [
        int(parameters["original_max_position_embeddings"])
        for module, layer_type in _scaled(model)
        if (parameters := _parameters(module, layer_type))["rope_type"] == "longrope"
    ]
    return min(edges, default=None)


def follows_length(model: nn.Module) -> bool:
    """Whether a token's rotary frequencies depend on how long its sequence is."""
    return bool(_scaled(model))


def rotary_replacements(model: nn.Module, current: Current) -> list[tuple[Any, str, Any]]:
    """Replacements for rotary modules whose frequencies depend on the length of what they see."""
    found: dict[int, tuple[Any, dict[str | None, Frequencies]]] = {}
    for module, layer_type in _scaled(model):
        own = found.setdefault(id(module), (module, {}))[1]
        own[layer_type] = _frequencies(module, layer_type)
    return [(m, "forward", _per_sequence(m, own, current)) for m, own in found.values()]


def _scaled(model: nn.Module) -> list[tuple[Any, str | None]]:
    """Rotary modules, and their kinds of layers, whose frequencies depend on the length."""
    found: list[tuple[Any, str | None]] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind):
                found.append((module, layer_type))
    return found


def _parameters(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters: dict[str, Any] = module.config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


def _frequencies(module: Any, layer_type: str | None) -> Frequencies:
    parameters, config = _parameters(module, layer_type), module.config
    more = {} if layer_type is None else {"layer_type": layer_type}
    kind = parameters["rope_type"]
    device = next(module.buffers()).device
    make: Any = ROPE_INIT_FUNCTIONS[kind]
    if kind == "longrope":
        edge = int(parameters["original_max_position_embeddings"])
        short_F, long_F = (
            make(config, device, seq_len=length, **more)[0] for length in (edge, edge + 1)
        )
        return lambda length_N: torch.where(length_N[:, None] > edge, long_F, short_F)
    most, factor = config.max_position_embeddings, parameters["factor"]
    base_F: Tensor = make(config, device, seq_len=most, **more)[0]
    features = 2 * base_F.shape[0]
    exponent_F = torch.arange(0, features, 2, device=device) / features

    def dynamic(length_N: Tensor) -> Tensor:
        stretch_N = (factor * length_N.clamp(min=most) / most - (factor - 1)).float()
        stretch_N = stretch_N ** (features / (features - 2))
        frequencies_NF: Tensor = base_F / stretch_N[:, None] ** exponent_F
        return frequencies_NF

    return dynamic


class _Held:
    """Stands for a buffer of frequencies: asked for its one row, it gives a row a token.

    Versions of ``transformers`` ask by a place, for ``[1, F, 1]``, or by ``to``, for ``[F]``.
    """

    def __init__(self, frequencies_NF: Tensor) -> None:
        self._frequencies_NF = frequencies_NF

    def __getitem__(self, place: tuple[None, slice, None]) -> Tensor:
        return self._frequencies_NF[:, :, None]

    def to(self, **kwargs: Any) -> Tensor:
        return self._frequencies_NF[:, None].to(**kwargs)


class _Itself:
    """A module with other frequencies, for its own code to run on."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self.__dict__.update(changed)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _per_sequence(
    module: Any, frequencies: dict[str | None, Frequencies], current: Current
) -> Callable[..., Any]:
    forward = module.forward
    plain: Any = inspect.unwrap(type(module).forward)

    @torch.no_grad()
    def rotate(
        x: Tensor, position_ids: Tensor, layer_type: str | None = None, **kwargs: Any
    ) -> Any:
        more = kwargs if layer_type is None else {**kwargs, "layer_type": layer_type}
        batch = current.batch
        if batch is None or layer_type not in frequencies:
            return forward(x, position_ids, **more)
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        held = _Held(frequencies[layer_type](batch.whole_N))
        out = plain(_Itself(module, **{name: held}), x, position_ids.T, **more)
        if isinstance(out, Tensor):  # complex numbers of unit length
            return out.transpose(0, 1)
        return tuple(part.transpose(0, 1) for part in out)

    return rotate


class Replacements:
    """Attributes of a model's parts, and what replaces them while this is enabled.

    Several of one model are taken back in the reverse order of their enabling: one that is disabled
    before a later one stays below it until that is.
    """

    def __init__(
        self, replacements: Sequence[tuple[Any, str, Any]], model: nn.Module | None = None
    ) -> None:
        """``model`` is whose parts they are, where several may be enabled at once."""
        self._replacements = replacements
        self._active: ExitStack | None = None
        self._wanted = False
        # with the model, so that both end together
        self._enabled: list[Replacements] = []
        if model is not None:
            self._enabled = vars(model).setdefault("_fttt_replacements", self._enabled)

    def __len__(self) -> int:
        return len(self._replacements)

    def enable(self) -> None:
        """Let the replacements run in place of the model's own code."""
        with ExitStack() as stack:
            for owner, name, replacement in self._replacements:
                stack.enter_context(patch.object(owner, name, replacement))
            self._active, self._wanted = stack.pop_all(), True
        self._enabled.append(self)

    def disable(self) -> None:
        """Give the model its own code back. Calling it twice is harmless."""
        self._wanted = False
        while self._enabled and not self._enabled[-1]._wanted:
            last = self._enabled.pop()
            assert last._active is not None
            last._active.close()


def replacements_for(
    model: Any, device: torch.device, mixers: Mixers, *, faster: bool = True
) -> Replacements:
    """What serves on a device, not enabled yet; without ``faster`` only what packing needs."""
    current = Current()
    first: list[tuple[Any, str, Any]] = []
    if faster:
        if device.type == "cuda":
            first = [*faster_operations(model, ops.fused), *merged_linears(model)]
        else:
            first = [*faster_operations(model, ops.cpu), *linear_replacements(model)]
    own = {id(owner): method for owner, name, method in first if name == "forward"}
    needed = [
        *mixers.replacements(current),
        *attention_replacements(model, attend, current, own),
        *rotary_replacements(model, current),
    ]
    own |= {id(owner): method for owner, name, method in needed if name == "forward"}
    if needed:
        for outer in {id(m): m for m in (model, decoder_of(model))}.values():
            forward = noting(outer, own.get(id(outer), outer.forward), current)
            needed.append((outer, "forward", forward))
    return Replacements([*first, *needed, *interface(model, NAME)], model)
