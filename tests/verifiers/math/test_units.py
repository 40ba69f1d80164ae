from __future__ import annotations

from fractions import Fraction

import pytest

from fttt.verifiers.math.notation import scan
from fttt.verifiers.math.units import Suffix, is_unit, read_suffix, same_things


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


def test_letters_that_are_units() -> None:
    assert is_unit("km")
    assert is_unit("mph")
    assert not is_unit("m")  # one letter is a variable unless it is marked
    assert not is_unit("xy")


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
