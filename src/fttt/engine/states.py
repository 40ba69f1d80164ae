"""What layers without keys and values carry from token to token, one state a row of the cache.

Linear attention, state space layers and short convolutions read a recurrent state and the last
inputs of a convolution, and write both anew with every token. ``transformers`` calls such a layer's
module a mixer; it asks a cache for its state and hands the new one back. The engine's passes are
packed, so a mixer must not run over them as they are: it would carry one sequence's state into the
next. In its place stands a function that lays the segments out as a batch, gives the mixer's own
code the states of their rows, and keeps what comes back:

- In a decode step each row is a sequence of one token.
- In prefill, segments run in blocks without padding, since padding would enter the state.
- In training nobody needs the state at the end, so segments are padded behind their ends.

A state cannot be cut back to an earlier token as keys and values can, so each row's state is known
by how many tokens it has seen, and read at that place only.

Axes: N packed tokens, B segments, T tokens, D hidden width.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fttt.engine.batch import Batch, Current, cache_keyword, rebound
from fttt.errors import UsageError

__all__ = ["Mixer", "Mixers", "States", "mamba2_scan", "mamba_scan"]

State = dict[tuple[str, int], Tensor]
"""A mixer's tensors ``[B, ...]`` by kind (``conv`` or ``recurrent``) and number."""
ASKS = frozenset({"update_conv_state", "update_recurrent_state", "set_linear_cache"})
"""Methods of a cache by which a mixer is known."""


class States:
    """The states of all rows, ``[rows + 1, ...]`` a tensor, in the order of a model's mixers."""

    def __init__(self, mixers: Sequence[Mixer], rows: int, device: torch.device) -> None:
        """Take the memory."""
        self._tensors: list[State] = [
            {
                key: torch.zeros(rows + 1, *like.shape[1:], dtype=like.dtype, device=device)
                for key, like in mixer.blank.items()
            }
            for mixer in mixers
        ]
        self._seen = [0] * (rows + 1)

    def read(self, number: int, row_B: Tensor, begins: Sequence[bool] = ()) -> State:
        """A copy of the rows' states; of sequences that begin, the state before the first token."""
        state = {key: tensor[row_B] for key, tensor in self._tensors[number].items()}
        if any(begins):
            where = torch.tensor(begins, device=row_B.device)
            for tensor in state.values():
                tensor[where] = 0
        return state

    def write(self, number: int, row_B: Tensor, state: State) -> None:
        """Store a mixer's new states."""
        for key, tensor in self._tensors[number].items():
            tensor[row_B] = state[key].to(tensor.dtype)

    def clear(self, row: int) -> None:
        """Reset a row to its state before any token."""
        self._seen[row] = 0
        for state in self._tensors:
            for tensor in state.values():
                tensor[row] = 0

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy rows to others, ``(source, target)`` each."""
        for source, target in pairs:
            self._seen[target] = self._seen[source]
        for state in self._tensors:
            for tensor in state.values():
                source_B, target_B = torch.tensor(pairs, device=tensor.device).T
                tensor[target_B] = tensor[source_B]

    def saw(self, row: int, tokens: int) -> None:
        """Note how many tokens of its sequence a row's state has seen."""
        self._seen[row] = tokens

    def check(self, row: int, past: int) -> None:
        """Refuse to read a state that has seen another number of tokens."""
        if past not in {0, self._seen[row]}:
            raise RuntimeError(
                f"the state of row {row} has seen {self._seen[row]} tokens, not {past}"
            )


