from __future__ import annotations

import asyncio
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.types import JSON, Question, Verdict
from fttt.verifiers.base import Verifier
from fttt.verifiers.number import NumberVerifier, find_number, read_number

QUESTION = Question("q", "")


def judge(gold: JSON, completion: str) -> Verdict:
    return asyncio.run(NumberVerifier().verify(Question("q", "", gold), completion))


def test_it_is_a_verifier() -> None:
    assert isinstance(NumberVerifier(), Verifier)


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The final answer is 18.", "18"),
        ("She makes 9 * 2 = $18 a day.", "18"),
        ("9 eggs at $2: **$18.00**", "18"),
        ("The final answer is $1,234,567 for 3 years.", "1234567"),
        ("The final answer is 9 * 2 = 18 dollars. She has 3 ducks.", "18"),
        ("The final answer is\n\n**18**", "18"),
        ("The final answer is 18. The final answer is", "18"),
        ("#### 18", "18"),
        ("So \\boxed{18} after 3 steps", "18"),
        ("Answer: -5 degrees", "-5"),
        ("It fell to \u22125", "-5"),
        ("She owes -$5.50", "-5.5"),
        ("She owes $-5.50", "-5.5"),
        ("What is 16-3", "3"),
        ("about 50%", "50%"),
        ("\\frac{3}{4}", "0.75"),
        ("1/3", "1/3"),
        ("2 1/2 cups", "2.5"),
        ("10{,}000 or \\$10\\,000", "10000"),
        ("1.5e3 metres", "1500"),
        ("from .5 to 007", "7"),
        ("version 1.2.3", "1.2"),
        ("5/0", "5"),
    ],
)
def test_the_number_that_a_completion_gives(completion: str, number: str) -> None:
    found = find_number(completion)
    expected = read_number(number)
    assert found is not None
    assert expected is not None
    assert (found.value, found.percent) == (expected.value, expected.percent)


@pytest.mark.parametrize(
    "completion", ["", "eighteen", "x2 and H", "The final answer is N.", "..."]
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


@pytest.mark.parametrize("gold", ["none", None, True, ""])
def test_a_gold_without_a_number_is_said(gold: JSON) -> None:
    verdict = judge(gold, "18")
    assert verdict.outcome == "incorrect"
    assert "holds no number" in verdict.detail


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9
    )
)
def test_every_decimal_is_read_exactly(value: object) -> None:
    found = find_number(f"The final answer is {value}.")
    assert found is not None
    assert found.value == Fraction(str(value))
    assert judge(str(value), f"{found}").correct


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_whole_numbers_are_equal_only_where_they_are(first: int, second: int) -> None:
    assert judge(str(first), f"The final answer is {second:,}.").correct == (first == second)


@given(st.text(max_size=300))
def test_no_text_is_too_strange(text: str) -> None:
    assert judge("18", text).outcome in ("correct", "incorrect", "unanswered")


def test_votes_go_together() -> None:
    verifier = NumberVerifier()
    votes = {verifier.extract(QUESTION, text) for text in ("18", "$18.00", "= 18.0", "36/2")}
    assert votes == {"18"}
    assert verifier.extract(QUESTION, "no idea") is None


@pytest.mark.parametrize("unit", ["answer is ", "1,111", "1/1", "9", "$", "\\frac{1}{"])
def test_ten_million_characters_take_no_time(unit: str) -> None:
    text = unit * (10_000_000 // len(unit))
    start = time.perf_counter()
    find_number(text)
    assert time.perf_counter() - start < 2.0
