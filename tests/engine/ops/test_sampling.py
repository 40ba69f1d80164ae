"""The sampler against its definition, and the random numbers that it draws with."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.engine.ops import keep_mask, sample
from fttt.engine.ops.sampling import (
    Shape,
    derive_key,
    shaped,
    token_logprobs,
    uniform,
)


def draw(*args: torch.Tensor) -> torch.Tensor:
    """The tokens of a sample; their log-probabilities are always those of temperature 1."""
    tokens, logprobs = sample(*args)
    torch.testing.assert_close(logprobs, token_logprobs(args[0], tokens))
    return tokens


def ones(n: int) -> torch.Tensor:
    return torch.ones(n)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(2, 400),
    temperature=st.floats(0.05, 3.0),
    top_p=st.floats(0.01, 1.0),
    ties=st.booleans(),
)
def test_every_draw_is_from_the_smallest_set_that_reaches_top_p(
    seed: int, vocab: int, temperature: float, top_p: float, ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator) * 3
    if ties:
        logits = logits.round()
    n = 200
    noise = (torch.arange(n) + 0.5) / n
    drawn = draw(logits.expand(n, vocab), ones(n) * temperature, ones(n) * top_p, noise)
    probs = (logits[0].double() / temperature).softmax(-1)
    order = probs.sort(descending=True)
    before = order.values.cumsum(-1) - order.values
    size = int((before < top_p - 1e-6).sum())
    last = order.values[size - 1]
    nucleus = {i for i in range(vocab) if probs[i] >= last * (1 - 1e-5)}
    assert set(drawn.tolist()) <= nucleus
    assert drawn.tolist() == sorted(drawn.tolist())  # the inverse of a cumulative distribution
    likely = {i for i in nucleus if probs[i] / probs[list(nucleus)].sum() > 1.5 / n}
    assert likely <= set(drawn.tolist())


def test_no_top_p_leaves_every_token_its_share() -> None:
    probs = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    n = 10_000
    noise = (torch.arange(n) + 0.5) / n
    drawn = draw(probs.log().expand(n, 5), ones(n), ones(n), noise)
    share = torch.bincount(drawn, minlength=5) / n
    torch.testing.assert_close(share, probs, atol=2 / n, rtol=0)


def test_cold_rows_take_the_most_probable_token_beside_warm_ones() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]]).expand(2, 3)
    drawn = draw(logits, torch.tensor([0.0, 1.0]), ones(2), torch.tensor([0.99, 0.99]))
    assert drawn.tolist() == [1, 2]


def test_a_set_that_reaches_top_p_exactly_is_large_enough() -> None:
    logits = torch.tensor([[0.0, -math.log(2), -math.log(2)]])
    assert logits.softmax(-1).tolist() == [[0.5, 0.25, 0.25]]
    assert draw(logits, ones(1), ones(1) * 0.5, torch.tensor([0.99])).tolist() == [0]


@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-24])
def test_the_ends_of_the_unit_interval_draw_tokens_of_the_nucleus(noise: float) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1)) * 4
    drawn = draw(logits, ones(50), ones(50) * 0.5, torch.full((50,), noise))
    probs = logits.softmax(-1)
    chosen = probs.gather(1, drawn[:, None])[:, 0]
    heavier = torch.where(probs > chosen[:, None], probs, 0.0).sum(-1)
    assert bool((heavier < 0.5).all())


def test_log_probabilities() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64)
    token = torch.tensor([0, 3, 8, 2])
    expected = logits.log_softmax(-1)[torch.arange(4), token]
    torch.testing.assert_close(token_logprobs(logits, token), expected.float())


def test_noise_is_uniform_and_depends_on_key_and_counter() -> None:
    keys = torch.tensor([derive_key(42, f"question {n}", 0) for n in range(200)])
    noise = uniform(keys[:, None], torch.arange(500))
    assert 0 <= float(noise.min()) < 1e-4
    assert 1 - 1e-4 < float(noise.max()) < 1
    counts = torch.histc(noise, 50, 0, 1)
    assert float((counts - 2000).abs().max()) < 250  # five standard deviations
    flat = noise - 0.5
    neighbours = (flat[:, 1:] * flat[:, :-1]).mean() * 12
    across = (flat[1:] * flat[:-1]).mean() * 12
    assert abs(float(neighbours)) < 0.02
    assert abs(float(across)) < 0.02


def test_keys_tell_their_parts_apart() -> None:
    keys = {derive_key(*parts) for parts in [(1, "2"), (12,), ("1", 2, ""), (1, "", 2), (-1, 2)]}
    assert len(keys) == 5
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_dropout_keeps_the_mean() -> None:
    mask = keep_mask(torch.tensor([3, 4]), torch.arange(40).view(2, 20), 500, 0.25)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(mask[0], mask[1])


def shape(logits: torch.Tensor, top_k: int, min_p: float, penalty: float, seen: list[int]) -> Shape:
    rows = logits.shape[0]
    table = torch.zeros_like(logits, dtype=torch.bool)
    table[:, seen] = True
    return Shape(torch.full((rows,), top_k), ones(rows) * min_p, ones(rows) * penalty, table)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 2.0),
    top_k=st.sampled_from([0, 1, 3, 20]),
    top_p=st.sampled_from([1.0, 0.95, 0.6]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_draws_are_those_of_the_processors_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    vocab, n = 40, 4000
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator) * 3
    seen = torch.randint(vocab, (12,), generator=generator).tolist()
    processors = [transformers.RepetitionPenaltyLogitsProcessor(penalty)]
    processors.append(transformers.TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(transformers.TopKLogitsWarper(top_k))
    processors.append(transformers.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(transformers.MinPLogitsWarper(min_p))
    scores = logits
    for processor in processors:
        scores = processor(torch.tensor([seen]), scores)
    expected = scores.softmax(-1)[0]
    rows = logits.expand(n, vocab)
    asked = shape(rows, top_k, min_p, penalty, seen)
    made, mass = shaped(rows, ones(n) * temperature, ones(n) * top_p, asked)
    noise = (torch.arange(n) + 0.5) / n
    drawn = draw(made, ones(n) * temperature, mass, noise)
    share = torch.bincount(drawn, minlength=vocab) / n
    torch.testing.assert_close(share, expected, atol=3 / n, rtol=0)


def test_a_row_that_asks_for_nothing_draws_as_it_did_beside_rows_that_do() -> None:
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(3)).bfloat16()
    asked = shape(logits, 0, 0.0, 1.0, [1, 2, 3])
    asked.top_k_R[::2], asked.min_p_R[::2], asked.penalty_R[::2] = 2, 0.5, 1.5
    heat, mass, noise = ones(64) * 0.9, ones(64) * 0.8, torch.rand(64)
    made, masses = shaped(logits, heat, mass, asked)
    drawn, plain = draw(made, heat, masses, noise), draw(logits.float(), heat, mass, noise)
    assert torch.equal(drawn[1::2], plain[1::2])
    assert not torch.equal(drawn[::2], plain[::2])


def test_a_greedy_row_takes_what_the_penalty_leaves() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    made, mass = shaped(logits, torch.zeros(1), ones(1), shape(logits, 0, 0.0, 1.5, [0]))
    assert draw(made, torch.zeros(1), mass, ones(1) * 0.5).tolist() == [1]