class Mixer:
    """A module that carries state, and its own code."""

    def __init__(self, name: str, module: nn.Module, hidden: int, dtype: torch.dtype) -> None:
        """Take note of a module of a model of this hidden width and precision."""
        self.module = module
        self._name, self._hidden, self._dtype = name, hidden, dtype
        self.forward: Callable[..., Any] = getattr(module.forward, "own", module.forward)
        parameters = inspect.signature(self.forward).parameters
        self._cache_name = cache_keyword(self.forward)
        self._unused = {
            name: None
            for name, parameter in list(parameters.items())[1:]
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        }
        self.gives_tuple = False
        """Whether its output is the first of several."""

    @functools.cached_property
    def blank(self) -> State:
        """The state of one sequence, for its shapes and precisions: what two tokens leave behind.

        Raises:
            UsageError: the module does not answer as a mixer does.
        """
        weight = next(self.module.parameters())
        x_BTD = torch.zeros(1, 2, self._hidden, dtype=self._dtype, device=weight.device)
        at_BT = torch.arange(2, device=weight.device)[None]
        try:
            with torch.no_grad():
                out_BTD, state = self.run(x_BTD, at_BT, None, _Carried(None))
            if out_BTD.shape != x_BTD.shape or not state:
                raise ValueError(f"an output of the shape {tuple(out_BTD.shape)}")
        except Exception as error:
            raise UsageError(
                f"The layer {self._name!r} carries state from token to token in a way that is not "
                f"supported ({type(error).__name__}: {error}); choose another model."
            ) from error
        return state

    def run(
        self, x_BTD: Tensor, position_BT: Tensor, state: State | None, carried: _Carried
    ) -> tuple[Tensor, State]:
        """The mixer's output ``[B, T, D]`` and the state after the last token.

        ``state`` is ``None`` where all sequences begin; the mixer may change it in place.
        """
        if _is_griffin(self.module):
            self.gives_tuple = True
            return _griffin(self.module, x_BTD, position_BT, state)
        out = self.forward(x_BTD, **{**self._unused, self._cache_name: carried})
        self.gives_tuple = isinstance(out, tuple)
        return out[0] if self.gives_tuple else out, carried.state


