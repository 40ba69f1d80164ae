"""When requests have waited long enough for company."""

from __future__ import annotations

import random

import pytest

from fttt.engine.patience import LEAST, Patience


def test_a_pass_runs_once_waiting_has_cost_as_much() -> None:
    patience = Patience()
    assert not patience.ready(0, 8)
    assert patience.ready(1, 8)  # the first one tells what a pass costs
    patience.ran(100, 1.0)
    assert not patience.ready(2, 8)
    for _ in range(40):
        patience.waited(2, 0.1)
        if patience.ready(2, 8):
            break
    assert patience._lost == pytest.approx(8.0)
    assert patience.ready(1, 0)  # nothing runs: nothing to wait for


def test_what_each_token_costs_is_no_reason_to_wait() -> None:
    draw = random.Random(0)
    patience = Patience()
    for _ in range(30):
        tokens = draw.randrange(100, 30_000)
        patience.ran(tokens, 0.04 + tokens * 23e-6 + draw.gauss(0, 1e-3))
    least = LEAST * patience._seconds / patience._passes
    assert patience.cost == pytest.approx(max(0.04, least), abs=0.005)
    assert patience.cost < 0.1  # where a pass takes 0.35 in the mean


@pytest.mark.parametrize("more", [1, 2])
def test_passes_of_one_size_do_not_tell_what_a_token_costs(more: int) -> None:
    patience = Patience()
    for n in range(20):
        patience.ran(500 + n % more, 0.3)
    assert patience.cost == pytest.approx(0.3)


def test_a_first_pass_that_took_long_is_forgotten() -> None:
    patience = Patience()
    patience.ran(16, 5.0)  # compiles
    for n in range(50):
        patience.ran(1000 + 500 * (n % 3), 0.02 + (1000 + 500 * (n % 3)) * 1e-4)
    assert patience.cost == pytest.approx(0.02, abs=0.01)
