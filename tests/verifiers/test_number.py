from __future__ import annotations

import asyncio
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.errors import UsageError
from fttt.types import JSON, Question, Verdict
from fttt.verifiers.number import NumberVerifier, find_numbers
from fttt.verifiers.verifier import Verifier


def judge(gold: JSON, completion: str, prompt: str = "", *, cut: bool = False) -> Verdict:
    question = Question("q", prompt, gold)
    return asyncio.run(NumberVerifier().verify(question, completion, cut=cut))


def given_as(completion: str, prompt: str = "", *, cut: bool = False) -> str | None:
    """The numbers that a completion gives, as text; empty where its answer is no number."""
    found = find_numbers(completion, prompt=prompt, cut=cut)
    return None if found is None else ", ".join(map(str, found))


def test_it_is_a_verifier() -> None:
    assert isinstance(NumberVerifier(), Verifier)


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The final answer is 18.", "18"),
        ("9 eggs at $2: **$18.00**", "18"),
        ("The final answer is $1,234,567 for 3 years.", "1234567"),
        ("The final answer is\n\n**18**", "18"),
        ("The final answer is 18. The final answer is", "18"),
        ("#### 18", "18"),
        ("So \\boxed{18} after 3 steps", "18"),
        ("Answer: -5 degrees", "-5"),
        ("It fell to \u22125", "-5"),
        ("She owes -$5.50", "-5.5"),
        ("She owes $-5.50", "-5.5"),
        ("about 50%", "50%"),
        ("\\frac{3}{4}", "0.75"),
        ("1/3", "1/3"),
        ("2 1/2 cups", "2.5"),
        ("10{,}000", "10000"),
        ("1.5e3 metres", "1500"),
        ("007", "7"),
        ("It takes 2 million years.", "2000000"),
        ("The answer is negative 5.", "-5"),
        ("The final answer is $10^{2}$ cm$^2$.", "100"),
        ("The final answer is 45 degrees Celsius (113 F).", "45"),
        ("The answer is 36, in total, so the shop earns that much.", "36"),
        ("The answer is twelve (12).", "12"),
        ("\\boxed{\\text{The answer is } 5}", "5"),
        ("The answer is 5 square meters.", "5"),
        ("My answer: 18 eggs/day", "18"),
        ("The final answer is 18!", "18"),
        ("The final answer is \u2248 5.", "5"),
    ],
)
def test_the_number_that_a_completion_gives(completion: str, number: str) -> None:
    assert given_as(completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("She makes 9 * 2 = $18 a day.", "18"),
        ("She makes 9 * 2 = $<<9*2=18>>18 a day.", "18"),
        ("The final answer is 9 * 2 = 18 dollars. She has 3 ducks.", "18"),
        ("The answer is 9 eggs * 2 dollars/egg = 18 dollars.", "18"),
        ("The answer is 60,000-25,000.", "35000"),
        ("The answer is 10 - 2 \u00d7 3", "4"),
        ("The answer is (3+4)*2 = 14.", "14"),
        ("The final answer is 1/2 + 1/4.", "0.75"),
        ("Therefore, 2 * 3 = 6 and 6 + 4 = 10.", "10"),
        ("The final answer is 18, since x = 5.", "18"),
        ("The final answer is $\\sqrt{16} = 4$.", "4"),
        ("The final answer is 5 \u00d7 10^3 = 5,000.", "5000"),
        ("What is left is 5/0", None),
        ("The answer is 5/0", ""),
        ("The answer is (3+4)*2.", ""),
    ],
)
def test_a_sum_is_what_it_comes_to(completion: str, number: str | None) -> None:
    assert given_as(completion) == number


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is 5x.",
        "The answer is $5 + x$.",
        "The answer is x - 5.",
        "The answer is $x \\ge 5$.",
        "The answer is x > 5.",
        "The answer is 5 or more.",
        "The answer is less than 5.",
        "The answer is at least 5.",
        "The answer is at most $5.",
        "The answer is up to 5.",
        "The answer is over 5.",
        "So it is at least 5.",
        "The answer is 5+.",
        "The answer is 5:30.",
        "The answer is 5:2.",
        "The answer is $5\\pi$.",
        "The answer is $\\sqrt{5}$.",
        "The answer is $5!$.",
        "The answer is 5.5.5.",
        "The answer is 5 or 6.",
        "The answer is 5 and 7.",
        "The answer is 5 to 10 dollars.",
        "The answer is 5 feet 10 inches.",
        "The answer is 5 hours and 20 minutes.",
        "The answer is 5 remainder 2.",
        "The answer is 5 6.",
        "The answer is 5, 6, 7.",
        "\\boxed{5}, \\boxed{6}",
        "The answer is $x = 5$ or $x = 6$.",
        "The answer is 5 million.",
        "The answer is 5 dozen.",
        "The answer is 5k.",
        "The answer is 5\u00bd.",
        "The answer is 5\\frac{1}{2}.",
        "The answer is 5 \\times 10^3.",
        "The answer is 5^2.",
        "The answer is 5/2.",
        "The answer is -5.",
        "The answer is \u20115.",
        "The answer is minus 5.",
        "The answer is 5 - 2.",
        "The answer is not 5.",
        "The answer is 5? No.",
        "The answer is <think> 5",
        "The answer is sqrt(5).",
        "The answer is log(5).",
        "The answer is the square root of 5.",
        "The answer is minus five (5).",
        "The answer is 5 squared.",
        "The answer is half of 5.",
        "The answer is f(5).",
    ],
)
def test_what_begins_with_a_number_is_not_that_number(completion: str) -> None:
    assert not judge("5", completion).correct


