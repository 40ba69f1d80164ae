"""Runs as they stood after fewer trials, against runs that were given fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.report.arms import form_arms
from fttt.report.compare import describe
from fttt.report.shorter import shorten
from fttt.store import Run

MakeRun = Callable[..., Run]
LONG = {"a": "iic", "b": "iuii", "c": "c", "d": "uuic"}


def told(runs: Sequence[Run]) -> dict[str, Any]:
    facts = asdict(describe(form_arms(runs)[0]))
    return {name: fact for name, fact in facts.items() if name != "runs"}


@pytest.mark.parametrize("rule", ["count", "retry"])
def test_a_shorter_run_is_the_run_of_a_smaller_budget(make_run: MakeRun, rule: str) -> None:
    kept = {"count": ("ii", "iu", "c", "uu"), "retry": ("ii", "iui", "c", "uuic")}[rule]
    long = make_run("long", LONG, unanswered=rule)
    short = make_run("short", dict(zip(LONG, kept, strict=True)), trials=2, unanswered=rule)
    (cut,) = shorten([long], 2)
    assert [t.trial for t in cut.trials] == [t.trial for t in short.trials]
    assert told([cut]) == told([short])


def test_what_was_cut_off_is_whole_where_all_had_enough(make_run: MakeRun) -> None:
    cut_off = make_run("off", {"a": "ii", "b": "c", "c": "iii"}, finish=False)
    assert cut_off.owed == ("a", "c")
    assert [shorten([cut_off], k)[0].owed for k in (2, 3)] == [(), ("a",)]
    votes = make_run("votes", {"a": "ii", "b": "i"}, finish=False, decided_by="vote")
    assert [shorten([votes], k)[0].owed for k in (1, 2)] == [(), ("b",)]


def test_a_budget_that_was_not_given_cannot_be_looked_at(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match=r"given 4 trials a question.*after 5"):
        shorten([make_run("four", LONG)], 5)
    with pytest.raises(UsageError, match="another budget than trials"):
        shorten([make_run("tokens", LONG, trials=None)], 2)
    one = make_run("greedy", {"a": "c"}, method="greedy", trials=1)
    assert shorten([one], 8) == [one]
