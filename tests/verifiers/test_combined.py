"""Several verdicts make one: all, any, and a weighted mean."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

import fttt
from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.combined import CombinedVerifier
from fttt.verifiers.verifier import (
    Rule,
    choose_verifier,
    needs_gold,
    read_combination,
    reads_answers,
    single_choices,
)

QUESTION = Question("q", "What is 3 + 4?", "7")
RIGHT = Verdict("correct", "7", feedback="good")
WRONG = Verdict("incorrect", "5", detail="expected 7", feedback="5 is wrong")
NONE = Verdict("unanswered", feedback="nothing there")
HALF = Verdict("incorrect", score=0.5, feedback="half", tests_passed=1, tests_total=2)
BROKEN = Verdict("incorrect", detail="it hung", failed=True)


class Says:
    """A verifier that says one thing, and remembers what it was asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.closed, self.cut = verdict, False, False

    async def verify(self, question: Question, completion: str, cut: bool = False) -> Verdict:
        self.cut = cut
        return self.verdict

    def extract(self, question: Question, completion: str) -> str | None:
        return self.verdict.extracted

    async def close(self) -> None:
        self.closed = True


def combined(rule: Rule, *said: Verdict, **more: Any) -> Verdict:
    verifier = CombinedVerifier(rule, [Says(one) for one in said], **more)
    return asyncio.run(verifier.verify(QUESTION, "a completion", cut=True))


@pytest.mark.parametrize(
    ("rule", "said", "outcome", "score", "feedback"),
    [
        ("all", (RIGHT, RIGHT), "correct", None, "good"),
        ("all", (RIGHT, WRONG, HALF), "incorrect", 0.0, "5 is wrong"),
        ("all", (RIGHT, HALF), "incorrect", 0.5, "half"),
        ("all", (RIGHT, NONE), "unanswered", None, "nothing there"),
        ("all", (NONE, WRONG), "incorrect", None, "5 is wrong"),
        ("all", (WRONG, BROKEN), "incorrect", None, "5 is wrong"),
        ("any", (WRONG, RIGHT), "correct", None, "good"),
        ("any", (WRONG, HALF), "incorrect", 0.5, "5 is wrong"),
        ("any", (NONE, NONE), "unanswered", None, "nothing there"),
        ("any", (BROKEN, RIGHT), "correct", None, "good"),
        ("weighted", (RIGHT, HALF), "incorrect", 0.75, "half"),
        ("weighted", (RIGHT, replace(RIGHT, score=1.0)), "correct", 1.0, "good"),
        ("weighted", (NONE, NONE), "unanswered", None, "nothing there"),
    ],
)
def test_what_several_say_is_one_verdict(
    rule: Rule, said: tuple[Verdict, ...], outcome: str, score: float | None, feedback: str
) -> None:
    found = combined(rule, *said)
    assert (found.outcome, found.score, found.feedback) == (outcome, score, feedback)
    assert not found.failed


@pytest.mark.parametrize("rule", ["all", "any", "weighted"])
def test_a_member_that_failed_decides_nothing(rule: Rule) -> None:
    said = (RIGHT, BROKEN) if rule != "any" else (WRONG, BROKEN)
    found = combined(rule, *said)
    assert (found.outcome, found.failed, found.score) == ("incorrect", True, None)
    assert "it hung" in found.detail


def test_weights_a_mark_and_what_else_a_verdict_holds() -> None:
    found = combined("weighted", HALF, RIGHT, weights=(3, 1), mark=0.6, names=("tests", "eye"))
    assert found.score == pytest.approx((3 * 0.5 + 1) / 4)
    assert found.outcome == "correct"
    assert (found.extracted, found.tests_passed, found.tests_total) == ("7", 1, 2)
    assert found.detail == "tests: incorrect 0.5; eye: correct"
    assert combined("weighted", HALF, RIGHT, weights=(3, 1), mark=0.63).outcome == "incorrect"


