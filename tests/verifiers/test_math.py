from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fttt.types import Question, Verdict
from fttt.verifiers.base import Verifier
from fttt.verifiers.math import MathVerifier

QUESTION = Question("q", "")

EQUAL = [
    ("x^2+2x+1", "x**2 + 2*x + 1"),
    ("x^{12}", "x^12"),
    (r"\frac{\pi}{4}", "pi/4"),
    (r"2\sqrt{3}", "2*sqrt(3)"),
    ("(2,3)", "(x, y) = (2, 3)"),
    ("3,-2", r"x = 3 \text{ or } x = -2"),
    ("x^2", "f(x) = x^2"),
    (r"\text{(A)}", "A"),
    ("2^{n+1}", r"2 \cdot 2^n"),
    ("y=2x+1", "2x-y+1=0"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac12", r"\dfrac{2}{4}"),
    (r"10,\!080", "10080"),
    (r"10,\!080", "10,080"),
    ("1,-2", "-2, 1"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt 5"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("(3,4]", r"3 < x \le 4"),
    (r"(2,\infty)", "x>2"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("y = 2x+3", "y=3+2x"),
    ("5x - 7y + 11z + 4 = 0", "-10x+14y-22z-8=0"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", "C"),
    (r"\text{(C)}", r"\textbf{(C)}"),
    (r"\text{even}", r"\text{Even}"),
    (r"90^\circ", "90"),
    (r"90^\circ", "90 degrees"),
    (r"90^\circ", r"90^{\circ}"),
    (r"\cos 58^\circ", r"\sin 32^\circ"),
    (r"17\%", "17"),
    (r"17\%", "0.17"),
    (r"17\%", "17%"),
    (r"\$18.90", "18.90"),
    (r"\$18.90", "18.9"),
    (r"\$18.90", r"\$18.90 \text{ dollars}"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"864 \mbox{ inches}^2", r"864\text{ in}^2"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"15\mbox{ cm}^2", "15 cm^2"),
    ("52_8", "52"),
    ("52_8", "52_{8}"),
    ("4210_{5}", "4210_5"),
    (r"1\frac{4}{5}", "9/5"),
    (r"1\frac{4}{5}", "1.8"),
    (r"1\frac{4}{5}", "1 4/5"),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{bmatrix} -\frac13 \\ \frac{2}{3} \\ \frac{5}{3} \end{bmatrix}",
    ),
    (
        r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}",
        r"\begin{pmatrix}1&-1\\1&1\end{pmatrix}",
    ),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("6 - 5i", "-5i+6"),
    ("p - q", "-q+p"),
    ("(a+5)(b+2)", "ab+2a+5b+10"),
    (r"\cot x", r"\frac{1}{\tan x}"),
    (r"\frac{3\sqrt{3}}{4}", r"0.75\sqrt{3}"),
    (r"-80\leq g(x)\leq 82", r"-80 \le g(x) \le 82"),
    (r"0.56 = 56\%", r"56\%"),
    (r"0.56 = 56\%", "0.56"),
    (r"\$\dfrac23 \approx \$0.67", r"\frac{2}{3}"),
    ("AB=9, CD=4", "CD=4, AB=9"),
    (r"-2 \text{ or } -12", "-12, -2"),
    (r"2, 3, \text{ and } 4", "2,3,4"),
    (r"4\!:\!51\!:\!06 \text{ p.m.}", "4:51:06 p.m."),
    (r"\text{A, D, F, G, H}", "A,D,F,G,H"),
    (r"\text{A, B}", "A, B"),
    ("1{,}008{,}016", "1008016"),
    ("2k", "k+k"),
    (r"18+2\pi", r"2(\pi+9)"),
    ("2^{10}", "1024"),
    ("1024", "2^{10}"),
    (r"\sin^2 x", r"1-\cos^2 x"),
    ("x^5 - x^4", "x^4(x-1)"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"\emptyset", r"\{\}"),
    ("f(x)=2x", "2x"),
    (r"\frac{2}{3}", r"0.\overline{6}"),
    (r"\text{October 30}", "October 30"),
    ("4343_6", "4343_{6}"),
    ("(1,2)", "1, 2"),
    (r"\sqrt{2}", "1.414214"),
    (r"\text{two lines}", "two lines"),
    ("5", "5."),
    ("5", r"\text{5}"),
    (r"1\pm 2i", "1+2i,1-2i"),
    (r"\frac{1}{29,\!322,\!216}", "1/29322216"),
    (r"-\frac{33}{2}", "-16.5"),
    (r"k = \frac{-33}{2}", "k=-16.5"),
    ("10^{-8}", "0.00000001"),
    ("e^2", r"e \cdot e"),
    ("x<3", r"(-\infty,3)"),
    (r"\frac{990}{7}^\circ", r"\frac{990}{7}"),
    (r"12\text{ square units}", "12"),
    (r"120\text{ cm}", "120 cm"),
    ("|x|", r"\sqrt{x^2}"),
    ("n!", "n(n-1)!"),
    (r"\binom{10}{3}", "120"),
    ("120", r"\binom{10}{3}"),
    ("3x^2", r"3\cdot x^2"),
    ("2:3", "2 : 3"),
    (r"\overrightarrow{AB}", r"\overrightarrow{AB}"),
    (r"\frac{5\sqrt{2}+3}{7}", r"(5\sqrt2+3)/7"),
    (r"11\sqrt2", r"11\sqrt{2}"),
    (r"\!\sqrt{21}", r"\sqrt{21}"),
    (r"A\cup B", r"A \cup B"),
    ("3,4,5", r"\{5,4,3\}"),
    (r"\text{Yes}", "yes"),
    (r"1.5 \times 10^3", "1500"),
    (r"\frac{x+2}{7}", r"\frac{1}{7}x+\frac27"),
    ("x^3+3x-6", "x^{3} + 3x - 6"),
    (r"-\infty", r"-\infty"),
    (r"x\ne 2", r"x \neq 2"),
    ("[0,1)", r"0\le x<1"),
    ("9", r"\sqrt{81}"),
    (r"4\pi", r"4\pi \text{ square inches}"),
]

DIFFERENT = [
    ("x^{12}", "2x^1"),
    ("1/3", r"33\%"),
    ("e", "2.718"),
    (r"\text{odd}", "it is odd"),
    (r"\text{(A)}", r"\textbf{(B)}"),
    (r"\frac{3}{x}", r"\frac{3}{x}, 2"),
    (r"2(3)", "5"),
    ("(2,3)", "(x, y) = (3, 2)"),
    (r"\frac{1}{2}", "0.51"),
    ("5", "6"),
    ("5", "-5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(3,4]", "[3,4]"),
    ("(3,4]", r"3\le x \le 4"),
    ("1,2", "1,3"),
    ("1,2", "1,2,3"),
    ("1,2,2", "1,1,2"),
    (r"\text{Evelyn}", r"\text{Carla}"),
    (r"\text{(C)}", "D"),
    (r"17\%", "1.7"),
    (r"17\%", "1700"),
    (r"5.4 \text{ cents}", r"5.4 \text{ dollars}"),
    (r"4\!:\!51\!:\!06 \text{ p.m.}", "4:51:06 a.m."),
    ("52_8", "52_9"),
    ("52_8", "42"),
    ("y=2x+3", "y=2x-3"),
    ("5x-7y=0", "5x+7y=0"),
    ("x<3", "x>3"),
    ("x<3", r"x\le 3"),
    (r"\sqrt{2}", r"\sqrt{3}"),
    (r"\sqrt{2}", "1.42"),
    ("10^{-8}", r"2 \cdot 10^{-8}"),
    ("2^{-60}", "2^{-61}"),
    ("2^{-60}", r"3\cdot 2^{-60}"),
    (r"\frac{1}{3}", "0.333"),
    ("x^2", "x^3"),
    (r"\sin x", r"\cos x"),
    ("x", "y"),
    ("x", "X"),
    ("p-q", "q-p"),
    ("6-5i", "6+5i"),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}",
    ),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (r"1 \pm 2", "1+2"),
    ("x=5", "y=5"),
    ("x=5", "x=6"),
    (r"(2,\infty)", "x<2"),
    (r"1\frac{4}{5}", "4/5"),
    ("100", "1,000"),
    ("(1,100)", "1100"),
    (r"\{1,2\}", "(1,3)"),
    ("0", "0.0000001"),
    ("1000000", "1000001"),
    (r"\text{even}", r"\text{odd}"),
    (r"\text{east}", r"\text{seat}"),
    (r"\frac{1}{x}", r"\frac{1}{x+1}"),
    (r"90^\circ", r"\frac{\pi}{2}+1"),
    (r"\cos 58^\circ", r"\cos 58"),
    (r"\infty", r"-\infty"),
    ("x^2+1", "2"),
    ("5", r"\text{five hundred}"),
    ("12", "12x"),
    ("|x|", "x"),
    (r"\sqrt{x^2}", "x"),
    ("3", r"3\pi"),
    ("2", r"\emptyset"),
    (r"5 \text{ cm}", r"5 \text{ m}"),
    ("4", "2+3"),
    (r"\pi", "3.14"),
    (r"\pi", "3.1416"),
    ("10", "1,0"),
    ("12", "1 2"),
    ("30", "30,40"),
    ("f(x)=2x", "f(x)=3x"),
    ("A,B", "A,C"),
    ("-1", "1"),
    (r"[0,1]\cup[2,3]", r"[0,1]\cup[2,4]"),
    (r"2\sqrt{3}", r"2\sqrt{3}i"),
    ("1", "x=1,2"),
    ("1", "1=2"),
]

