"""Ragged segments: where they lie packed and padded, and what their gradients are."""

import sys
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.engine.batch import Batch, Segment, by_length, passes, rebound
from fttt.engine.cache import Heads, KVCache
from fttt.testing import tiny_model

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def packed(lengths: list[int]) -> Batch:
    cache = KVCache(
        rows=8, capacity=8, heads={0: Heads(1, 1, 1, 0)},
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    return Batch.pack("train", [Segment([1] * n, row, 0) for row, n in enumerate(lengths)], cache)


@given(LENGTHS)
def test_padding_and_back_is_nothing(lengths: list[int]) -> None:
    batch = packed(lengths)
    x_ND = torch.randn(sum(lengths), 3)
    padded = batch.pad(x_ND)
    assert padded.shape == (len(lengths), max(lengths), 3)
    for n, (own, part) in enumerate(zip(padded, x_ND.split(lengths), strict=True)):
        assert torch.equal(own[: lengths[n]], part)
    assert torch.equal(batch.unpad(padded), x_ND)


@given(LENGTHS)
@settings(deadline=None)
def test_gradients_are_those_of_each_segment_alone(lengths: list[int]) -> None:
    batch = packed(lengths)
    x_ND = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    w_B3 = torch.randn(len(lengths), 3, 1, dtype=torch.float64, requires_grad=True)
    weight_N1 = torch.randn(sum(lengths), 1, dtype=torch.float64)
    together = (batch.unpad(batch.pad(x_ND) @ w_B3).tanh() * weight_N1).sum()
    parts = [part @ w for part, w in zip(x_ND.split(lengths), w_B3, strict=True)]
    alone = (torch.cat(parts).tanh() * weight_N1).sum()
    found = torch.autograd.grad(together, (x_ND, w_B3))
    wanted = torch.autograd.grad(alone, (x_ND, w_B3))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@given(st.lists(st.integers(1, 90), max_size=30), st.integers(1, 200))
def test_passes_hold_every_segment_once_and_no_more_than_fits(
    lengths: list[int], tokens: int
) -> None:
    parts = by_length(lengths, lambda padded, _: padded <= tokens)
    assert sorted(n for part in parts for n in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[n] for n in part) <= tokens


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "apply_rotary_pos_emb"), ("mamba", "mamba_selective_scan")]
)
def test_only_a_modules_own_methods_find_another_function(family: str, name: str) -> None:
    """Also where a method is decorated."""
    model = tiny_model(family).model
    home = sys.modules[type(model).__module__]
    own, called = getattr(home, name), []

    def noted(*args: Any, **kwargs: Any) -> Any:
        called.append(name)
        return own(*args, **kwargs)

    module = next(m for m in model.modules() if rebound(m, {name: noted}))
    ids = torch.tensor([range(60, 70)])
    expected = model(ids).logits
    with ExitStack() as stack:
        for method, replacement in rebound(module, {name: noted}).items():
            stack.enter_context(patch.object(module, method, replacement))
        assert torch.equal(model(ids).logits, expected)
        assert getattr(home, name) is own
    assert called == [name]
    model(ids)
    assert called == [name]


def test_rows_that_are_read_in_place_are_no_reason_for_another_pass() -> None:
    segments = [Segment((5,), row, 2**17) for row in range(5)]
    parts = [passes(segments, lambda *_: True, copied=copied) for copied in (True, False)]
    assert [sorted(map(len, found)) for found in parts] == [[1, 2, 2], [5]]
