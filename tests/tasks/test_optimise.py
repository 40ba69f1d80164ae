"""Optimisation problems: scores by their rule, optima by brute force."""

from __future__ import annotations

import asyncio
from itertools import combinations, permutations
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import get_task
from fttt.tasks.gold_check import check_task
from fttt.tasks.optimise import LETTERS, OptimiseTask, _length
from fttt.tasks.task import TaskOptions
from fttt.types import Question, Verdict


def judge(question: Question, text: str) -> Verdict:
    return asyncio.run(OptimiseTask("tour").verifier().verify(question, text))


def problem(question: Question) -> Any:
    return question.gold


@pytest.mark.parametrize("family", ["tour", "packing"])
def test_golds_are_optimal_and_repeated_questions_fail(family: str) -> None:
    task = OptimiseTask(family, items=6)
    report = asyncio.run(check_task(task, TaskOptions()))
    assert report.as_expected
    assert report.solutions.judged == 100
    assert len({q.prompt for q in task.load(TaskOptions())}) == 100


def test_the_shortest_trip_is_that_of_all_orders() -> None:
    for question in OptimiseTask("tour", items=6).load(TaskOptions())[:10]:
        places = problem(question)["places"]
        orders = [(0, *rest) for rest in permutations(range(1, 6))]
        best = min(_length(places, order) for order in orders)
        for order in (orders[0], orders[50]):
            letters = ",".join(LETTERS[n] for n in order)
            verdict = judge(question, f"So: A, B.\n**Answer:** {letters}")
            assert verdict.score == pytest.approx(best / _length(places, order))
        back = judge(question, f"Answer: {letters},A")
        assert back.score == verdict.score


def test_the_best_load_is_that_of_all_subsets() -> None:
    for question in OptimiseTask("packing", items=8).load(TaskOptions())[:10]:
        weights, values, most = (problem(question)[k] for k in ("weights", "values", "most"))
        loads = [c for n in range(1, 9) for c in combinations(range(8), n)]
        allowed = [c for c in loads if sum(weights[n] for n in c) <= most]
        best = max(sum(values[n] for n in c) for c in allowed)
        for load in (allowed[0], allowed[-1]):
            verdict = judge(question, "Answer: " + " and ".join(LETTERS[n] for n in load))
            assert verdict.score == pytest.approx(sum(values[n] for n in load) / best)
        heavy = next(c for c in loads if sum(weights[n] for n in c) > most)
        verdict = judge(question, "Answer: " + ", ".join(LETTERS[n] for n in heavy))
        assert (verdict.score, verdict.outcome) == (0.0, "incorrect")
        assert "not allowed: it weighs" in verdict.feedback


def test_answers_that_break_the_rules_score_nothing() -> None:
    question = OptimiseTask("tour", items=4).load(TaskOptions())[0]
    for text in ("Answer: A, B, C", "Answer: A, B, B, C", "Answer: B, A, C, D", "Answer: A,B,C,T"):
        assert judge(question, text).score == 0.0, text
    for text in ("A, B, C, D", "Answer: none", "<think>Answer: A, B, C, D", ""):
        verdict = judge(question, text)
        assert (verdict.outcome, verdict.score) == ("unanswered", 0.0), text


def test_faults_are_named() -> None:
    with pytest.raises(UsageError, match="no optimise problem 'trip'"):
        get_task("optimise/trip")
    with pytest.raises(UsageError, match="items of optimise cannot be 40"):
        get_task("optimise/tour", items=40)