class _Carried:
    """Answers what a mixer asks a cache of ``transformers`` for with one layer's state."""

    record_past = False

    def __init__(self, state: State | None) -> None:
        state = state or {}
        self._begins = not state
        self.conv_states = {n: t for (kind, n), t in state.items() if kind == "conv"}
        self.recurrent_states = {n: t for (kind, n), t in state.items() if kind == "recurrent"}
        self._scans = 0

    @property
    def state(self) -> State:
        """The state after the last token."""
        conv = {("conv", n): t for n, t in self.conv_states.items()}
        return conv | {("recurrent", n): t for n, t in self.recurrent_states.items()}

    @property
    def layers(self) -> _Carried:
        return self

    def __getitem__(self, layer: int) -> _Carried:
        return self

    def has_previous_state(self, layer_idx: int = 0, state_idx: int | None = None) -> bool:
        return not self._begins

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        return self.record_past

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """What earlier versions of ``transformers`` read from the layer, if a token came before."""
        return None if self._begins else self.conv_states[state_idx]

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return None if self._begins else self.recurrent_states[state_idx]

    def update_conv_state(
        self, x_BDT: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> Tensor:
        """The last inputs and these; as many of them are kept as the kernel is long."""
        if self._begins:
            whole, size = x_BDT, conv_kernel_size or x_BDT.shape[-1]
            whole = F.pad(whole, (max(0, size - whole.shape[-1]), 0))
        else:
            last = self.conv_states[state_idx]
            whole, size = torch.cat([last, x_BDT], -1), last.shape[-1]
        self.conv_states[state_idx] = whole[..., -size:]
        return whole

    def update_recurrent_state(self, state: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        self.recurrent_states[state_idx] = state
        return state

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        return self.recurrent_states.get(0)

    def set_linear_cache(self, layer_idx: int, state: Tensor) -> None:
        self.recurrent_states[0] = state

    def scanned_from(self) -> Tensor | None:
        """The state that the next selective scan begins with; some mixers scan head by head."""
        state = self.recurrent_states.get(0)
        if self._begins or state is None or state.dim() == 3:
            return None if self._begins else state
        self._scans += 1
        return state[:, self._scans - 1]


def _is_griffin(module: nn.Module) -> bool:
    return hasattr(module, "rg_lru")


def _griffin(
    block: Any, x_BTD: Tensor, position_BT: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """A recurrent block of RecurrentGemma, whose own code keeps its state in the module.

    It forgets the convolution's last inputs where several tokens follow others.
    """
    gate = block.act_fn(block.linear_y(x_BTD))
    x_BWT = block.linear_x(x_BTD).transpose(1, 2)
    conv, lru = block.conv_1d, block.rg_lru
    last = x_BWT.new_zeros(*x_BWT.shape[:2], block.conv1d_width - 1)
    whole = torch.cat([state["conv", 0] if state else last, x_BWT], -1)
    x_BWT = F.conv1d(whole, conv.weight, conv.bias, groups=conv.groups)
    lru.recurrent_states = (
        state["recurrent", 0] if state else torch.zeros_like(x_BWT[..., 0], dtype=torch.float32)
    )
    try:
        out_BTD = block.linear_out(lru(x_BWT.transpose(1, 2), position_BT) * gate)
        after = lru.recurrent_states
    finally:
        lru.recurrent_states = None
    return out_BTD, {("conv", 0): whole[..., 1 - block.conv1d_width :], ("recurrent", 0): after}


class Mixers:
    """All modules of a model that carry state."""

    def __init__(self, model: Any) -> None:
        """Find them."""
        hidden = model.config.get_text_config().hidden_size
        self._model = model
        self._mixers = [
            Mixer(name, module, hidden, model.dtype)
            for name, module in model.named_modules()
            if _carries(module)
        ]

    def __len__(self) -> int:
        return len(self._mixers)

    def __iter__(self) -> Iterator[Mixer]:
        return iter(self._mixers)

    @property
    def row_bytes(self) -> int:
        """What one row's state takes.

        Raises:
            UsageError: a mixer does not answer as those that are known.
        """
        return sum(t.numel() * t.element_size() for mixer in self for t in mixer.blank.values())

    @property
    def token_bytes(self) -> int:
        """What the scan of one mixer holds of a token, in float32, the largest one's.

        Inputs in several forms, and products with the other tokens of a chunk; a selective scan
        holds the states of a few tokens.
        """
        return 4 * max((_token_floats(mixer.blank) for mixer in self), default=0)

    def replacements(self, running: Current) -> list[tuple[Any, str, Any]]:
        """What takes the place of the mixers' ``forward``."""
        if not self._mixers:
            return []
        current = CarriedState(running)
        found: list[tuple[Any, str, Any]] = []
        for number, mixer in enumerate(self):
            methods = rebound(mixer.module, _scans(mixer.module, current))
            mixer.forward = methods.pop("forward", mixer.forward)
            found += [(mixer.module, name, method) for name, method in methods.items()]
            found.append((mixer.module, "forward", _Packed(mixer, number, current)))
        return found


def _token_floats(state: State) -> int:
    floats = 0
    for (kind, _), like in state.items():
        if kind == "conv":
            floats += 16 * like.shape[1]
        elif like.dim() == 4:
            heads, inputs, outputs = like.shape[1:]
            floats += heads * (6 * (inputs + outputs) + 4 * CHUNK)
        else:
            floats += 2 * like[0].numel()
    return floats


def _carries(module: nn.Module) -> bool:
    """Whether a module asks a cache for its state, or keeps one itself."""
    forward: Any = inspect.unwrap(type(module).forward)
    return _is_griffin(module) or bool(ASKS & set(forward.__code__.co_names))


@dataclass
class CarriedState:
    """What a model runs at the moment, and what one of its mixers carries."""

    running: Current
    carried: _Carried | None = None


class _Packed:
    """A mixer's ``forward`` over the packed row of a pass, ``[1, N, D]``."""

    def __init__(self, mixer: Mixer, number: int, current: CarriedState) -> None:
        self._mixer, self._number, self._current = mixer, number, current

    @property
    def own(self) -> Callable[..., Any]:
        """The model's."""
        return self._mixer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        batch = kwargs.get("fttt_batch", self._current.running.batch)
        if batch is None:  # no pass of ours
            return self.own(*args, **kwargs)
        x_ND = (args[0] if args else next(iter(kwargs.values())))[0]
        run = {"decode": self._decode, "prefill": self._prefill, "train": self._train}[batch.mode]
        out_1ND = run(x_ND, batch)[None]
        return (out_1ND, None) if self._mixer.gives_tuple else out_1ND

    def _decode(self, x_ND: Tensor, batch: Batch) -> Tensor:
        """One token a row; states are read before any is written, since beams read each other's."""
        source_B = batch.row_B if batch.source_B is None else batch.source_B
        state = self._states(batch).read(self._number, source_B)
        everyone = tuple(range(len(batch.lengths)))
        out_BTD, state = self._run(x_ND[:, None], batch.position_N[:, None], state, batch, everyone)
        self._states(batch).write(self._number, batch.row_B, state)
        return out_BTD[:, 0]

    def _prefill(self, x_ND: Tensor, batch: Batch) -> Tensor:
        """Block by block; what a block leaves behind is what the segment's next begins with."""
        states = self._states(batch)
        where: list[Tensor] = []
        out: list[Tensor] = []
        for block in batch.blocks:
            before = None
            if not all(block.begins):
                before = states.read(self._number, block.row_B, block.begins)
            x_BTD, at_BT = x_ND[block.where_BT], batch.position_N[block.where_BT]
            out_BTD, after = self._run(x_BTD, at_BT, before, batch, block.segments)
            states.write(self._number, block.row_B, after)
            where.append(block.where_BT.flatten())
            out.append(out_BTD.flatten(0, 1))
        out_ND = torch.cat(out)
        return torch.empty_like(out_ND).index_copy_(0, torch.cat(where), out_ND)

    def _train(self, x_ND: Tensor, batch: Batch) -> Tensor:
        """All segments at once, padded behind their ends; what was kept takes no gradient."""
        x_BTD = batch.pad(x_ND)
        if x_BTD.shape[1] == 1:  # a mixer's code for single tokens changes what it is given
            x_BTD = F.pad(x_BTD, (0, 0, 0, 1))
        at_BT = batch.past_B[:, None] + torch.arange(x_BTD.shape[1], device=x_BTD.device)
        state = None
        if max(batch.pasts) > 0:
            begins = [past == 0 for past in batch.pasts]
            state = self._states(batch).read(self._number, batch.row_B, begins)
        everyone = tuple(range(len(batch.lengths)))

        def run(x_BTD: Tensor) -> Tensor:
            return self._run(x_BTD, at_BT, state, batch, everyone)[0]

        if batch.recompute and torch.is_grad_enabled():
            out_BTD = checkpoint(
                run, x_BTD,
                use_reentrant=False, preserve_rng_state=False, determinism_check="none",
            )  # fmt: skip
        else:
            out_BTD = run(x_BTD)
        return batch.unpad(out_BTD)

    def _run(
        self,
        x_BTD: Tensor,
        position_BT: Tensor,
        state: State | None,
        batch: Batch,
        segments: tuple[int, ...],
    ) -> tuple[Tensor, State]:
        carried = _Carried(state)
        batch.inside, self._current.carried = segments, carried
        try:
            return self._mixer.run(x_BTD, position_BT, state, carried)
        finally:
            batch.inside = self._current.carried = None

    @staticmethod
    def _states(batch: Batch) -> States:
        assert batch.cache.states is not None
        return batch.cache.states


def _scans(module: nn.Module, current: CarriedState) -> dict[str, Any]:
    """Scans for a mixer whose own code lacks something, by the names that it calls them."""
    found: dict[str, Any] = {}
    home: Any = sys.modules[type(module).__module__]
    kernels = importlib.util.find_spec("mamba_ssm") is not None
    mamba = getattr(home, "mamba_selective_scan", None)
    if mamba is not None:

        @functools.wraps(mamba)
        def scan(
            x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
            *, return_last_state: bool = False, **kwargs: Any,
        ) -> Any:  # fmt: skip
            state = current.carried.scanned_from() if current.carried else None
            if state is None and kernels:
                return mamba(x, dt, a, b, c, return_last_state=return_last_state, **kwargs)
            both = mamba_scan(x, dt, a, b, c, state, **kwargs)
            return both if return_last_state else both[0]

        found["mamba_selective_scan"] = scan
    if hasattr(home, "mamba2_chunk_scan") and not kernels:
        found["mamba2_chunk_scan"] = mamba2_scan
    return found


CHUNK = 64
"""L: the products of a chunk's tokens among themselves are held at once."""
FEW = 8
"""Tokens whose states are held at once, where no gradient is wanted."""


def mamba_scan(
    x_BIT: Tensor,
    dt_BIT: Tensor,
    a_IS: Tensor,
    b_BST: Tensor,
    c_BST: Tensor,
    state_BIS: Tensor | None,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t``, ``y_t = (c_t h_t + D x_t) silu(z_t)``.

    The selective scan of Gu and Dao (2023, arXiv 2312.00752), from a state on. Arguments are those
    of ``mamba_selective_scan`` in ``transformers``, and the state.

    Returns:
        ``y`` ``[B, I, T]`` and the last state, ``[B, I, S]`` in float32.
    """
    if delta_bias is not None:
        dt_BIT = dt_BIT + delta_bias.to(dt_BIT.dtype)[..., None]
    if delta_softplus:
        dt_BIT = F.softplus(dt_BIT)
    if state_BIS is None:
        state = x_BIT.new_zeros(*x_BIT.shape[:2], a_IS.shape[1], dtype=torch.float32)
    else:
        state = state_BIS.float()
    y: list[Tensor] = []
    for x_BIt, dt_BIt, b_BSt, c_BSt in zip(
        *(t.split(FEW, dim=2) for t in (x_BIT, dt_BIT, b_BST, c_BST)), strict=True
    ):
        dt_BtI1 = dt_BIt.transpose(1, 2).float()[..., None]
        decay_BtIS = (dt_BtI1 * a_IS.float()).exp()
        written_BtIS = dt_BtI1 * b_BSt.transpose(1, 2).float()[:, :, None]
        written_BtIS = written_BtIS * x_BIt.transpose(1, 2).float()[..., None]
        states: list[Tensor] = []
        for decay, written in zip(decay_BtIS.unbind(1), written_BtIS.unbind(1), strict=True):
            state = decay * state + written
            states.append(state)
        c_BtS1 = c_BSt.transpose(1, 2)[..., None]
        y.append((torch.stack(states, 1).to(x_BIT.dtype) @ c_BtS1)[..., 0].transpose(1, 2))
    y_BIT = torch.cat(y, -1)
    if D is not None:
        y_BIT = y_BIT + x_BIT * D[:, None]
    if z is not None:
        y_BIT = y_BIT * F.silu(z)
    return y_BIT, state


def mamba2_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGS: Tensor,
    c_BTGS: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_tᵀ``, ``y_t = h_t c_t + D x_t``, chunk by chunk.

    The state space duality of Dao and Gu (2024, arXiv 2405.21060). Arguments are those of
    ``mamba2_chunk_scan`` in ``transformers``.

    Returns:
        ``y`` ``[B, T, H, P]`` and the last state ``[B, H, P, S]``, in float32.
    """
    tokens, heads, features = x_BTHP.shape[1:]
    groups = b_BTGS.shape[2]
    if dt_bias is not None:
        dt_BTH = dt_BTH + dt_bias.to(dt_BTH.dtype)
    if dt_softplus:
        dt_BTH = F.softplus(dt_BTH)
    dt_BTH = dt_BTH.clamp(*dt_limit).float()
    size = min(CHUNK, tokens)

    def chunked(t: Tensor) -> Tensor:
        """``[B, T, ...] -> [B, C, L, ...]`` in float32; padding neither decays nor writes."""
        pad = (0, 0) * (t.dim() - 2) + (0, -tokens % size)
        cut: Tensor = F.pad(t.float(), pad).unflatten(1, (-1, size))
        return cut

    u_BCLHP = chunked(x_BTHP.float() * dt_BTH[..., None])
    sum_BCHL = chunked(dt_BTH * a_H.float()).cumsum(2).transpose(2, 3)
    b_BCGLS, c_BCGLS = chunked(b_BTGS).transpose(2, 3), chunked(c_BTGS).transpose(2, 3)
    u_BCHLP = u_BCLHP.transpose(2, 3)

    # among the tokens of a chunk
    later = torch.ones(size, size, dtype=torch.bool, device=x_BTHP.device).triu(1)
    between = sum_BCHL[..., :, None] - sum_BCHL[..., None, :]
    decay_BCHLL = between.masked_fill(later, float("-inf")).exp()
    pairs_BCGLL = c_BCGLS @ b_BCGLS.transpose(-1, -2)
    spread = heads // groups
    y = (pairs_BCGLL.repeat_interleave(spread, 2) * decay_BCHLL) @ u_BCHLP

    # what a chunk writes into the state, and what it reads of what was there before
    left_BCHL1 = (sum_BCHL[..., -1:] - sum_BCHL).exp()[..., None]
    b_BCHLS = b_BCGLS.repeat_interleave(spread, 2)
    fresh_BCHPS = (u_BCHLP * left_BCHL1).transpose(-1, -2) @ b_BCHLS
    whole_BCH11 = sum_BCHL[..., -1].exp()[..., None, None]
    if initial_states is None:
        state = torch.zeros_like(fresh_BCHPS[:, 0])
    else:
        state = initial_states.float()
    before: list[Tensor] = []
    for whole, fresh in zip(whole_BCH11.unbind(1), fresh_BCHPS.unbind(1), strict=True):
        before.append(state)
        state = state * whole + fresh
    c_BCHLS = c_BCGLS.repeat_interleave(spread, 2)
    read = c_BCHLS @ torch.stack(before, 1).transpose(-1, -2)
    y = y + read * sum_BCHL.exp()[..., None]

    out_BTHP = y.transpose(2, 3).reshape(x_BTHP.shape[0], -1, heads, features)[:, :tokens]
    out_BTHP = out_BTHP.contiguous()  # the mixers view it
    if D is not None:
        out_BTHP = out_BTHP + D[..., None] * x_BTHP.float()
    return out_BTHP, state
