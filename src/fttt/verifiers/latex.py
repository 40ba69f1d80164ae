r"""One way to write an answer in LaTeX, out of the many that mean the same."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["compact", "rational", "spoken", "tidy", "unit_of", "without_units"]

_SYMBOLS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u222a": r"\cup ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "θ": r"\theta ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^\circ ",
    "√": r"\sqrt ",
    "²": "^2",
    "³": "^3",
    "½": r"\frac{1}{2}",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
}
"""Letters that stand for a command."""

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\?\$", ""),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:left|right|middle)\s*\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\\h?phantom\s*(?:\{[^{}]*\}|\S)|\\hspace\*?\s*\{[^{}]*\}", ""),
        (r"(?<=\d)(?:\{,\}|,\s*\\!|\\,)\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mathbf|boldsymbol|vec|mathit|bm)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:text[a-z]*|mbox|mathrm|mathsf|hbox)\s*\{([^{}]*)\}", r"\\text{\1}"),
        (r"\\text\{\s*(?:and|or)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z])", ","),
        (r"\\text\{\s*,?\s*(?:and|or)\s*\}", ","),
        (r"\\text\{\s*([-\d.,;:][^{}]*)\}", r"\1"),
        (r"\\text\{([A-Za-z](?:\s*,\s*[A-Za-z])+)\s*\}", r"\1"),
        (r",(?:\s*,)+", ","),
        (r"\\(?:leq|leqslant|le)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geq|geqslant|ge)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:varnothing|emptyset|\{\s*\\\})", r"\\emptyset "),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\*\*\s*", "^"),
        (r"\^(\d{2,})", r"^{\1}"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (
            r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree",
            r"^\\circ ",
        ),
        (r"\\frac\s*(\\pi|\w)\s*(\\pi|\w)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\\pi|\w)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\\pi|\w)", r"\\frac\1{\2}"),
        (r"\\sqrt\s*(\d|[a-z](?![A-Za-z]))", r"\\sqrt{\1}"),
        (r"\s+", " "),
    ]
]
_HALF_OF_DAY = re.compile(r"(?<=\d)\s*(?:\\text\{)?\s*([ap])\.?\s?m\b[. ]*\}?\s*$", re.IGNORECASE)
_DEGREES_WORD = re.compile(r"(?:\\text\{)?\s*degrees?\s*\}?\s*$")
_COMMA_GROUPS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
_MIXED = re.compile(r"(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_MIXED_PLAIN = re.compile(r"(-?)(\d+) (\d+)/(\d+)")
_QUOTIENT = re.compile(r"(-?)\\frac\{(-?[\d.]+)\}\{(-?[\d.]+)\}|(-?[\d.]+) ?/ ?(-?[\d.]+)")
_DECIMAL = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_PERCENT = re.compile(r"\\?%|(?:\\text\{)?\s*(?:percent|per cent)\s*\}?\s*$")
_LONGEST = 1000

_TEXT_UNIT = re.compile(r"\\text\{([^{}]*)\}\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*\.?$")
_WORDS = re.compile(r"\\text\{([^{}]*)\}")
_SPOKEN = re.compile(r"[A-Za-z][A-Za-z0-9 .,'&-]*")

UNITS = {
    "dollar": "dollars usd",
    "cent": "cents",
    "euro": "euros",
    "pound": "pounds lb lbs",
    "meter": "meters metre metres m",
    "centimeter": "centimeters cm",
    "kilometer": "kilometers km",
    "millimeter": "millimeters mm",
    "inch": "inches in",
    "foot": "feet ft",
    "mile": "miles mi",
    "yard": "yards yd",
    "second": "seconds sec s",
    "minute": "minutes min mins",
    "hour": "hours hr hrs h",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "gram": "grams g",
    "kilogram": "kilograms kg",
    "liter": "liters litre l",
    "gallon": "gallons gal",
    "unit": "units",
    "am": "",
    "pm": "",
    "mph": "",
    "degree": "degrees",
}
"""Units that answers carry: one name, and the other ways to write it."""

_UNIT_NAMES = {name: unit for unit, names in UNITS.items() for name in (unit, *names.split())}
_PLAIN_UNIT = re.compile(
    r"(?<=[\d})])\s*((?:(?:square|cubic|sq\.?|cu\.?) )?(?:"
    + "|".join(sorted((re.escape(n) for n in _UNIT_NAMES if len(n) > 1), key=len, reverse=True))
    + r"))(?:\s*\^\s*\{?\d\}?)?\.?$",
    re.IGNORECASE,
)


def tidy(text: str) -> str:
    """``text`` with one spelling for each command, no delimiters and no thousands separators."""
    for symbol, command in _SYMBOLS.items():
        if symbol in text:
            text = text.replace(symbol, command)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if any(character.isdigit() for character in text):
        text = _DEGREES_WORD.sub(r"^\\circ ", text)
        text = _HALF_OF_DAY.sub(lambda match: rf"\text{{{match[1].lower()}m}}", text)
    if not re.search(r"[(\[]|\\\{", text):  # "(1,234)" is a pair, "1,234" a number
        text = _COMMA_GROUPS.sub(lambda match: match[1].replace(",", ""), text)
    return text.strip().rstrip(".,;: \\").strip()


def compact(text: str) -> str:
    """``text`` without white space that means nothing, for comparison as a string."""
    text = re.sub(r"(?<![A-Za-z\d])\s+|\s+(?![A-Za-z\d])|(?<=\d)\s+(?=[A-Za-z])", "", text)
    while text.startswith("{") and text.endswith("}") and "}" not in text[:-1]:
        text = text[1:-1]
    return text


def without_units(text: str) -> str:
    """A tidy ``text`` without the unit, degree sign or currency behind its number."""
    for pattern in (_TEXT_UNIT, _PLAIN_UNIT):
        shorter = pattern.sub("", text).strip()
        if shorter and shorter != text and not shorter.endswith(","):
            text = shorter
    if r"^\circ" in text and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = text.replace(r"^\circ", "")
    return text.strip().rstrip(".,;:").strip()


def unit_of(text: str) -> str | None:
    """The unit behind a tidy answer as ``name^power``, ``None`` where it has none that is known."""
    match = _TEXT_UNIT.search(text) or _PLAIN_UNIT.search(text)
    if match is None or match.start() == 0:
        return None
    words = match[1].lower().replace(".", " ").split() or [""]
    power = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}.get(words[0])
    name = " ".join(words[1 if power else 0 :][:2])
    unit = _UNIT_NAMES.get(name) or _UNIT_NAMES.get(name.split(" ")[0])
    raised = re.search(r"\^\D*(\d)", match[0])
    return f"{unit}^{raised[1] if raised else power or 1}" if unit else None


def spoken(text: str) -> str | None:
    """The words of an answer that is no mathematics (``east``, ``(C)``), ``None`` for any other.

    Words without ``\\text`` count from four letters on: shorter ones may be products of variables.
    """
    inside = _WORDS.sub(lambda match: match[1], text)
    words = re.sub(r"[\s()]+", " ", inside).strip(" .,")
    if not _SPOKEN.fullmatch(words):
        return None
    letters = re.sub(r"[^A-Za-z]", "", words)
    if inside == text and len(letters) < 4:
        return None
    parts = re.sub(r"[ ,]+", " ", words)
    return parts if len(letters) == 1 else parts.casefold()


def rational(text: str) -> tuple[Fraction, bool] | None:
    """The exact value of a tidy number and whether it is a percentage; ``None`` for anything else.

    Whole numbers, decimals, also repeating ones, fractions and mixed numbers, each with an optional
    sign. What looks like a mixed number with an improper fraction is a product.
    """
    if len(text) > _LONGEST:
        return None
    bare = _PERCENT.sub("", text).strip()
    percent = bare != text.strip()
    bare = re.sub(r"^\+\s*|(?<=^-)\s+", "", bare)
    while bare.startswith("{") and bare.endswith("}"):
        bare = bare[1:-1].strip()
    value = _exact(bare)
    return None if value is None else (value, percent)


def _exact(text: str) -> Fraction | None:
    try:
        if _DECIMAL.fullmatch(text):
            return Fraction(text.rstrip(".") if text.endswith(".") else text)
        mixed = _MIXED.fullmatch(text) or _MIXED_PLAIN.fullmatch(text)
        if mixed:
            sign, whole, top, bottom = mixed.groups()
            part = Fraction(int(top), int(bottom))
            value = int(whole) + part if part < 1 else int(whole) * part
            return -value if sign else value
        repeating = _REPEATING.fullmatch(text)
        if repeating:
            sign, whole, first, again = repeating.groups()
            value = Fraction(int(again), int("9" * len(again))) + int(whole + first or 0)
            value *= Fraction(1, int("1" + "0" * len(first)))
            return -value if sign else value
        quotient = _QUOTIENT.fullmatch(text)
        if quotient:
            sign, top, bottom, plain_top, plain_bottom = quotient.groups()
            value = Fraction(top or plain_top) / Fraction(bottom or plain_bottom)
            return -value if sign else value
    except (ValueError, ZeroDivisionError):
        pass
    return None
