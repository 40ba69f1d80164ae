from __future__ import annotations

import re
import time
from fractions import Fraction
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers import number_parser
from fttt.verifiers.number_parser import Number, parse_number, scan_numbers

SPACES = ("", " ", "\\,", "\\;", "~", "\u2009", "\u00a0")
GAPS = (",", "{,}", "\\,", "\\ ", "\\;", "\\:", "\\!", "~", "'", " ", "\u2009", "\u202f", ",\\!")
MINUS = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
VULGAR = {"½": "1/2", "¾": "3/4", "⅔": "2/3", "⅕": "1/5", "⅛": "1/8"}
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
WIDE = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))

Written = tuple[str, Fraction]
"""A text, and the number that it is."""


def grouped(number: int, gap: str) -> str:
    return f"{number:,}".replace(",", gap)


@st.composite
def whole(draw: st.DrawFn) -> Written:
    number = draw(st.integers(0, 10**10))
    text = draw(
        st.sampled_from(
            [str(number), str(number).translate(WIDE), f"00{number}"]
            + [grouped(number, gap) for gap in GAPS]
        )
    )
    return text, Fraction(number)


@st.composite
def decimal(draw: st.DrawFn) -> Written:
    before, number = draw(whole())
    digits = draw(st.text("0123456789", min_size=1, max_size=6))
    return f"{before}.{digits}", number + Fraction(int(digits), 10 ** len(digits))


@st.composite
def repeating(draw: st.DrawFn) -> Written:
    first = draw(st.text("0123456789", max_size=3))
    again = draw(st.text("0123456789", min_size=1, max_size=3))
    before = draw(st.integers(0, 99))
    dotted = f"\\dot{{{again[0]}}}" + (f"{again[1:-1]}\\dot{{{again[-1]}}}" if again[1:] else "")
    ways = (f"\\overline{{{again}}}", f"\\bar{{{again}}}", dotted, f"({again})")
    value = Fraction(int(f"{before}{first}")) + Fraction(int(again), 10 ** len(again) - 1)
    return f"{before}.{first}{draw(st.sampled_from(ways))}", value / 10 ** len(first)


@st.composite
def fraction(draw: st.DrawFn) -> Written:
    (top, above), (bottom, below) = draw(decimal() | whole()), draw(decimal() | whole())
    if below == 0:
        bottom, below = "7", Fraction(7)
    command = draw(st.sampled_from(["\\frac", "\\dfrac", "\\tfrac", "\\cfrac", "\\nicefrac"]))
    sign = draw(st.sampled_from(["", "-", "\u2212 "]))
    space = draw(st.sampled_from(["", " "]))
    value = (-above if sign else above) / below
    return f"{command}{{{space}{sign}{top}{space}}}{space}{{{bottom}{space}}}", value


@st.composite
def short_fraction(draw: st.DrawFn) -> Written:
    top, bottom = draw(st.integers(0, 9)), draw(st.integers(1, 9))
    ways = (f"\\frac{top}{bottom}", f"\\tfrac {top} {bottom}", f"\\frac{top}{{{bottom}}}",
            f"\\dfrac{{{top}}}{bottom}", f"{top}/{bottom}", f"{top} / {bottom}",
            f"{top}\u2044{bottom}")  # fmt: skip
    return draw(st.sampled_from(ways)), Fraction(top, bottom)


@st.composite
def mixed(draw: st.DrawFn) -> Written:
    number = draw(st.integers(1, 9999))
    bottom = draw(st.integers(2, 30))
    top = draw(st.integers(1, bottom - 1))
    symbol, value = draw(st.sampled_from([*VULGAR.items()]))
    space = draw(st.sampled_from(SPACES))
    if draw(st.booleans()):
        return f"{number}{space}{symbol}", number + Fraction(value)
    way = draw(st.sampled_from(["\\frac{%d}{%d}", "\\tfrac{ %d }{%d}", " %d/%d"]))
    return f"{number}{space}{way % (top, bottom)}", number + Fraction(top, bottom)


@st.composite
def power(draw: st.DrawFn) -> Written:
    text, value = draw(
        st.sampled_from([("5", Fraction(5)), ("1.25", Fraction(5, 4)), ("12", Fraction(12))])
    )
    exponent = draw(st.integers(-12, 12))
    times = draw(
        st.sampled_from(["\\times", "*", " \u00d7 ", "\\cdot ", " x ", "\u00b7", "\\times "])
    )
    raised = draw(
        st.sampled_from(
            [
                f"^{{{exponent}}}",
                f"^{exponent}",
                f"**{exponent}",
                f"^({exponent})",
                str(exponent).translate(RAISED),
            ]
        )
    )
    ways = (f"{text}{times}10{raised}", f"{text}e{exponent}", f"{text}E{exponent:+}")
    if draw(st.booleans()):
        return f"10{raised}", Fraction(10) ** exponent
    return draw(st.sampled_from(ways)), value * Fraction(10) ** exponent