@pytest.mark.parametrize(
    ("completion", "numbers"),
    [
        ("The answer is $x = 4$ or $x = 6$.", "4, 6"),
        ("\\boxed{2}$ or $\\boxed{3}", "2, 3"),
        ("The answer is 0.5, or 50%.", "0.5"),
        ("The answer is 22.5 or 22 1/2.", "22.5"),
    ],
)
def test_several_values_are_all_found(completion: str, numbers: str) -> None:
    assert given_as(completion) == numbers


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("Answer: The total cost of the 5 shirts is $40.", "40"),
        ("Answer: In 3 hours, she will walk 12 miles.", "12"),
        ("Answer: Janet makes $18 every day for 9 eggs.", "18"),
        ("The largest $n$ is 28.", "28"),
        ("Final Answer: The largest $n$ is 28.", "28"),
        ("So in 2 weeks she sold 36 stamps at $5 each.", "36"),
        ("So **12** of the 20 apples are red.", "12"),
        ("Thus she needs 12 more stamps.", "12"),
        ("The answer is 36, and 4 more are left over.", "36"),
    ],
)
def test_the_number_that_a_sentence_is_about(completion: str, number: str) -> None:
    assert given_as(completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("In total that makes 36 stamps, all told.", "36"),
        ("First compute 6*7.\n42", "42"),
        ("First compute 6*7.\n42.", "42"),
        ("1. Tom has 5.\n2. He buys 7.\n3. So 5 + 7 = 12.", "12"),
        ("Tom has 12 apples.\n\nI hope this helps!", "12"),
        ("The total is 18.\n\nCheck: 18/2 = 9.", "18"),
        ("- 5", "-5"),
        ("1. 2 bolts = 4\n2. 2 bolts = 4\n3.", None),
        ("1. Tom has 5.\n2. He buys 7.\n12.", "12"),
        ("Step 1: 5 + 7\nStep 2:", None),
        ("1\n2\n3\n4", None),
        ("* 3\n* 4\n* 5", None),
        ("1)\n2)\n3)", None),
        ("Tom has 12 apples. How many are left?", None),
        ("So the total of 12 and 4 is:", None),
        ("5 + 7 =", None),
        ("5 + 7 = 12, but she also lost some, so", None),
        ("She has 12 and he has the", None),
        ("She has 5 apples and 7 pears, calculate the number of all 12 fruits.", None),
        ("Calculate how many apples the 12 children have.", None),
        ("So we find that 5 + 7 = 12.", "12"),
        ("It is \u00bd.", "0.5"),
        ("He sold 5 apples. I cannot say how many are left.", None),
        ("Tom has 12 apples.\nHe is happy.", None),
    ],
)
def test_without_a_marker_the_last_line_counts_if_it_states_a_number(
    completion: str, number: str | None
) -> None:
    assert given_as(completion) == number


