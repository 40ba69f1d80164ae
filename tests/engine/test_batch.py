"""Ragged segments: where they lie packed and padded, and what their gradients are."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.engine.batch import Batch, Segment, by_length
from fttt.engine.cache import KVCache
from fttt.engine.heads import Heads

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
