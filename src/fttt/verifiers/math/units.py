r"""Units of measurement, and parser of the words behind a number.

``5\text{ km/h}`` is a quantity, ``5\text{ apples}`` a number of things, ``5\text{ million}``
another number, and ``5\text{ or more}`` none of these. A unit is its powers of base units and its
size in them, so that ``1\text{ m}`` is ``100\text{ cm}`` and no ``5\text{ mg}`` is
``5\text{ kg}``. Whatever is neither a known unit nor plainly the name of a thing is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fttt.verifiers.math.lexer import FUNCTIONS, Token, word_set
from fttt.verifiers.math.syntax_tree import outside

__all__ = [
    "Suffix",
    "Unit",
    "UnitLetters",
    "currency",
    "degree_of",
    "is_count",
    "read_suffix",
    "same_things",
    "suffix_start",
    "word_at",
]


@dataclass(frozen=True, slots=True)
class Unit:
    """A product of powers of base units, times ``scale``."""

    powers: tuple[tuple[str, int], ...]
    scale: Fraction = Fraction(1)

    def times(self, other: Unit, power: int) -> Unit:
        powers = dict(self.powers)
        for base, one in other.powers:
            powers[base] = powers.get(base, 0) + one * power
        scale = self.scale * other.scale**power
        return Unit(tuple(sorted((b, p) for b, p in powers.items() if p)), scale)


@dataclass(frozen=True, slots=True)
class Suffix:
    """The words behind a number: a factor (``million``), a unit, and names of things."""

    factor: Fraction = Fraction(1)
    unit: Unit | None = None
    things: frozenset[str] = frozenset()


_NONE = Unit(())
_PREFIXES = {
    "giga": ("G", 9),
    "mega": ("M", 6),
    "kilo": ("k", 3),
    "hecto": ("h", 2),
    "deci": ("d", -1),
    "centi": ("c", -2),
    "milli": ("m", -3),
    "micro": ("u", -6),
    "nano": ("n", -9),
    "pico": ("p", -12),
}

# Name in full, symbol, powers of base units, size in those. Each takes the prefixes above.
_METRIC = """
meter,metre m m 1
gram g kg 1/1000
second s,sec s 1
liter,litre L,l m^3 1/1000
newton N kg*m*s^-2 1
joule J kg*m^2*s^-2 1
watt W kg*m^2*s^-3 1
pascal Pa kg*m^-1*s^-2 1
hertz Hz cycle*s^-1 1
volt V kg*m^2*s^-3*A^-1 1
ampere,amp A A 1
ohm \\Omega kg*m^2*s^-3*A^-2 1
coulomb C A*s 1
farad F kg^-1*m^-2*s^4*A^2 1
mole mol mol 1
calorie cal kg*m^2*s^-2 523/125
bit bit bit 1
byte B bit 8
electronvolt eV eV 1
hectare ha m^2 10000
watthour Wh kg*m^2*s^-2 3600
tesla T kg*s^-2*A^-1 1
weber Wb kg*m^2*s^-2*A^-1 1
lumen lm lumen 1
lux lx lumen*m^-2 1
becquerel Bq decay*s^-1 1
tonne t kg 1000
"""

# Names (a plural with "s" or "es" is understood), powers of base units, size in those.
_OTHER = """
inch,inches,in m 127/5000
foot,feet,ft m 381/1250
yard,yd m 1143/1250
mile,mi m 201168/125
acre m^2 316160658/78125
ounce,oz kg 45359237/1600000000
pound,lb kg 45359237/100000000
ton kg 45359237/50000
gallon,gal m^3 473176473/125000000000
quart,qt m^3 473176473/500000000000
pint,pt m^3 473176473/1000000000000
cup m^3 473176473/2000000000000
tablespoon,tbsp m^3 473176473/32000000000000
teaspoon,tsp m^3 473176473/96000000000000
cc m^3 1/1000000
minute,min s 60
hour,hr,h s 3600
day s 86400
week,wk s 604800
fortnight s 1209600
month,mo month 1
year,yr month 12
decade month 120
century,centuries month 1200
mph m*s^-1 1397/3125
kph,kmh,kmph m*s^-1 5/18
knot m*s^-1 463/900
rpm,revolutions_per_minute revolution*s^-1 1/60
atmosphere,atm kg*m^-1*s^-2 101325
kelvin,K K 1
degree,deg degree 1
radian,rad radian 1
celsius celsius 1
fahrenheit fahrenheit 1
gm kg 1/1000
cycle,cycles cycle 1
revolution,rev revolution 1
unit unit 1
dollar,buck,usd USD 1
cent,\u00a2 USD 1/100
penny,pennies,pence penny 1
euro,eur EUR 1
pounds_sterling,gbp GBP 1
yen,jpy JPY 1
rupee,inr,rs INR 1
yuan,cny,rmb CNY 1
point point 1
mpg m^-2 201168000000000/473176473
fps m*s^-1 381/1250
bpm beat*s^-1 1/60
wpm word*s^-1 1/60
psi kg*m^-1*s^-2 8896443230521/1290320000
bar kg*m^-1*s^-2 100000
torr,mmhg kg*m^-1*s^-2 101325/760
horsepower,hp kg*m^2*s^-3 37284993579113511/50000000000000
btu kg*m^2*s^-2 52752792631/50000000
angstrom m 1/10000000000
lightyear,light-year,ly m 9460730472580800
stone kg 635029318/100000000
furlong m 201168/1000
fathom m 18288/10000
decibel,db decibel 1
ppm % 1/10000
carat,ct kg 1/5000
barrel,bbl m^3 158987294928/1000000000000
percent % 1
"""
_NOT_AFTER_PREFIX = {"tonne", "hectare"}
_SYMBOLS: dict[str, Unit] = {}
"""Units by symbol, with case."""
_WORDS: dict[str, Unit] = {}
"""Units by name, in lower case."""


def _base(text: str, scale: str) -> Unit:
    powers = {}
    for part in text.split("*"):
        name, _, power = part.partition("^")
        powers[name] = int(power or 1)
    return Unit(tuple(sorted(powers.items())), Fraction(scale))


def _fill() -> None:
    for line in _OTHER.strip().splitlines():
        names, powers, scale = line.split()
        for name in names.split(","):
            word = name.replace("_", " ")
            for form in (word, f"{word}s", f"{word}es"):
                _WORDS.setdefault(form.lower(), _base(powers, scale))
    for line in _METRIC.strip().splitlines():
        names, symbols, powers, scale = line.split()
        unit = _base(powers, scale)
        for prefix, (letter, power) in {"": ("", 0), **_PREFIXES}.items():
            if prefix and names.split(",")[0] in _NOT_AFTER_PREFIX:
                continue
            sized = Unit(unit.powers, unit.scale * Fraction(10) ** power)
            for name in names.split(","):
                for form in (name, f"{name}s"):
                    _WORDS.setdefault(prefix + form, sized)
            for symbol in symbols.split(","):
                _SYMBOLS.setdefault(letter + symbol, sized)
    for plural in ("cms", "kms", "mms", "kgs"):
        _SYMBOLS[plural] = _SYMBOLS[plural[:-1]]
    for prefix in ("\\mu ", "\u03bc"):
        _SYMBOLS.update({prefix + s[1:]: u for s, u in list(_SYMBOLS.items()) if s[0] == "u"})
    for symbol, word in (("C", "celsius"), ("F", "fahrenheit")):
        _SYMBOLS["degree " + symbol] = _WORDS[word]


_fill()

_FACTORS = {
    "tens": 10,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_FACTORS |= {f"{name}s": size for name, size in _FACTORS.items()}
_SQUARE = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}

_OTHER_MEANING = word_set(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
    "eighty ninety half halves third thirds fourth fourths quarter quarters fifth fifths "
    "eighth tenth tenths hundredth hundredths thousandth thousandths double triple twice "
    "thrice gross score couple pair pairs more less fewer least most greater larger bigger "
    "smaller higher lower over under above below up down beyond exceeding maximum minimum max"
    " min or and nor not no none never non except without but besides plus minus times "
    "multiplied divided by product sum difference squared cubed factorial power root square "
    "cube raised exponent log modulo mod modulus remainder reciprocal inverse negative "
    "opposite choose permute base binary hex octal ratio to out of than from until through "
    "between if when unless where whenever for as is are was be equals equal isn aren will "
    "would infinity infinite infinitely false wrong incorrect impossible undefined "
    "kilo mega giga milli micro nano "
    "approximately about roughly "
    "doubled tripled halved quadrupled"
)
"""Words that change the number before them, or make a statement of it."""
_MEANINGLESS = word_set(
    "a an the in total all only exactly altogether respectively each answer inclusive"
)
_ANY_THING = word_set(
    "way thing item piece object value time number people solution element member outcome"
)
"""General names of things, in place of the proper one."""
_ORDINALS = frozenset({"st", "nd", "rd", "th"})
_NAME = re.compile(r"(?=.*[aeiouyAEIOUY])[A-Za-z][A-Za-z'-]{2,}")


def currency(code: str) -> Unit:
    """The unit of a currency by its code."""
    return Unit(((code, 1),))


def degree_of(scale: str | None) -> Unit:
    """Degrees of an angle, or of Celsius or Fahrenheit by their letter."""
    return _WORDS["degree"] if scale is None else _SYMBOLS[f"degree {scale}"]


def same_things(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether two counts may be of the same things: by a common or a general name."""
    if not first or not second or first & second:
        return True
    return bool(first & _ANY_THING or second & _ANY_THING)