PROBLEM = (
    "Janet has 16 eggs. She eats 3 of them and bakes muffins with 4 more. How many are left?\n\n"
    'End your answer with "The final answer is" and the number.'
)


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        (PROBLEM, None),
        ("Janet has 16 eggs.", None),
        ("She eats 3 of them and bakes muffins with 4 more.", None),
        ("bakes muffins with 4 more", None),
        ("Janet has 16 eggs. So 9 are left.", "9"),
        ("The final answer is 16.", "16"),
        ("16", "16"),
    ],
)
def test_the_text_of_the_question_is_no_answer(completion: str, number: str | None) -> None:
    assert given_as(completion, PROBLEM) == number
    assert not judge(number or "4", completion, PROBLEM).correct or number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The final answer is 12", None),
        ("The final answer is 12.", None),
        ("The final answer is 12,", None),
        ("The final answer is 12 mil", None),
        ("The final answer is 9 * 2 =", None),
        ("The final answer is", None),
        ("\\boxed{5}. No, it is \\boxed{1", None),
        ("#### 12", None),
        ("**Final Answer**\n\n12", None),
        ("<answer>12", None),
        ("So she has 12 apples.", None),
        ("12\n", None),
        ("The final answer is 12 apples", "12"),
        ("The final answer is 12\n", "12"),
        ("The final answer is $12$", "12"),
        ("The final answer is 12. She", "12"),
        ("\\boxed{12}", "12"),
        ("The final answer is 18.\n" * 3 + "The final answer is 1", "18"),
        ("The final answer is 18.\n" * 3 + "The final", "18"),
    ],
)
def test_an_answer_that_was_cut_off(completion: str, number: str | None) -> None:
    assert given_as(completion, cut=True) == number
    assert judge("12", completion, cut=True).correct == (number == "12")
    if number is None:
        assert judge("12", completion, cut=True).outcome == "unanswered"


@pytest.mark.parametrize(
    "completion", ["", "eighteen", "x2 and H", "The final answer is N.", "...", "version 1.2.3"]
)
def test_no_number_is_unanswered(completion: str) -> None:
    verdict = judge("18", completion)
    assert verdict.outcome == "unanswered"
    assert verdict.extracted is None
    assert not verdict.answered


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("18", "18.0"),
        ("$18.00", "18"),
        (18, "it is 18 eggs"),
        (0.5, "1/2"),
        ("1,000", "1000"),
        ("50%", "0.5"),
        ("50", "50 percent"),
        ("0.5", "50%"),
        ("-7", "\u22127"),
        ("1\\frac{1}{2}", "1.5"),
        ("5 + 2 = 7\n#### 7", "7"),
        ("It fell by 9.\n#### -5", "-5"),
        ("7", "Dinner is at 7:00 PM."),
    ],
)
def test_equal_by_value(gold: JSON, completion: str) -> None:
    assert judge(gold, completion).outcome == "correct"


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("18", "19"),
        ("18", "-18"),
        ("18", "18.01"),
        ("18", "180"),
        ("1000", "1.000"),
        ("50", "0.5"),
        ("0.5", "0.5000001"),
        ("1/3", "0.333"),
        ("18", "18 eggs, so the final answer is 19"),
    ],
)
def test_different_by_value(gold: JSON, completion: str) -> None:
    verdict = judge(gold, completion)
    assert verdict.outcome == "incorrect"
    assert verdict.detail


