from __future__ import annotations

from fractions import Fraction

import pytest

from fttt.verifiers.math.lexer import scan
from fttt.verifiers.math.syntax_tree import match_brackets
from fttt.verifiers.math.units import (
    Suffix,
    UnitLetters,
    read_suffix,
    same_things,
    suffix_start,
)


def suffix(text: str) -> Suffix | None:
    return read_suffix(scan(rf"\text{{{text}}}"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("km/h", "kilometers per hour"),
        ("mph", "miles per hour"),
        ("cm^2", "square centimeters"),
        ("sq. cm", "cm^2"),
        ("m/s^2", "meters per second squared"),
        ("in", "inches"),
        ("ft", "foot"),
        ("L", "liters"),
        ("mL", "cc"),
        ("hrs", "hours"),
        ("dollars", "USD"),
        ("kWh", "kilowatthours"),
        ("units^2", "square units"),
    ],
)
def test_one_unit_by_several_names(first: str, second: str) -> None:
    one, other = suffix(first), suffix(second)
    assert one is not None
    assert one.unit is not None
    assert one == other


@pytest.mark.parametrize(
    ("text", "size", "powers"),
    [
        ("km", "1000", (("m", 1),)),
        ("mg", "1/1000000", (("kg", 1),)),
        ("km/h", "5/18", (("m", 1), ("s", -1))),
        ("nm", "1/1000000000", (("m", 1),)),
        ("minutes", "60", (("s", 1),)),
        ("thousand meters", "1", (("m", 1),)),
        ("grams per liter", "1", (("kg", 1), ("m", -3))),
    ],
)
def test_sizes(text: str, size: str, powers: tuple[tuple[str, int], ...]) -> None:
    found = suffix(text)
    assert found is not None
    assert found.unit is not None
    assert (found.unit.scale, found.unit.powers) == (Fraction(size), powers)


@pytest.mark.parametrize(
    "text", ["apples", "ways", "years old", "cups of sugar", "right triangles"]
)
def test_things_that_are_counted(text: str) -> None:
    assert suffix(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "or more",
        "times x",
        "less than",
        "mod 7",
        "out of six",
        "squared",
        "halves",
        "if x",
        "and six",
    ],
)
def test_words_that_change_a_number_are_no_units(text: str) -> None:
    assert suffix(text) is None


def test_factors() -> None:
    million = suffix("million dollars")
    assert million is not None
    assert million.factor == 10**6
    assert suffix("dozen") == Suffix(Fraction(12))


@pytest.mark.parametrize(
    ("text", "units", "start"),
    [
        ("5km", "marked", 1),
        ("5mph", "marked", 1),
        ("5km", "none", None),
        ("5m", "marked", None),  # one letter is a variable unless it is marked
        ("5m", "all", 1),
        (r"5\text{m}", "marked", 1),
        ("5xy", "all", None),
        ("(2x)cm", "all", 4),
        (r"5\frac{\text{m}}{\text{s}}", "marked", 1),
        ("90' ", "none", 1),
        (r"3^{\text{rd}}", "none", 1),
    ],
)
def test_letters_that_are_units(text: str, units: UnitLetters, start: int | None) -> None:
    tokens = scan(text)
    end = len(tokens)
    assert suffix_start(tokens, match_brackets(tokens), 0, end, units) == (start or end)


def test_things_in_common() -> None:
    assert same_things(frozenset({"triangle", "right"}), frozenset({"triangle"}))
    assert same_things(frozenset(), frozenset({"dog"}))
    assert same_things(frozenset({"way"}), frozenset({"arrangement"}))
    assert not same_things(frozenset({"dog"}), frozenset({"cat"}))


def test_the_rate_of_a_price_may_be_left_out() -> None:
    hourly = suffix("dollars per hour")
    assert hourly is not None
    assert hourly.things == {"per hour"}
    assert hourly.unit == suffix("dollars").unit  # type: ignore[union-attr]
