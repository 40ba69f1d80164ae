"""How a step's samples are cut, and that the cut changes nothing."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fttt.finetune.batches import PickedLogits, collate, cut, groups
from fttt.testing import tiny_model
from fttt.training.gold import GoldExample


def example(prompt: int, solution: int) -> GoldExample:
    ids = [5 + (7 * n + prompt) % 200 for n in range(prompt + solution)]
    return GoldExample("q", tuple(ids[:prompt]), tuple(ids[prompt:]))


def cost(lengths: list[int], sizes: list[int], fixed: int) -> int:
    starts = [0, *itertools.accumulate(sizes)][:-1]
    return sum(size * lengths[at] + fixed for size, at in zip(sizes, starts, strict=True))


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=7),
    st.integers(10, 200),
    st.integers(0, 60),
)
def test_the_cut_is_the_cheapest_that_fits(lengths: list[int], most: int, fixed: int) -> None:
    lengths = sorted(lengths, reverse=True)
    sizes = cut(lengths, most, fixed)
    assert sum(sizes) == len(lengths)
    starts = [0, *itertools.accumulate(sizes)][:-1]
    for size, at in zip(sizes, starts, strict=True):
        assert size == 1 or size * lengths[at] <= most
    every = []
    for marks in itertools.product([False, True], repeat=len(lengths) - 1):
        edges = [0, *(i + 1 for i, mark in enumerate(marks) if mark), len(lengths)]
        tried = [b - a for a, b in itertools.pairwise(edges)]
        if all(s == 1 or s * lengths[a] <= most for s, a in zip(tried, edges, strict=False)):
            every.append(cost(lengths, tried, fixed))
    assert cost(lengths, sizes, fixed) == min(every)


def test_only_tokens_of_solutions_carry_a_loss_and_each_sample_counts_the_same() -> None:
    samples = [example(3, 2), example(6, 5), example(4, 1)]
    (group,) = groups(collate(samples), 1000, 100)
    longest_first = sorted(samples, key=lambda e: -len(e.prompt_ids) - len(e.solution_ids))
    assert group.label_M.tolist() == [i for e in longest_first for i in e.solution_ids]
    assert torch.isclose(group.weight_M.sum(), torch.tensor(3.0))
    before = group.ids_BT.flatten()[group.at_M]
    wanted = [i for e in longest_first for i in (e.prompt_ids[-1:] + e.solution_ids[:-1])]
    assert before.tolist() == wanted


def test_a_processs_groups_can_be_made_as_many_as_anothers() -> None:
    batch = collate([example(3, n) for n in range(2, 8)])
    assert [len(groups(batch, 1000, 100, at_least=k)) for k in (1, 2, 5, 6, 9)] == [1, 2, 5, 6, 6]


def test_the_loss_is_that_of_each_sample_alone() -> None:
    samples = [example(3, 2), example(9, 5), example(4, 1), example(2, 17)]
    for family in ("llama", "mistral", "gemma3"):
        loaded = tiny_model(family)
        picked = PickedLogits(loaded.model)
        alone = 0.0
        for sample in samples:
            ids = torch.tensor([sample.prompt_ids + sample.solution_ids])
            labels = ids.clone()
            labels[:, : len(sample.prompt_ids)] = -100
            alone += loaded.model(ids, labels=labels).loss.item()
        for most in (1, 40, 1000):
            parts = groups(collate(samples), most, 0)
            total = sum(g.loss(picked(loaded.model, g)).item() for g in parts)
            assert abs(total - alone) < 1e-4
