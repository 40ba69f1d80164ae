from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers.latex import compact, rational, spoken, tidy, unit_of, without_units


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"$\dfrac12$.", r"\frac{1}{2}"),
        (r"\left( 3, \tfrac{\pi}{2} \right)", r"( 3, \frac{\pi}{2} )"),
        (r"10,\!080", "10080"),
        ("1{,}008{,}016", "1008016"),
        ("1,234", "1234"),
        ("1, 234", "1, 234"),
        ("(1,234)", "(1,234)"),
        ("0,123", "0,123"),
        (r"2 \text{ or } 3", "2 , 3"),
        (r"\frac\pi 2", r"\frac{\pi}{2}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\text{A, B}", "A, B"),
        ("3 \u2264 x", r"3 \le x"),
        (r"\textbf{(C)}", r"\text{(C)}"),
    ],
)
def test_one_spelling(text: str, plain: str) -> None:
    assert tidy(text) == plain


@given(st.text(alphabet="0123456789,.{}\\frac!$ ()ab^_", max_size=60))
def test_a_tidy_text_stays_as_it_is(text: str) -> None:
    once = tidy(text)
    assert tidy(once) == tidy(tidy(once))
    assert compact(compact(once)) == compact(once)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", Fraction(3)),
        ("-3", Fraction(-3)),
        ("- 3", Fraction(-3)),
        ("3.50", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"-1\frac{4}{5}", Fraction(-9, 5)),
        ("1 4/5", Fraction(9, 5)),
        (r"2\frac{4}{3}", Fraction(8, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
    ],
)
def test_exact_values(text: str, value: Fraction) -> None:
    assert rational(text) == (value, False)


@pytest.mark.parametrize("text", ["", "x", "1/0", r"\frac{1}{0}", "1..2", "3,4", "2^2", "9" * 2000])
def test_what_is_no_number(text: str) -> None:
    assert rational(text) is None


@pytest.mark.parametrize("text", [r"17\%", "17%", "17 percent", r"17\text{ percent}"])
def test_percentages(text: str) -> None:
    assert rational(text) == (Fraction(17), True)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_every_fraction_is_read_exactly(top: int, bottom: int) -> None:
    assert rational(f"\\frac{{{top}}}{{{bottom}}}") == (Fraction(top, bottom), False)
    assert rational(f"{top}/{bottom}") == (Fraction(top, bottom), False)


@pytest.mark.parametrize(
    ("text", "bare", "unit"),
    [
        (r"864 \text{ inches}^2", "864", "inch^2"),
        (r"12 \text{ square feet}", "12", "foot^2"),
        ("15 cm^2", "15", "centimeter^2"),
        ("5 dollars", "5", "dollar^1"),
        (r"575\text{ students}", "575", None),
        (r"90^\circ", "90", None),
        (r"\cos 58^\circ", r"\cos 58^\circ", None),
        (r"\text{east}", r"\text{east}", None),
        ("x", "x", None),
    ],
)
def test_units(text: str, bare: str, unit: str | None) -> None:
    assert without_units(text) == bare
    assert unit_of(text) == unit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"\text{Evelyn}", "evelyn"),
        ("Evelyn", "evelyn"),
        (r"\text{(C)}", "C"),
        (r"\text{two lines}", "two lines"),
        ("October 30", "october 30"),
        ("xyz", None),
        ("2x", None),
        (r"\text{5}", None),
    ],
)
def test_words(text: str, words: str | None) -> None:
    assert spoken(text) == words
