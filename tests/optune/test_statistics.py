"""Running statistics against numpy's over all tokens at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose

from fttt.optune.statistics import RunningStatistics


def tokens(count: int) -> torch.Tensor:
    """Gradients are tiny beside their mean; inputs have a large one."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1e-8, 1.0, 100.0, 0.0])
    mean = torch.tensor([3e-6, -1.0, 1e4, 0.1])
    return torch.randn(count, 4, generator=generator) * scale + mean


def check(found: RunningStatistics, seen: torch.Tensor) -> None:
    reference = seen.double().numpy()
    assert int(found.count) == len(reference)
    assert_allclose(found.mean_F.numpy(), reference.mean(0), rtol=1e-12)
    assert_allclose(found.std_F[:3].numpy(), reference.std(0, ddof=1)[:3], rtol=1e-9)
    assert found.std_F[3] == 1.0  # it never varied


def test_blocks_of_any_size_give_the_statistics_of_all() -> None:
    seen = tokens(5000)
    found = RunningStatistics(4)
    for block in seen.split([1, 7, 2500, 0, 2492]):
        found.update(block)
    check(found, seen)


def test_processes_join_into_the_statistics_of_all() -> None:
    seen = tokens(900)
    found, other, idle = (RunningStatistics(4) for _ in range(3))
    found.update(seen[:300])
    other.update(seen[300:])
    found.join_flat(other.flat())
    found.join_flat(idle.flat())
    check(found, seen)


def test_scores_have_mean_zero_and_deviation_one() -> None:
    seen = tokens(2000)
    found = RunningStatistics(4)
    assert torch.equal(found.z_score(seen), seen)  # nothing is known yet
    found.update(seen)
    scores = found.z_score(seen).numpy()
    assert_allclose(scores.mean(0), np.zeros(4), atol=1e-2)
    assert_allclose(scores.std(0)[1:3], [1, 1], rtol=1e-3)