HOSTILE = [
    "9^{9^{9^{9}}}",
    "(10^{10})!",
    r"\sin(10^{10^{10}})",
    r"\gamma(10^{12})",
    "(" * 900 + "x" + ")" * 900,
]

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


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_the_same_mathematics(verifier: MathVerifier, gold: str, answer: str) -> None:
    verdict = judge(verifier, gold, answer)
    assert verdict.outcome == "correct", verdict


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_other_mathematics(verifier: MathVerifier, gold: str, answer: str) -> None:
    verdict = judge(verifier, gold, answer)
    assert verdict.outcome == "incorrect", verdict
    assert verdict.detail


@pytest.mark.parametrize("answer", UNREADABLE)
def test_what_cannot_be_read_is_incorrect(verifier: MathVerifier, answer: str) -> None:
    verdict = judge(verifier, r"\sqrt{2}+1", answer)
    assert verdict.outcome in ("incorrect", "unanswered")
    assert "\n" not in verdict.detail


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
    assert verdict.outcome == "incorrect"
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


def test_a_hostile_answer_costs_its_limit_and_no_neighbour_its_verdict() -> None:
    async def run() -> tuple[list[Verdict], list[Verdict], float]:
        verifier = MathVerifier(workers=2, time_limit=1.0)
        question = Question("q", "", r"\sqrt{8}+1")
        await verifier.verify(question, r"\boxed{\sqrt{3}}")  # both workers are warm
        start = time.perf_counter()
        hostile = [verifier.verify(question, f"\\boxed{{{answer}}}") for answer in HOSTILE]
        honest = [verifier.verify(question, r"\boxed{1+2\sqrt{2}}") for _ in range(20)]
        wrong = [verifier.verify(question, r"\boxed{1-2\sqrt{2}}") for _ in range(20)]
        verdicts = await asyncio.gather(*hostile, *honest, *wrong)
        seconds = time.perf_counter() - start
        await verifier.close()
        return verdicts[: len(HOSTILE)], verdicts[len(HOSTILE) :], seconds

    hostile, others, seconds = asyncio.run(run())
    for verdict in hostile:
        assert verdict.outcome == "incorrect"
        assert "took longer than its limit of 1 s" in verdict.detail
    assert [verdict.correct for verdict in others] == [True] * 20 + [False] * 20
    assert not any("took longer" in verdict.detail for verdict in others)
    assert seconds < len(HOSTILE) * 1.0 + 5.0


