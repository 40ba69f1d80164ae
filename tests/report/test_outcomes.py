"""What runs reached within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fttt.errors import UsageError
from fttt.report.compare import describe
from fttt.report.outcomes import Outcomes, pass_curve, truncate
from fttt.report.sides import form_sides
from fttt.store import Run, solved_within
from fttt.types import Question, Trial, Usage

MakeRun = Callable[..., Run]


def test_one_run_is_cut_at_trials_tokens_and_seconds(make_run: MakeRun) -> None:
    run = make_run("run", {"a": "iic", "b": "c", "c": "iiii"}, tokens=[10, 20, 30, 40])
    outcomes = Outcomes.of(run)
    assert outcomes.ids == ("a", "b", "c")
    assert outcomes.within("trials", [1, 2, 3, 4]).mean(axis=0) == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )
    assert outcomes.within("tokens", [9, 10, 59, 60]).sum(axis=0).tolist() == [0, 1, 1, 2]
    assert outcomes.within("seconds", [0.49, 0.5, 1.49, 1.5]).sum(axis=0).tolist() == [0, 1, 1, 2]
    assert outcomes.spent["tokens"].tolist() == [60, 10, 100]
    assert outcomes.solved.tolist() == [True, True, False]


def test_an_unanswered_trial_is_free_only_where_the_run_says_so(make_run: MakeRun) -> None:
    counted = Outcomes.of(make_run("count", {"a": "uuc"}))
    free = Outcomes.of(make_run("retry", {"a": "uuc"}, unanswered="retry"))
    assert counted.within("trials", [1, 2, 3]).tolist() == [[0, 0, 1]]
    assert free.within("trials", [0, 1]).tolist() == [[0, 1]]


def test_a_vote_is_decided_anew_after_every_trial(make_run: MakeRun) -> None:
    run = make_run("vote", {"a": "ciicc"}, extracted=["4", "5", "5", "4", "4"], decided_by="vote")
    assert Outcomes.of(run).within("trials", [1, 2, 3, 4, 5]).tolist() == [[1, 1, 0, 1, 1]]


def test_a_question_without_trials_is_unsolved(make_run: MakeRun) -> None:
    outcomes = Outcomes.of(make_run("run", {"a": "", "b": "c"}))
    assert outcomes.within("trials", [4]).tolist() == [[0], [1]]
    assert outcomes.spent["seconds"].tolist() == [0, 0.5]


def test_questions_can_be_chosen_and_ordered(make_run: MakeRun) -> None:
    outcomes = Outcomes.of(make_run("run", {"a": "ic", "b": "c", "c": "i"})).at(["c", "a"])
    assert outcomes.ids == ("c", "a")
    assert outcomes.within("trials", [2]).tolist() == [[0], [1]]


@settings(suppress_health_check=list(HealthCheck), max_examples=40)
@given(
    verdicts=st.lists(st.text("ciu", max_size=6), min_size=1, max_size=5),
    decided_by=st.sampled_from(["first", "vote"]),
    unanswered=st.sampled_from(["count", "retry"]),
)
def test_every_cut_agrees_with_the_stores_rule(
    verdicts: list[str], decided_by: str, unanswered: str
) -> None:
    run = _run_in_memory(verdicts, decided_by, unanswered)
    budgets = [1, 2, 3, 6]
    ours = Outcomes.of(run).within("trials", budgets)
    for record, row in zip(run.records, ours, strict=True):
        for budget, right in zip(budgets, row, strict=True):
            assert bool(right) == solved_within(
                record.trials, budget, decided_by=run.decided_by, unanswered=run.unanswered
            )


def test_pass_at_k_is_for_samples_that_went_on(make_run: MakeRun) -> None:
    whole = make_run("whole", {"a": "cici", "b": "iiii"})
    curve = pass_curve([whole], ["a", "b"], [1, 2, 4, 8])
    assert sorted(curve) == [1, 2, 4]
    assert curve[2] == pytest.approx(np.array([1 - 1 / 6, 0.0]))
    stopped = make_run("stopped", {"a": "iic", "b": "iiii"})
    assert pass_curve([stopped], ["a", "b"], [1]) == {}
    last = make_run("last", {"a": "iiic", "b": "iiii"})  # it stopped, though none is shorter
    assert pass_curve([last], ["a", "b"], [1]) == {}


def test_pass_at_k_pools_the_samples_of_all_seeds(make_run: MakeRun) -> None:
    runs = [make_run(f"s{s}", {"a": "ci" if s else "cc"}, trials=2, seed=s) for s in (0, 1)]
    curve = pass_curve(runs, ["a"], [1, 2])
    assert curve[1] == pytest.approx(np.array([3 / 4]))


def _run_in_memory(verdicts: list[str], decided_by: str, unanswered: str) -> Run:
    from pathlib import Path

    names = {"c": "correct", "i": "incorrect", "u": "unanswered"}
    questions = tuple(Question(str(n), "?", "4") for n in range(len(verdicts)))
    trials = [
        Trial(
            str(q), n, n, "", (1,), "stop", None if letter == "u" else letter + str(n % 2),
            names[letter], "", None, Usage(generated_tokens=1),  # type: ignore[arg-type]
        )
        for q, letters in enumerate(verdicts)
        for n, letter in enumerate(letters)
    ]  # fmt: skip
    config = {"method": "m", "model": "m", "task": "t", "seed": 1}
    config["budget"] = {"trials": 6, "unanswered": unanswered}  # type: ignore[assignment]
    run = Run(Path("nowhere"), config, {"decided_by": decided_by}, questions)
    run.__dict__["trials"] = tuple(trials)  # fills the cached property: there is no file to read
    return run


MakeRun = Callable[..., Run]
LONG = {"a": "iic", "b": "iuii", "c": "c", "d": "uuic"}


def told(runs: Sequence[Run]) -> dict[str, Any]:
    facts = asdict(describe(form_sides(runs)[0]))
    return {name: fact for name, fact in facts.items() if name != "runs"}


@pytest.mark.parametrize("rule", ["count", "retry"])
def test_a_shorter_run_is_the_run_of_a_smaller_budget(make_run: MakeRun, rule: str) -> None:
    kept = {"count": ("ii", "iu", "c", "uu"), "retry": ("ii", "iui", "c", "uuic")}[rule]
    long = make_run("long", LONG, unanswered=rule)
    short = make_run("short", dict(zip(LONG, kept, strict=True)), trials=2, unanswered=rule)
    (cut,) = truncate([long], 2)
    assert [t.trial for t in cut.trials] == [t.trial for t in short.trials]
    assert told([cut]) == told([short])


def test_what_was_cut_off_is_whole_where_all_had_enough(make_run: MakeRun) -> None:
    cut_off = make_run("off", {"a": "ii", "b": "c", "c": "iii"}, finish=False)
    assert cut_off.owed == ("a", "c")
    assert [truncate([cut_off], k)[0].owed for k in (2, 3)] == [(), ("a",)]
    votes = make_run("votes", {"a": "ii", "b": "i"}, finish=False, decided_by="vote")
    assert [truncate([votes], k)[0].owed for k in (1, 2)] == [(), ("b",)]


def test_a_budget_that_was_not_given_cannot_be_looked_at(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match=r"given 4 trials a question.*after 5"):
        truncate([make_run("four", LONG)], 5)
    with pytest.raises(UsageError, match="another budget than trials"):
        truncate([make_run("tokens", LONG, trials=None)], 2)
    one = make_run("greedy", {"a": "c"}, method="greedy", trials=1)
    assert truncate([one], 8) == [one]
