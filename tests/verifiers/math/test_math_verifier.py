from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fttt.types import Question, Verdict
from fttt.verifiers.math import MathVerifier
from fttt.verifiers.verifier import Verifier
from fttt.verifiers.worker_pool import WorkerPool

QUESTION = Question("q", "")

HOSTILE = [
    "9^{9^{9^{9}}}",
    "(10^{10})!",
    r"\sin(10^{10^{10}})",
    r"\sum_{n=1}^{10^{12}} n",
    r"\binom{10^{9}}{10^{8}}",
    "(" * 900 + "x" + ")" * 900,
    "-" * 1500 + "1",
    "x" * 1500,
    "|" * 1001,
    r"\left(" * 200,
]
SLOW = r"\sum_{i=1}^{300} \sum_{j=1}^{300} \sin(i j)"

UNREADABLE = [
    r"\frac{" * 300,
    "{" * 1000,
    r"\{" * 300,
    r"\text{" * 200,
    "x=\ud800",
    "\0",
    r"\begin{pmatrix} 1 & 2",
    r"\unknowncommand{3}",
    "1,," * 300,
    ":::",
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(workers=2)
    yield made
    asyncio.run(made.close())


def judge(verifier: MathVerifier, gold: str, answer: str) -> Verdict:
    completion = f"Therefore the result is \\boxed{{{answer}}}."
    return asyncio.run(verifier.verify(Question("q", "", gold), completion))


def test_it_is_a_verifier(verifier: MathVerifier) -> None:
    assert isinstance(verifier, Verifier)


@pytest.mark.parametrize("answer", UNREADABLE)
def test_what_cannot_be_read_is_incorrect(verifier: MathVerifier, answer: str) -> None:
    verdict = judge(verifier, r"\sqrt{2}+1", answer)
    assert verdict.outcome in ("incorrect", "unanswered")
    assert not verdict.failed, verdict.detail
    assert "\n" not in verdict.detail


@pytest.mark.parametrize("gold", [r"\frac{1}{", r"\unknowncommand{3}", "9^{9^{9^{9}}}"])
def test_a_gold_that_cannot_be_read_or_computed_is_a_failure(
    verifier: MathVerifier, gold: str
) -> None:
    verdict = judge(verifier, gold, r"\sqrt{3}")
    assert (verdict.outcome, verdict.failed) == ("incorrect", True)
    assert verdict.detail.startswith("the gold answer ")
    assert judge(verifier, gold, gold).correct or gold.count("{") != gold.count("}")


def test_an_error_of_the_comparison_itself_is_a_failure() -> None:
    async def run() -> Verdict:
        verifier = MathVerifier()
        verifier._pool = WorkerPool(lambda request: request["no list"], time_limit=60.0)
        verdict = await verifier.verify(Question("q", "", r"\sqrt{2}"), r"\boxed{\sqrt{3}}")
        await verifier.close()
        return verdict

    verdict = asyncio.run(run())
    assert (verdict.outcome, verdict.failed) == ("incorrect", True)
    assert "raised TypeError" in verdict.detail


@pytest.mark.parametrize(
    "completion", ["", "I cannot solve this.", r"\boxed{}", "It is about five, I think."]
)
def test_no_answer(verifier: MathVerifier, completion: str) -> None:
    verdict = asyncio.run(verifier.verify(Question("q", "", "5"), completion))
    assert verdict.outcome == "unanswered"
    assert verifier.extract(QUESTION, completion) is None


@pytest.mark.parametrize("gold", ["", None, r"\boxed{}"])
def test_an_empty_gold_is_said(verifier: MathVerifier, gold: str | None) -> None:
    verdict = asyncio.run(verifier.verify(Question("q", "", gold), r"\boxed{5}"))
    assert (verdict.outcome, verdict.failed) == ("incorrect", True)
    if not gold:
        assert verdict.detail == "the gold answer is empty"


@pytest.mark.parametrize("gold", [0, 0.0, "0"])
def test_nought_is_an_answer(verifier: MathVerifier, gold: float | str) -> None:
    question = Question("q", "", gold)
    assert asyncio.run(verifier.verify(question, r"\boxed{0}")).correct
    assert not asyncio.run(verifier.verify(question, r"\boxed{1}")).correct


def test_a_gold_may_be_a_number_or_boxed(verifier: MathVerifier) -> None:
    for gold in (7, 7.0, r"so \boxed{7}", "$7$"):
        verdict = asyncio.run(verifier.verify(Question("q", "", gold), r"\boxed{7}"))
        assert verdict.correct, gold


def test_the_last_box_counts(verifier: MathVerifier) -> None:
    for completion, outcome in (
        (r"\boxed{5}, or rather \boxed{6}", "incorrect"),
        (r"\boxed{6}, or rather \boxed{5}", "correct"),
    ):
        verdict = asyncio.run(verifier.verify(Question("q", "", "5"), completion))
        assert verdict.outcome == outcome


def test_hostile_answers_cost_no_time_and_no_neighbour_its_verdict() -> None:
    async def run() -> tuple[list[Verdict], list[Verdict]]:
        verifier = MathVerifier(workers=2, time_limit=5.0, memory_mb=400)
        question = Question("q", "", r"\sqrt{8}+1")
        await verifier.verify(question, r"\boxed{\sqrt{3}}")  # the zygote is warm
        hostile = [verifier.verify(question, f"\\boxed{{{answer}}}") for answer in HOSTILE]
        honest = [verifier.verify(question, r"\boxed{1+2\sqrt{2}}") for _ in range(20)]
        wrong = [verifier.verify(question, r"\boxed{1-2\sqrt{2}}") for _ in range(20)]
        verdicts = await asyncio.gather(*hostile, *honest, *wrong)
        await verifier.close()
        return verdicts[: len(HOSTILE)], verdicts[len(HOSTILE) :]

    hostile, others = asyncio.run(run())
    assert {verdict.outcome for verdict in hostile} <= {"incorrect", "unanswered"}
    assert [verdict.correct for verdict in others] == [True] * 20 + [False] * 20
    late = [verdict for verdict in hostile if "took longer" in verdict.detail]
    assert [verdict for verdict in hostile if verdict.failed] == late
    assert len(late) <= 3, late  # on a busy machine: none takes more than a second of its own


def test_a_time_limit_holds() -> None:
    async def run() -> tuple[Verdict, Verdict]:
        verifier = MathVerifier(workers=1, time_limit=0.2)
        question = Question("q", "", r"\sqrt{8}+1")
        slow = await verifier.verify(question, f"\\boxed{{{SLOW}}}")
        verifier._pool._time_limit = 100.0
        honest = await verifier.verify(question, r"\boxed{1+2\sqrt{2}}")
        await verifier.close()
        return slow, honest

    slow, honest = asyncio.run(run())
    assert slow.outcome == "incorrect"
    assert "took longer than its limit of 0.2 s" in slow.detail
    assert (slow.failed, honest.failed) == (True, False)
    assert honest.correct


def test_strict_is_the_string_rule() -> None:
    verifier = MathVerifier(rule="strict")
    assert judge(verifier, r"\frac{1}{2}", "0.5").correct
    assert not judge(verifier, r"\frac{1}{4}", "0.25").correct
    verdict = asyncio.run(verifier.verify(Question("q", "", "5"), "The final answer is 5."))
    assert verdict.outcome == "unanswered"  # the rule knows boxes only
    asyncio.run(verifier.close())


def test_votes_go_together(verifier: MathVerifier) -> None:
    votes = {
        verifier.extract(QUESTION, f"\\boxed{{{answer}}}")
        for answer in ("0.5", r"\frac{1}{2}", r"\dfrac12", "1/2", "$0.50$")
    }
    assert votes == {"0.5"}
    same = {verifier.extract(QUESTION, f"\\boxed{{{t}}}") for t in (r"\left(1, 2\right)", "(1,2)")}
    assert same == {"(1, 2)"}


fractions = st.builds(
    lambda top, bottom: (top, bottom), st.integers(-9999, 9999), st.integers(1, 9999)
)


@given(fractions, fractions)
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
def test_rational_answers_are_equal_only_where_they_are(
    verifier: MathVerifier, first: tuple[int, int], second: tuple[int, int]
) -> None:
    (a, b), (c, d) = first, second
    verdict = judge(verifier, f"\\frac{{{a}}}{{{b}}}", f"{c}/{d}")
    assert verdict.correct == (a * d == b * c)
    assert judge(verifier, f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{3 * a}}}{{{3 * b}}}").correct
