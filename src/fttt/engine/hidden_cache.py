"""The hidden states below the first edited layer, kept while a sequence is written, for its step.

They are the base model's, whatever adapter the sequence was written under, so a train step that
changes weights above has the same ones for the same tokens. They are kept beside keys and values,
and the step computes them only for the tokens that follow and begins above.

Axes: N packed tokens, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fttt.engine.batch import Batch, Segment, decoder_of
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.request import Kept
from fttt.engine.sequences import run_layers

__all__ = ["HiddenCache", "Upper", "upper_part"]


class HiddenCache:
    """Writes hidden states into the pages of a cache, and lets train passes begin with them."""

    def __init__(self, upper: Upper, cache: KVCache) -> None:
        """Write from now on, until the hook is removed."""
        self._upper, self._cache = upper, cache
        self.hook = upper.reached(self._write)

    @contextmanager
    def given(
        self, sequences: Sequence[tuple[int, ...]], contexts: Sequence[Kept | tuple[int, ...]]
    ) -> Iterator[None]:
        """Let passes over packed sequences begin above; the layers below run here, where needed.

        Args:
            sequences: token ids.
            contexts: what each begins as: a kept sequence, whose row is read while it has one and
                stays its owner's, or token ids.
        """
        held = [
            _held_tokens(context, ids) for context, ids in zip(contexts, sequences, strict=True)
        ]
        found: dict[int, Tensor] = {}
        # Those that begin anew run apart, since their attention needs no mask.
        for begins in (True, False):
            part = [n for n, (_, past) in enumerate(held) if (past == 0) is begins]
            if part:
                found.update(self._run(part, [sequences[n] for n in part], [held[n] for n in part]))
        with self._upper.given(torch.cat([found[n] for n in range(len(held))])):
            yield

    def _run(
        self,
        numbers: Sequence[int],
        sequences: Sequence[tuple[int, ...]],
        held: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[int, Tensor]]:
        """All hidden states of each sequence: those in its row, and the others."""
        cache = self._cache
        assert cache.hidden is not None
        segments = [
            Segment(ids[past:], row, past) for ids, (row, past) in zip(sequences, held, strict=True)
        ]
        hidden, first = cache.hidden, cache.prefix
        batch = Batch.pack("train", segments, cache)
        fresh = self._upper.hidden(batch).split(batch.lengths)
        for n, (_, past), page_P, fresh_ND in zip(numbers, held, batch.page_BP, fresh, strict=True):
            pages = page_P[: -(-(first + past) // cache.page)]
            old_ND = hidden[pages, : first + past].flatten(0, 1)[first : first + past]
            yield n, torch.cat([old_ND, fresh_ND]) if past else fresh_ND

    def _write(self, batch: Batch, hidden_ND: Tensor) -> None:
        """Store hidden states as attention stores keys; also within a captured decode step."""
        hidden = self._cache.hidden
        if batch.mode != "train" and hidden is not None:
            hidden[batch.place_N] = hidden_ND.to(hidden.dtype)


def _held_tokens(context: Kept | tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, int]:
    """The row that holds a sequence's first tokens, if any, and how many; one at least is left."""
    if not isinstance(context, KeptRow) or context.row is None or not context.serves(len(ids)):
        return -1, 0
    return context.row, context.shared(ids)


class _ReachedError(Exception):
    """Thrown at the layer that a pass was to reach."""


def upper_part(model: Any, edited: Sequence[str]) -> Upper | None:
    """The model from its first edited decoder layer on; ``None`` where nothing lies below it.

    Args:
        model: a ``transformers`` causal language model.
        edited: full names of linear layers, as ``model.layers.31.self_attn.q_proj``.
    """
    places = [re.fullmatch(r"(.*\.layers)\.(\d+)\..*", name) for name in edited]
    if not all(places) or len({place[1] for place in places if place}) != 1:
        return None
    first = min(int(place[2]) for place in places if place)
    stack = model.get_submodule(next(place[1] for place in places if place))
    layers: list[nn.Module] = list(stack)
    if first == 0 or getattr(decoder_of(model), "layers", None) is not stack:
        return None
    return Upper(model, layers, first)


class Upper:
    """Runs the layers below a place alone, or those from there on alone."""

    def __init__(self, model: Any, layers: Sequence[nn.Module], first: int) -> None:
        """``first`` is the number of the lowest layer that belongs to the upper part."""
        self._model = model
        self._below, self._first = layers[:first], layers[first]

    def reached(self, note: Callable[[Batch, Tensor], None]) -> RemovableHandle:
        """Show what the upper part is given in each pass, ``[N, D]``, until the hook is removed."""

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(kwargs["fttt_batch"], (args[0] if args else kwargs["hidden_states"])[0])

        return self._first.register_forward_pre_hook(see, with_kwargs=True)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        """What the upper part is given for packed sequences, ``[N, D]``."""
        seen: list[Tensor] = []

        def stop(_: Batch, hidden_ND: Tensor) -> None:
            seen.append(hidden_ND)
            raise _ReachedError

        handle = self.reached(stop)
        try:
            run_layers(self._model, batch)
        except _ReachedError:
            return seen[0]
        finally:
            handle.remove()
        raise RuntimeError("the pass ended without reaching the edited layers")

    @contextmanager
    def given(self, hidden_ND: Tensor) -> Iterator[None]:
        """Let passes begin with these hidden states, and skip the layers below."""

        def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (hidden_ND[None], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden_ND[None]}

        def nothing(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden_states

        handle = self._first.register_forward_pre_hook(put, with_kwargs=True)
        try:
            with ExitStack() as stack:
                for layer in self._below:
                    stack.enter_context(patch.object(layer, "forward", nothing))
                yield
        finally:
            handle.remove()