def _is_money(unit: Unit) -> bool:
    return len(unit.powers) == 1 and unit.powers[0][0].isupper() and len(unit.powers[0][0]) == 3


def _find(name: str) -> Unit | None:
    found = _SYMBOLS.get(name) or _WORDS.get(name.lower())
    if found is None and len(name) > 1:
        found = _SYMBOLS.get(name.lower())
    return found


def read_suffix(tokens: Sequence[Token], unit: Unit | None = None) -> Suffix | None:
    """The suffix in the tokens behind a number; ``None`` if they cannot be parsed.

    ``unit`` is the currency before the number, if there is one.
    """
    reader = _SuffixParser(tokens, unit or _NONE)
    return reader.read()


class _SuffixParser:
    """Parses ``thousand square meters per hour`` and the like, once."""

    def __init__(self, tokens: Sequence[Token], unit: Unit) -> None:
        self.tokens = [t for t in _joined(tokens) if not t.sign(".", "{", "}", ",")]
        self.place = 0
        self.unit = unit
        self.things: set[str] = set()

    def read(self) -> Suffix | None:
        factor = Fraction(1)
        money = self.unit
        while (size := _FACTORS.get(self.word())) is not None:
            factor *= size
            self.place += 1
        if self.word() == "of":
            self.place += 1
        below = False
        while self.place < len(self.tokens):
            token = self.tokens[self.place]
            if token.sign("/") or (self.word() in ("per", "an", "a") and self.unit is not _NONE):
                if below or not (self.unit is not _NONE or self.things):
                    return None
                below = True
            elif self.word() == "of" and (self.unit is not _NONE or self.things):
                pass  # "cups of sugar"
            elif self.word() == "in" and self.word(1) in ("total", "all"):
                self.place += 1
            elif token.sign("*"):
                if self.unit is _NONE or below:
                    return None
            elif token.sign("^") and self.place == 0 and self.word(1) in _ORDINALS:
                pass
            elif below and _is_money(self.unit):  # the rate may be left out
                self.things.add(f"per {self.word()}")
                self.place += 1
                below = False
                continue
            elif self.unit is money is not _NONE and _find(token.text) == money:
                self.place += 1  # "$5 dollars"
                continue
            elif not self.part(-1 if below else 1):
                return None
            else:
                below = False
                continue
            self.place += 1
        if below:
            return None
        things = frozenset(self.things)
        return Suffix(factor, self.unit if self.unit.powers else None, things)

    def word(self, ahead: int = 0) -> str:
        """The next word in lower case; empty without one."""
        place = self.place + ahead
        if place >= len(self.tokens):
            return ""
        token = self.tokens[place]
        return token.text.lower() if token.kind in ("word", "letter", "command") else ""

    def part(self, sign: int) -> bool:
        """A unit with its power, or a thing; moves behind it."""
        power = 1
        if self.word() in ("square", "sq", "cubic", "cu"):
            power = _SQUARE[self.word()]
            if not self.word(1):
                return False
            self.place += 1
        token = self.tokens[self.place]
        if token.sign("'", '"'):  # feet and inches
            twice = self.tokens[self.place + 1 : self.place + 2] == [token]
            self.place += 2 if twice else 1
            inches = twice or token.sign('"')
            self.unit = self.unit.times(_WORDS["inch" if inches else "foot"], sign)
            return True
        if token.kind not in ("word", "letter", "command"):
            return False
        double = f"{token.text} {self.word(1)}".lower()
        found = _WORDS.get(double) if " " in double.strip() else None
        if found is not None:
            self.place += 1
        elif self.word() in ("degree", "degrees", "deg") and self.word(1):
            scale = {"c": "C", "f": "F", "celsius": "C", "fahrenheit": "F"}.get(self.word(1))
            found = degree_of(scale)
            self.place += scale is not None
        else:
            found = _find(token.text)
        self.place += 1
        if found is None:
            return power == 1 and self.thing(token, sign)
        if self.things and sign > 0:  # "2 apples in" and the like
            return False
        raised = self.power()
        if raised is None:
            return False
        self.unit = self.unit.times(found, sign * power * raised)
        return True

    def power(self) -> int | None:
        """The power behind a unit, 1 without one, ``None`` for other than whole numbers."""
        if self.word() in ("squared", "cubed"):
            self.place += 1
            return _SQUARE[self.word(-1)]
        if self.place >= len(self.tokens) or not self.tokens[self.place].sign("^"):
            return 1
        self.place += 1
        sign = 1
        if self.place < len(self.tokens) and self.tokens[self.place].sign("-"):
            self.place += 1
            sign = -1
        value = self.tokens[self.place].value if self.place < len(self.tokens) else None
        self.place += 1
        if value is None or value.denominator != 1 or not 0 < value < 10:
            return None
        return sign * int(value)

    def thing(self, token: Token, sign: int) -> bool:
        word = token.text.lower()
        if word in _MEANINGLESS or (word in _ORDINALS and self.place <= 2):
            return True
        if word == "times" and self.place == len(self.tokens):  # "3 times", and not "3 times x"
            self.things.add("time")
            return True
        if word in _OTHER_MEANING or token.kind != "word" or not _NAME.fullmatch(token.text):
            return False
        if sign < 0:
            self.unit = self.unit.times(Unit(((_one(word), 1),)), -1)
        else:
            self.things.add(_one(word))
        return True


