from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.tasks.perturb import (
    echoes,
    number_lists,
    rewritten_answers,
    wrong_answers,
    wrong_programs,
)


def test_wrong_answers() -> None:
    assert wrong_answers("18") == ["19", "-18", "180"]
    assert wrong_answers("-18") == ["-19", "18", "-180"]
    assert wrong_answers("0") == ["1"]
    assert wrong_answers("(3,4]") == ["(4,4]", "(3,5]", "(4,3]", "[3,4]"]
    assert wrong_answers(r"\text{east}") == [r"\text{something else}"]
    assert wrong_answers("p - q") == ["p - q+1"]


@given(st.integers(-(10**9), 10**9))
def test_wrong_numbers_are_wrong(number: int) -> None:
    wrong = wrong_answers(str(number))
    assert wrong
    assert all(Fraction(answer) != number for answer in wrong)


@pytest.mark.parametrize(
    "gold", ["18", "1,2", r"\frac{1}{2}", "x+1", "(1,2)", r"\text{east}", "10,\\!080"]
)
def test_rewritten_answers_differ_in_writing_only(gold: str) -> None:
    rewritten = rewritten_answers(gold)
    assert rewritten
    assert len(set(rewritten)) == len(rewritten)


def test_echoes() -> None:
    prompt = "Think.\n\nTom has 5 pens. He buys 7. How many?\n\nAnswer at the end."
    assert echoes(prompt) == [
        prompt,
        "Tom has 5 pens. He buys 7. How many?",
        "Tom has 5 pens. He buys 7.",
        "Tom has 5 pens.",
    ]
    assert echoes("What is it?") == ["What is it?"]


def test_number_lists_end_with_the_number() -> None:
    lists = number_lists("12")
    assert lists[0] == "10, 11, 12"
    assert all(text.rstrip(".:").endswith("12") for text in lists)
    assert len(number_lists("-0.5")) < len(lists)
    assert number_lists("x") == []


def test_wrong_programs() -> None:
    nothing, raising = wrong_programs("LIMIT = 3\ndef f(a):\n    return a\nclass C:\n    pass\n")
    space: dict[str, object] = {}
    exec(nothing, space)
    function = space["f"]
    assert callable(function)
    assert function(1) is None
    exec(raising, space)
    function = space["f"]
    assert callable(function)
    with pytest.raises(NotImplementedError):
        function(1)