@st.composite
def scaled(draw: st.DrawFn) -> Written:
    text, value = draw(whole() | decimal() | mixed() | short_fraction())
    word, times = draw(
        st.sampled_from(
            [
                ("hundred", 100),
                ("thousand", 1000),
                ("million", 10**6),
                ("dozen", 12),
                ("billion", 10**9),
                ("Million", 10**6),
                ("thousands", 1000),
            ]
        )
    )
    ways = (f"{text} {word}", f"{text}\\text{{ {word}}}", f"{text}\\,\\mathrm{{{word}}}",
            f"{text}\\ \\text{{{word}}}")  # fmt: skip
    return draw(st.sampled_from(ways)), value * times


unsigned = (
    whole() | decimal() | repeating() | fraction() | short_fraction() | mixed() | power() | scaled()
)


@st.composite
def written(draw: st.DrawFn) -> Written:
    text, value = draw(unsigned)
    money = draw(st.sampled_from(["", "", "$", "\\$", "€", "£", "US$", "\\text{USD } "]))
    sign = draw(st.sampled_from(["", "", "+", "- ", "-\\,", "negative ", "minus ", *MINUS]))
    negative = sign not in ("", "+")
    text = draw(st.sampled_from([f"{sign}{money}{text}", f"{money}{sign.strip()}{text}"]))
    if "n" in sign and not text.startswith(sign):
        text = f"{sign}{money}{text.removeprefix(money).removeprefix(sign.strip())}"
    return text, -value if negative else value


@given(written())
def test_every_way_to_write_a_number_reads_back_as_that_number(case: Written) -> None:
    text, value = case
    assert parse_number(text) == Number(value)
    for set_around in (f"${text}$", f"\\({text}\\)", f"**{text}**", f"{{{text}}}", f" {text}. "):
        assert parse_number(set_around) == Number(value), set_around


@given(
    written(), st.sampled_from(["The result is {}.", "is **{}** cm", "\\boxed{{{}}} pens", "= {}"])
)
def test_a_number_in_a_sentence_is_one_token(case: Written, sentence: str) -> None:
    text, value = case
    found = scan_numbers(sentence.format(text))
    assert [token.number for token in found] == [Number(value)]
    assert text.startswith(sentence.format(text)[found[0].start : found[0].end][:1])


@given(written())
def test_no_beginning_of_a_token_is_taken_for_it(case: Written) -> None:
    text, value = case
    for end in range(1, len(text)):
        beginning = parse_number(text[:end])
        if beginning is not None and beginning.value != value:
            read = [token.number for token in scan_numbers(f"It is {text} cm.")]
            assert beginning not in read


@given(written())
def test_percent(case: Written) -> None:
    text, value = case
    for sign in ("%", "\\%", " percent", "\\text{ percent}", " per cent"):
        assert parse_number(f"{text}{sign}") == Number(value, percent=True)


@pytest.mark.parametrize(
    "text",
    ["", "x", "five", "5 cm", "5x", "5k", "2\\pi", "2\\mathrm{e}", "3\\sqrt{2}", "\\sqrt{16}", "5!",
     "52_8", "11:30", "11:00", "3:2", "1.2.3", "10.0.0.1", "2024-01-15", "1/2/2024", "5/0", "3 4",
     "10-5", "60,000-25,000", "1,500, 2,500", "1,500,2,500", "2,5", "1,2345", "12 50", "x=5",
     "\\frac{x}{2}", "\\frac{1}{0}", "2\\frac{x}{3}", "5^x", "0^{-1}", "9^{99999}", "1e99999",
     "10^{10^{10}}", "5 \\pm 1", "2(3)", "0.12..."],
)  # fmt: skip
def test_what_is_no_number(text: str) -> None:
    assert parse_number(text) is None