def test_a_memory_limit_holds() -> None:
    async def run() -> tuple[Verdict, Verdict]:
        verifier = MathVerifier(workers=1, time_limit=20.0, memory_mb=400)
        question = Question("q", "", r"\sqrt{8}+1")
        greedy = await verifier.verify(question, r"\boxed{2^{2^{35}}}")
        honest = await verifier.verify(question, r"\boxed{1+2\sqrt{2}}")
        await verifier.close()
        return greedy, honest

    greedy, honest = asyncio.run(run())
    assert greedy.outcome == "incorrect"
    assert "used more than its memory limit of 400 MiB" in greedy.detail
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
    assert same == {"(1,2)"}


fractions = st.builds(
    lambda top, bottom: (top, bottom), st.integers(-9999, 9999), st.integers(1, 9999)
)


@given(fractions, fractions)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rational_answers_are_equal_only_where_they_are(
    verifier: MathVerifier, first: tuple[int, int], second: tuple[int, int]
) -> None:
    (a, b), (c, d) = first, second
    verdict = judge(verifier, f"\\frac{{{a}}}{{{b}}}", f"{c}/{d}")
    assert verdict.correct == (a * d == b * c)
    assert judge(verifier, f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{3 * a}}}{{{3 * b}}}").correct


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5), st.randoms())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_lists_compare_in_any_order_and_tuples_in_their_own(
    verifier: MathVerifier, values: list[int], randoms: random.Random
) -> None:
    shuffled = randoms.sample(values, len(values))
    gold, other = (", ".join(map(str, part)) for part in (values, shuffled))
    assert judge(verifier, gold, other).correct
    assert judge(verifier, f"\\{{{gold}\\}}", other).correct
    assert judge(verifier, f"({gold})", f"({other})").correct == (values == shuffled)
    assert not judge(verifier, gold, f"{other}, 51").correct
