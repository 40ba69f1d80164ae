"""A model from one of its decoder layers on, for passes that differ in nothing below it.

What lies below the first edited layer gives the same hidden states for the same tokens, whatever
is changed above. They are computed once, and later passes begin with them.

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

from fttt.engine.batch import Batch

__all__ = ["Upper", "upper_part"]


class _ReachedError(Exception):
    """Thrown at the layer that a pass was to reach."""


def upper_part(model: Any, edited: Sequence[str]) -> Upper | None:
    """From the first decoder layer with an edited linear layer on; ``None`` where there is no such.

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
    if first == 0 or getattr(model.base_model, "layers", None) is not stack:
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
            self._model.base_model(
                input_ids=batch.token_ids_N[None],
                position_ids=batch.position_N[None],
                use_cache=False,
                fttt_batch=batch,
            )
        except _ReachedError:
            return seen[0]
        finally:
            handle.remove()
        raise RuntimeError("the pass ended without reaching the edited layers")

    @contextmanager
    def given(self, hidden_ND: Tensor) -> Iterator[None]:
        """Let passes of the model begin with these hidden states; the layers below do nothing."""

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
