"""The low-rank product against its definition, and its gradient against autograd's."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fttt.engine.adapters.product import InputScale, add_low_rank
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import Heads, KVCache

SLOTS, RANK, INPUTS, OUTPUTS = 4, 2, 5, 3


@given(
    st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 9)), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
@example([(0, 1300), (1, 1), (-1, 5), (2, 1), (3, 1)], 0.3, False)  # padding would be most of it
@example([(0, 3), (1, 3), (2, 3)], 0.3, True)
def test_product_and_gradient_are_those_of_the_definition(
    segments: list[tuple[int, int]], rate: float, half: bool
) -> None:
    """Of tokens grouped by adapter and put back, some of which have none."""
    heads = {0: Heads(kv_heads=1, key_dim=8, value_dim=8, owner=0)}
    cache = KVCache(
        rows=1, capacity=8, heads=heads, dtype=torch.float32, device=torch.device("cpu")
    )
    batch = Batch.pack("train", [Segment((1,) * n, -1, 0, slot) for slot, n in segments], cache)
    if not batch.adapted:
        return
    generator = torch.Generator().manual_seed(len(segments))
    tokens = batch.ends[-1]
    dtype = torch.bfloat16 if half else torch.float32
    x, out, up = (
        torch.randn(1, tokens, n, generator=generator).to(dtype) for n in (INPUTS, OUTPUTS, OUTPUTS)
    )
    a = torch.randn(SLOTS, RANK, INPUTS, generator=generator)
    b = torch.randn(SLOTS, OUTPUTS, RANK, generator=generator)
    keys = torch.arange(tokens) % 3 if rate else None
    scale = InputScale(torch.tensor([1.5]), rate, keys, torch.arange(tokens), 4, 3)
    factors = scale.factors(x[0])
    assert (factors is None) == (rate == 0)
    slots = [slot for slot, n in segments for _ in range(n)]
    leaves = [leaf.clone().requires_grad_() for leaf in (out, x, a, b)]

    def defined() -> torch.Tensor:
        own_out, own_x, own_a, own_b = leaves
        delta = torch.zeros(tokens, OUTPUTS)
        for slot in {slot for slot in slots if slot >= 0}:
            mine = torch.tensor([own == slot for own in slots])[:, None]
            dropped = own_x[0].float() * (1.5 if factors is None else factors)
            delta = delta + torch.where(mine, (dropped @ own_a[slot].T) @ own_b[slot].T, 0.0)
        return (own_out.float() + delta[None]).to(dtype)

    def fast() -> torch.Tensor:
        index = torch.tensor(batch.groups.slots)
        own_out, own_x, own_a, own_b = leaves
        return add_low_rank(own_out, own_x, own_a[index], own_b[index], batch.groups, scale)

    close = {"rtol": 2e-2, "atol": 5e-2} if half else {"rtol": 1e-4, "atol": 1e-5}
    expected, found = defined(), fast()
    torch.testing.assert_close(found, expected, **close)
    for mine, own in zip(
        torch.autograd.grad(found, leaves, up), torch.autograd.grad(expected, leaves, up),
        strict=True,
    ):  # fmt: skip
        assert mine.dtype == own.dtype
        torch.testing.assert_close(mine, own, **close)
    with torch.no_grad():
        torch.testing.assert_close(fast(), found)
