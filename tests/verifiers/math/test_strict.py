from __future__ import annotations

import pytest

from fttt.verifiers.math.strict import same_string, strict_form


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", r"\dfrac{1}{2}"),
        (r"\frac{1}{2}", r"\tfrac12"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", ".5"),
        (r"\frac1b", r"\frac{1}{b}"),
        (r"\frac1{20}", r"\frac{1}{20}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"10,\!080", "10,080"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        (r"\$5", "5"),
        ("x = 5", "5"),
        (r"5 \text{ cm}", "5"),
        ("3 + 4", "3+4"),
    ],
)
def test_the_same_string(gold: str, answer: str) -> None:
    assert same_string(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{4}", "0.25"),
        ("1,2", "2,1"),
        ("2x+1", "1+2x"),
        ("abc = 5", "5"),
        ("5", "6"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
    ],
)
def test_what_the_rule_calls_different(gold: str, answer: str) -> None:
    assert not same_string(gold, answer)


def test_the_form_is_stable() -> None:
    for answer in (r"\dfrac12", "x=5", r"3\sqrt2", "-1/3", ""):
        assert strict_form(strict_form(answer)) == strict_form(answer)