def _one(word: str) -> str:
    """A noun in the singular, by a rough rule that is sufficient for comparison."""
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word if word.endswith("ss") else word.removesuffix("s")


def _joined(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with ``\\frac{m}{s}`` as ``m/s`` and adjacent letters as one word."""
    flat: list[Token] = []
    for place, token in enumerate(tokens):
        if token.command("frac"):
            continue
        if token.sign("}") and place + 1 < len(tokens) and tokens[place + 1].sign("{"):
            flat.append(Token("sign", "/"))
            continue
        last = flat[-1] if flat else None
        if last is not None and last.text == "\\mu" and token.kind in ("letter", "word"):
            flat[-1] = Token("word", f"\\mu {token.text}", upright=True)
            continue
        if (
            token.kind == "letter"
            and last is not None
            and last.kind in ("letter", "word")
            and not token.spaced
            and token.upright == last.upright
            and len(token.text) == 1
        ):
            flat[-1] = Token("word", last.text + token.text, upright=token.upright)
            continue
        flat.append(token)
    return flat


# ---- where a suffix begins

UnitLetters = Literal["none", "marked", "all"]
r"""Which letters may be units: none; those in ``\text`` and names of two letters or more; all."""
_UNIT_LETTERS = frozenset("mgshLlNJWVAKCFt")


def word_at(tokens: Sequence[Token], place: int) -> str:
    """The word at an index, in lower case; empty without one."""
    if place >= len(tokens) or tokens[place].kind != "word":
        return ""
    return tokens[place].text.lower()


def is_count(tokens: Sequence[Token], place: int) -> bool:
    """Whether the token is a number, and no power of a unit."""
    return tokens[place].kind == "number" and not tokens[place - 1].sign("^", "{", "-")


def suffix_start(
    tokens: Sequence[Token], partner: Mapping[int, int], low: int, high: int, units: UnitLetters
) -> int:
    """The index at which the words or units behind an expression begin; ``high`` without any.

    Args:
        tokens: the tokens of the whole answer.
        partner: the closing bracket of each opening one.
        low: the first token of the expression.
        high: the end of the span.
        units: which letters may be units.
    """
    for place in outside(partner, low, high)[1:]:
        token, before = tokens[place], tokens[place - 1]
        if token.sign("^") and word_at(tokens, place + 2) in _ORDINALS:
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
        above = tokens[place + 1 : partner.get(place + 1, place) + 1]
        if token.command("frac") and _are_upright(above):
            return place
        if token.kind == "letter" and _is_symbol(tokens[place:high], before, units):
            return place
        if token.sign("*") and place + 1 < high:
            if word_at(tokens, place + 1):
                return high
            if _is_symbol(tokens[place + 1 : high], before, units):
                return place + 1
    return high


def _are_upright(group: Sequence[Token]) -> bool:
    """Whether a group holds words or upright letters, and nothing else."""
    letters = [token for token in group if not token.sign("{", "}")]
    return bool(letters) and all(t.kind == "word" or t.upright for t in letters)


def _is_symbol(tokens: Sequence[Token], before: Token, units: UnitLetters) -> bool:
    """Whether letters behind a number are the symbol of a unit, and the rest continues it."""
    if units == "none":
        return False
    run = [tokens[0].text]
    for token in tokens[1:]:
        if token.kind != "letter" or token.spaced or token.upright != tokens[0].upright:
            break
        run.append(token.text)
    name = "".join(run)
    if name == "\\mu" and tokens[1:] and tokens[1].kind in ("letter", "word"):
        name += f" {tokens[1].text}"
    if len(name) == 1:
        allowed = tokens[0].upright or (units == "all" and before.kind != "letter")
        if not allowed or name not in _UNIT_LETTERS:
            return False
    elif before.kind == "letter" or _find(name) is None:
        return False
    after = next((n for n in range(1, len(tokens)) if is_count(tokens, n)), len(tokens))
    suffix = read_suffix(tokens[:after])
    return suffix is not None and suffix.unit is not None