def test_members_are_told_of_a_cut_asked_for_answers_and_closed() -> None:
    members = [Says(NONE), Says(RIGHT)]
    verifier = fttt.all_of(*members)

    async def use() -> str | None:
        await verifier.verify(QUESTION, "x", cut=True)
        await verifier.close()
        return verifier.extract(QUESTION, "x")

    assert asyncio.run(use()) == "7"
    assert all(member.cut and member.closed for member in members)


@pytest.mark.parametrize(
    ("choice", "singles"),
    [
        ("all(number, regex:because)", ("number", "regex:because")),
        ("any(number,any(math, choice))", ("number", "math", "choice")),
        ("all(regex:(a|b), command:test 1 = 1)", ("regex:(a|b)", "command:test 1 = 1")),
        (
            """all("regex:a, b\\)", 'command:grep "a, b"')""",
            ("regex:a, b\\)", 'command:grep "a, b"'),
        ),
        ("weighted(2*number, 0.5 * regex:x)", ("number", "regex:x")),
        ("number", ("number",)),
    ],
)
def test_the_syntax(choice: str, singles: tuple[str, ...]) -> None:
    assert single_choices(choice) == singles


def test_weights_and_marks_are_read() -> None:
    found = read_combination("weighted(2*number, 0.5*all(math, regex:x))@0.9")
    assert found is not None
    assert (found.rule, found.weights, found.mark) == ("weighted", (2.0, 0.5), 0.9)
    assert found.members == ("number", "all(math, regex:x)")
    assert needs_gold("any(regex:x, number)")
    assert not needs_gold("any(regex:x, command:true)")
    assert reads_answers("all(regex:x, number)")
    assert not reads_answers("any(regex:x, command:true)")


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("all()", "'all\\(\\)' is incomplete; write all"),
        ("all(number,)", "is incomplete"),
        ("all(number", "is incomplete"),
        ("all", "is incomplete"),
        ("all(number)@1", "has a score, as only weighted has"),
        ("all(regex:a\\), number)", "a bracket or a quote that is not closed"),
        ("all('number, regex:x)", "a bracket or a quote that is not closed"),
        ("weighted(number, 2*math)", "has 'number' for a number"),
        ("weighted(0*number)", "without a positive weight"),
        ("weighted(1*number)@0", "the score 0, which every answer reaches"),
        ("weighted(1*any(number, math))@2", "the score 2, which no answer reaches"),
        ("weighted(1*number)@much", "has 'much' for a number"),
        ("any(numbr)", "no verifier 'numbr'; did you mean 'number'"),
        ("all(number, reward:m)", "write reward:m@SCORE"),
    ],
)
def test_faults_of_the_syntax_are_named(choice: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        single_choices(choice)


def test_a_combination_is_chosen_by_its_text() -> None:
    async def judge(choice: str, completion: str) -> Verdict:
        verifier = choose_verifier(choice)
        try:
            return await verifier.verify(QUESTION, completion)
        finally:
            await verifier.close()

    both = "all(number, 'regex:(?i)because')"
    assert asyncio.run(judge(both, "Because. The answer is 7.")).outcome == "correct"
    found = asyncio.run(judge(both, "The answer is 7."))
    assert (found.outcome, found.extracted) == ("incorrect", "7")
    assert "number: correct; regex:(?i)because: incorrect" in found.detail
    mean = asyncio.run(judge("weighted(3*number, 1*regex:x)", "The answer is 7."))
    assert (mean.outcome, mean.score) == ("incorrect", 0.75)


def test_functions_texts_and_objects_are_members() -> None:
    verifier = fttt.weighted((1, lambda answer: 0.5), (3, "regex:7"), (4, Says(RIGHT)), mark=0.9)
    found = asyncio.run(verifier.verify(QUESTION, "7"))
    assert found.score == pytest.approx((0.5 + 3 + 4) / 8)
    assert found.correct
    asyncio.run(verifier.close())
    for bad in ((0, "number"), (-1, "number")):
        with pytest.raises(UsageError, match="not positive"):
            fttt.weighted(bad)
    with pytest.raises(UsageError, match="has no members"):
        fttt.any_of()
