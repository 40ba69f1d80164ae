r"""Reads values with what stands around them: currencies, units of measurement, counted things."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from fttt.verifiers.math.commands import CommandReader
from fttt.verifiers.math.notation import NotUnderstoodError, Token
from fttt.verifiers.math.symbols import FUNCTIONS
from fttt.verifiers.math.tree import EXPRESSIONS, Node, number
from fttt.verifiers.math.units import Suffix, currency, degree_of, is_unit, read_suffix

__all__ = ["MeasureReader", "Units"]

Units = Literal["none", "marked", "all"]
r"""Which letters may be units: none; those in ``\text`` and names of two letters or more; all."""

_UNIT_LETTERS = frozenset("mgshLlNJWVAKCFt")


class MeasureReader(CommandReader):
    """Adds quantities to expressions."""

    def __init__(self, tokens: tuple[Token, ...], units: Units, *, tight: bool) -> None:
        super().__init__(tokens, tight=tight)
        self.units = units

    def value(self, low: int, high: int) -> Node:
        """What has a unit behind it; the reader of whole answers says more."""
        return self.expression(low, high)

    def word(self, place: int) -> str:
        """The word at a place, in lower case; empty where none stands there."""
        if place >= len(self.tokens):
            return ""
        token = self.tokens[place]
        return token.text.lower() if token.kind == "word" else ""

    def outside(self, low: int, high: int) -> list[int]:
        """The places of the span that are outside all brackets (opening ones included)."""
        places, place = [], low
        while place < high:
            places.append(place)
            place = self.partner.get(place, place) + 1
        return places

    def measure(self, low: int, high: int, unit: Suffix | None) -> Node | None:
        """An expression, its currency and the words behind it; ``None`` where those say more."""
        signs = [n for n in self.outside(low, high) if self.tokens[n].text.startswith("currency ")]
        if signs:
            return self.money(low, signs[0], high)
        temperature = self.temperature(low, high)
        if temperature is not None:
            return temperature
        end = self.suffix_start(low, high)
        value = self.value(low, end)
        if end < high:
            return self.with_suffix(value, unit, end, high) if value.head in EXPRESSIONS else None
        if unit is not None:
            return Node("quantity", (value,), unit) if value.head in EXPRESSIONS else None
        if value.head == "degree":
            return Node("quantity", value.args, Suffix(unit=degree_of(None)))
        return value

    def money(self, low: int, sign: int, high: int) -> Node | None:
        """A value with the sign of a currency before or behind it."""
        unit = Suffix(unit=currency(self.tokens[sign].text.removeprefix("currency ")))
        if sign == low:
            return self.measure(low + 1, high, unit)
        if sign == high - 1:
            return Node("quantity", (self.value(low, sign),), unit)
        if sign > low + 1 or not self.tokens[low].sign("-"):
            raise NotUnderstoodError("a currency within an expression")
        inner = self.measure(sign + 1, high, unit)  # "-$5"
        if inner is None or inner.head != "quantity":
            return None
        return Node("quantity", (Node("neg", inner.args),), inner.data)

    def with_suffix(self, value: Node, unit: Suffix | None, low: int, high: int) -> Node | None:
        """A value and the unit or things that the words behind it are."""
        after = next((n for n in range(low + 1, high) if self.is_count(n)), high)
        suffix = read_suffix(self.tokens[low:after], unit.unit if unit is not None else None)
        if suffix is None:
            return None
        if suffix.factor != 1:
            value = Node("mul", (value, number(suffix.factor)))
            suffix = Suffix(Fraction(1), suffix.unit, suffix.things)
        if suffix.unit is not None and suffix.unit.powers == (("%", 1),):
            return Node("percent", (value,))
        node = Node("quantity", (value,), suffix)
        if after == high:
            return node
        rest = self.measure(after, high, None)  # "5 feet 6 inches"
        return None if rest is None else self.mixed_quantity([node, rest])

    def is_count(self, place: int) -> bool:
        """Whether a number stands there that is no power of a unit."""
        return self.tokens[place].kind == "number" and not self.tokens[place - 1].sign(
            "^", "{", "-"
        )

    def temperature(self, low: int, high: int) -> Node | None:
        """Degrees of Celsius or Fahrenheit."""
        last = self.tokens[high - 1]
        before = [t for t in self.tokens[low : high - 1] if not t.sign("{", "}")]
        if last.text not in ("C", "F") or len(before) < 3 or not before[-1].command("circ"):
            return None
        node = self.expression(low, high - 1)
        if node.head != "degree":
            return None
        return Node("quantity", node.args, Suffix(unit=degree_of(last.text)))

    def suffix_start(self, low: int, high: int) -> int:
        """Where the words or units behind an expression begin; ``high`` where there are none."""
        for place in self.outside(low, high)[1:]:
            token, before = self.tokens[place], self.tokens[place - 1]
            if token.sign("^") and self.word(place + 2) in ("st", "nd", "rd", "th"):
                return place
            ended = before.kind in ("number", "letter") or before.sign("}", ")", "]", "%", "!")
            ended = ended or before.command("pi", "infty")
            if not ended and token.kind != "word":
                continue
            if token.sign("'", '"') and before.kind == "number":
                return place
            if token.kind == "word" and token.text not in FUNCTIONS - {"min", "max", "sec"}:
                return place
            if token.command("sec", "min") and place == high - 1:
                return place
            if token.command("frac") and self.is_fraction_of_units(place):
                return place
            if token.kind == "letter" and self.is_unit_run(place, high, before):
                return place
            if (
                token.sign("*")
                and place + 1 < high
                and (self.word(place + 1) or self.is_unit_run(place + 1, high, before))
            ):
                return place + 1 if not self.word(place + 1) else high
        return high

    def is_fraction_of_units(self, place: int) -> bool:
        inside = self.tokens[place + 1 : self.partner.get(place + 1, place) + 1]
        letters = [t for t in inside if not t.sign("{", "}")]
        return bool(letters) and all(t.kind == "word" or t.upright for t in letters)

    def is_unit_run(self, place: int, high: int, before: Token) -> bool:
        """Whether letters behind a number are the symbol of a unit, and all that follows."""
        if self.units == "none":
            return False
        token, end = self.tokens[place], place + 1
        while (
            end < high
            and self.tokens[end].kind == "letter"
            and not self.tokens[end].spaced
            and self.tokens[end].upright == token.upright
        ):
            end += 1
        run = "".join(t.text for t in self.tokens[place:end])
        if run == "\\mu" and end < high and self.tokens[end].kind in ("letter", "word"):
            run += f" {self.tokens[end].text}"
        if len(run) == 1:
            allowed = token.upright or (self.units == "all" and before.kind != "letter")
            if not allowed or run not in _UNIT_LETTERS:
                return False
        elif not is_unit(run) or before.kind == "letter":
            return False
        after = next((n for n in range(place + 1, high) if self.is_count(n)), high)
        suffix = read_suffix(self.tokens[place:after])
        return suffix is not None and suffix.unit is not None

    def mixed_quantity(self, parts: list[Node]) -> Node | None:
        """``2 hours and 30 minutes`` as one quantity, where the parts are that."""
        if len(parts) != 2 or any(part.head != "quantity" for part in parts):
            return None
        first, second = (part.data.unit for part in parts)
        if first is None or second is None or first.powers != second.powers:
            return None
        if first.scale <= second.scale:
            return None
        larger = Node("mul", (number(first.scale / second.scale), parts[0].args[0]))
        return Node("quantity", (Node("add", (larger, parts[1].args[0])),), parts[1].data)