@pytest.mark.parametrize("gold", ["none", None, True, "", "11:30"])
def test_a_gold_without_a_number_is_said(gold: JSON) -> None:
    verdict = judge(gold, "18")
    assert (verdict.outcome, verdict.failed) == ("incorrect", True)
    assert "holds no number" in verdict.detail
    assert not judge("18", "The answer is none.").failed


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9
    )
)
def test_every_decimal_is_read_exactly(value: object) -> None:
    found = find_numbers(f"The final answer is {value}.")
    assert found is not None
    assert [number.value for number in found] == [Fraction(str(value))]
    assert judge(str(value), str(found[0])).correct


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_whole_numbers_are_equal_only_where_they_are(first: int, second: int) -> None:
    assert judge(str(first), f"The final answer is {second:,}.").correct == (first == second)


@given(st.text(max_size=300), st.booleans())
def test_no_text_is_too_strange(text: str, cut: bool) -> None:
    assert judge("18", text, text[:100], cut=cut).outcome in ("correct", "incorrect", "unanswered")


@pytest.mark.parametrize(
    "number",
    ["12,500", "1\\frac{1}{2}", "2 million", "5 \\times 10^{6}", "-5", "3/4", "12 1/2", "0.75",
     "50%", "9 * 2 = 18", "$x = 12$", "2\\text{ dozen}", "12 500", "1.5e3", "4 or 6"],
)  # fmt: skip
@pytest.mark.parametrize("frame", ["The final answer is {} pens.", "So\n\\boxed{{{}}} it is"])
def test_no_cut_makes_another_number(frame: str, number: str) -> None:
    whole = frame.format(number)
    expected = given_as(whole)
    assert expected
    for end in range(len(whole)):
        assert given_as(whole[:end], cut=True) in (None, expected)


def test_votes_go_together() -> None:
    verifier, question = NumberVerifier(), Question("q", "", "18")
    votes = {verifier.extract(question, text) for text in ("18", "$18.00", "= 18.0", "36/2")}
    assert votes == {"18"}
    assert verifier.extract(question, "50%") == verifier.extract(question, "0.5") == "0.5"
    assert verifier.extract(question, "no idea") is None
    assert verifier.extract(question, "The answer is 1", cut=True) is None


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("5 + 13 = 18. The final answer is 18.", "correct"),
        ("The final answer is: **18** eggs", "correct"),
        ("The final answer is 17. The final answer is $18", "correct"),
        ("The final answer is 5 million, or 18.", "incorrect"),
        ("\\boxed{18}", "unanswered"),
        ("Answer: 18", "unanswered"),
        ("18", "unanswered"),
        ("<think>The final answer is 18", "unanswered"),
    ],
)
def test_the_strict_rule_wants_its_marker(completion: str, outcome: str) -> None:
    verifier = NumberVerifier(rule="strict")
    assert asyncio.run(verifier.verify(Question("q", "", "18"), completion)).outcome == outcome


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="no rule 'loose' for numbers; choose from value, strict"):
        NumberVerifier(rule="loose")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unit",
    [
        "answer is ",
        "1,111",
        "1/1",
        "9",
        "$",
        "\\frac{1}{",
        "\\boxed{",
        "\\boxed{5}",
        "answer: 5? ",
        "5 * ",
        "5 or ",
        "\n",
        "**Answer**\n5\n",
        "answer **",
        "- ",
        "<answer>",
        ", ",
        "= 5 x",
        "{",
        "\\",
    ],
)
def test_hostile_completions_take_no_time(unit: str) -> None:
    for text in (unit * (300_000 // len(unit)), "\\boxed{" + unit * 20_000 + "}"):
        for cut in (False, True):
            start = time.process_time()
            find_numbers(text, cut=cut, prompt=PROBLEM)
            assert time.process_time() - start < 2.5