def read(text: str) -> list[str | None]:
    return [None if token.number is None else str(token.number) for token in scan_numbers(text)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("16-3", ["16", "3"]),
        ("60,000 - 25,000 = 35,000", ["60000", "25000", "35000"]),
        ("10 minus 5", ["10", "5"]),
        ("from 5 to -3", ["5", "-3"]),
        ("x - 5", ["5"]),
        ("it fell to - 5", ["-5"]),
        ("(a) -5", ["-5"]),
        ("1,500, 2,500", ["1500", "2500"]),
        ("12 500 and 3 4", ["12500", "3", "4"]),
        ("in 2024 100 pens", ["2024", "100"]),
        ("x2, H_2O, m^2, x_{10}, cm², COVID-19", []),
        ("x_{10} = 5", ["5"]),
        ("5kg, 5 m, 60^\\circ, 5°C, the 5th, 5^{th}", ["5", "5", "60", "5", "5", "5"]),
        ("5x or \\sqrt{16} or 5\\pi", [None, None, None]),
        ("at 7:00 or 7:30, in a ratio of 3:2", ["7", None, None]),
        ("version 1.2.3 of 2024-01-15", [None, None]),
        ("5k for $5M", ["5000", "5000000"]),
        ("18! Wow...", ["18"]),
        ("$x = 4$ or $x = 6$", ["4", "6"]),
        ("$2$ million and **3** dozen", ["2000000", "36"]),
        ("2 hundred-dollar bills", ["2"]),
        ("\u7b54\u6848\u662f5", ["5"]),
        ("_5_ and *6*", ["5", "6"]),
        ("0.333... and 0.1666\u2026", ["1/3", "1/6"]),
        ("1,00,000 and 1.234.567 and 1.234,5", ["100000", "1234567", "1234.5"]),
    ],
)
def test_the_tokens_of_a_text(text: str, numbers: list[str | None]) -> None:
    assert read(text) == numbers


def test_percentages_are_equal_to_their_value_and_vote_with_it() -> None:
    half = parse_number("50%")
    assert half is not None
    assert half.matches(Number(Fraction(1, 2)))
    assert half.matches(Number(Fraction(50)))
    assert not half.matches(Number(Fraction(1, 2), percent=True))
    assert half.plain == Number(Fraction(1, 2))
    assert str(half) == "50%"


@given(st.text(max_size=200) | st.text("0123456789.,-$\\{}^_ /frac½²e%", max_size=80))
def test_spans_are_in_order_and_inside(text: str) -> None:
    parse_number(text)
    places = [place for token in scan_numbers(text) for place in (token.start, token.end)]
    assert places == sorted(places)
    assert all(0 <= place <= len(text) for place in places)
    assert all(token.start < token.end for token in scan_numbers(text))


@pytest.mark.parametrize(
    "unit",
    ["1", "1,", "1,111", "1.111", "1\\,", "1/", "1^", "1e", "0.1\\dot1", "\\frac{", "\\frac{1}{",
     "\\frac1", "{", "\\", "-", "- ", "$", "$-", "minus ", "²", "½", "1:", "1_", "5 million ", "~"],
)  # fmt: skip
def test_hostile_texts_take_linear_time(unit: str) -> None:
    seconds = []
    for length in (2_500, 20_000):
        start = time.process_time()
        scan_numbers(unit * (length // len(unit)))
        parse_number(unit * (length // len(unit)))
        seconds.append(time.process_time() - start)
    assert seconds[1] < 0.2 or seconds[1] < 40 * seconds[0]


ENDS = (
    "", " ", "\n", "\n^", "\n\\over 3", ".", ". So", ".5", "..", "...", ",", ",000", ", \\!000",
    ":", ":00", ":30", ";", "?", "!", "%", " %", ")", "]", "}", "$", "**", "*", " * 3", " * 10^2",
    "=", " = 5", "+", " + 1", "-", " - 3", "-3", " -million", "/", " / 4", "<", '"', "&", "|",
    " eggs", " million", " Dozen", " percent", " per day", " pct", " and a half", " and so on",
    " times 10^3", " times", " x 10^3", " k", " mm", " is 3", " in all", "e5", "k", "x", "th",
    "_8", "^2", " ^2", "²", " ½", "(3)", " (3)", "\\%", "\\pi", "{,}000", " 000", "\u00d7",
    "\u0307",
)  # fmt: skip
"""Texts behind digits."""


@pytest.mark.parametrize(
    "digits", ["0", "7", "12", "007", "1,200", "12,34", "1,200.5", "3.25", "0.", "9" * 15, "9" * 16]
)
def test_plain_digits_are_parsed_as_the_whole_grammar_does(digits: str) -> None:
    texts = [f"{before}{digits}{end}" for end in ENDS for before in ("", "x = -", "US$ ", "of ")]
    quick = [(parse_number(text), scan_numbers(text)) for text in texts]
    with patch.object(number_parser, "_PLAIN", re.compile("(?!)")):
        assert quick == [(parse_number(text), scan_numbers(text)) for text in texts]
