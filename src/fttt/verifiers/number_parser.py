r"""Parser of written numbers: one value for every way to write a number.

A number is parsed to its end or not at all: ``1\frac{1}{2}`` is 3/2 and never 1 or 11,
``2 million`` is never 2, and ``11:30``, ``1.2.3``, ``52_8`` or ``2\pi`` are no numbers. Time is
linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

__all__ = [
    "Number",
    "Numeral",
    "may_continue",
    "parse_number",
    "plain_letters",
    "repeating_decimal",
    "scan_numbers",
]

_LONGEST = 1000
"""Digits of a number; longer ones are noise, and parsing them costs quadratic time."""
_LARGEST = 8192
"""Bits of a power; a larger one does not count as a number."""
_DEEPEST = 4
"""Nested fractions."""
_NEAR = 100
"""Characters of an argument of a fraction that is no number."""
_LOOK_BACK = 30
"""Characters before the digits of a number that may be its sign, its currency, or a command."""


class Number(NamedTuple):
    """The value of a written number, and whether a percent sign follows it."""

    value: Fraction
    percent: bool = False

    def matches(self, other: Number) -> bool:
        """Whether both have the same value; ``50%`` is both ``50`` and ``0.5``."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        sign, plain = (self, other) if self.percent else (other, self)
        return sign.value == plain.value * 100

    @property
    def plain(self) -> Number:
        """The value without a percent sign, so that equal answers vote together."""
        return Number(self.value / 100) if self.percent else self

    def __str__(self) -> str:
        top, bottom = self.value.numerator, self.value.denominator
        text = str(top) if bottom == 1 else _decimal_text(top, bottom) or f"{top}/{bottom}"
        return f"{text}%" if self.percent else text


class Numeral(NamedTuple):
    """A token of a text that has digits."""

    start: int
    """The index of its first character, its sign or currency included."""
    end: int
    """The index behind its last character."""
    number: Number | None
    r"""Its value; ``None`` for times, dates, versions, ``2x``, ``\sqrt{2}`` and the like."""


def _decimal_text(top: int, bottom: int) -> str | None:
    """``top / bottom`` as a decimal, ``None`` where its decimals never end or are many."""
    places = next((places for places in range(1, 41) if 10**places % bottom == 0), None)
    if places is None:
        return None
    digits = str(abs(top) * (10**places // bottom)).rjust(places + 1, "0")
    return f"{'-' if top < 0 else ''}{digits[:-places]}.{digits[-places:]}"


# ---- letters


def _letters() -> dict[int, str]:
    """Characters that are variants of an ASCII one."""
    same = {
        "-": "\u2010\u2011\u2012\u2013\u2212\u2796\ufe63\uff0d",
        "+": "\u2795\ufe62\uff0b",
        " ": "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f"
        "\u205f\u3000",
        "\u00d7": "\u2715\u2716\u2a09\u2a2f",
        "·": "\u2219\u22c5",
        "*": "\u2217\uff0a",
        "/": "\u2044\u2215\uff0f",
        "'": "\u2019\u02bc\uff07",
        "%": "\u066a\ufe6a\uff05",
        ",": "\ufe50\uff0c",
        ".": "\uff0e",
        ":": "\uff1a",
        "=": "\uff1d",
        "$": "\ufe69\uff04",
        "(": "\uff08",
        ")": "\uff09",
    }
    table = {ord(letter): plain for plain, letters in same.items() for letter in letters}
    for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, *range(0x1D7CE, 0x1D800, 10)):
        table.update({zero + digit: str(digit) for digit in range(10)})
    return table


_LETTERS = _letters()


def plain_letters(text: str) -> str:
    """``text`` with ASCII minus signs, digits, spaces and points; its length is the same."""
    return text if text.isascii() else text.translate(_LETTERS)


# ---- tokens

_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5),
    "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8),
    "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉"
_TO_PLAIN = str.maketrans(_RAISED + _LOWERED + "⁺⁻", "01234567890123456789+-")

_GAP = r"(?:[ \t]|\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\{\})"
_S = rf"{_GAP}{{0,4}}"
_CLOSE = rf"(?:{_GAP}|\$\$?|\*\*|__|\\[)\]]){{0,4}}"
"""Text between a number in mathematics or bold type and the word behind it."""
_SEPARATOR = r"\{,\}|\{\\[,;:! ]\}|\\text\{,\}|, ?\\!|,|\\[,;:! ]|\\thinspace(?![A-Za-z]) ?|~|'|_| "
_TEXT = r"\\(?:text[a-z]*|mathrm|mathit|mathbf|mathsf|mbox|hbox|operatorname)\s*\{\s*"
_CURRENCY = (
    r"(?:(?:(?<![A-Za-z])(?:US|AU|CA|HK|NZ|[ACS]))?\\?\$\$?|[€£¥₹₩₽₺₪฿₫₦]"
    r"|(?<![A-Za-z])(?:USD|EUR|GBP|INR|CAD|AUD|JPY|CNY|RMB|Rs\.?)"
    r"|\\(?:euro|texteuro|pounds|textsterling|yen)(?![A-Za-z])(?:\{\})?"
    rf"|{_TEXT}(?:USD|EUR|GBP|Rs\.?|\\?\$|[€£¥₹])\s*\}})"
)
_NEGATIVE = rf"(?i:negative|minus)(?![A-Za-z])|{_TEXT}(?i:negative|minus)\s*\}}"
_POSITIVE_WORD = r"(?i:positive|plus)(?![A-Za-z])"
_HEAD = (
    rf"(?:(?P<sign>[+-]|(?<![A-Za-z\\])(?:{_POSITIVE_WORD}|(?P<negative>{_NEGATIVE}))){_S})?"
    rf"(?:(?P<currency>{_CURRENCY}){_S})?"
    rf"(?:(?P<inner>[+-]){_S})?"
)
_HEAD_START, _HEAD_END = re.compile(_HEAD), re.compile(_HEAD + r"\Z")
_REST = re.compile(rf"{_S}(?:{_CURRENCY})?{_S}")
"""Text behind a number that is a whole text."""
_FRACTION_NAME = r"(?:[dtc]?frac|nicefrac|sfrac)(?![A-Za-z])"
_FRACTION = re.compile(rf"\\{_FRACTION_NAME}")
_START = re.compile(
    rf"[0-9{''.join(_VULGAR)}.\\{_RAISED}]"  # a set in front is searched many times as fast
    rf"(?:(?<=[0-9{''.join(_VULGAR)}])|(?<=\.)(?<!\.\.)(?=[0-9])|(?<=\\)(?={_FRACTION_NAME})"
    rf"|(?<=[{_RAISED}])(?<![{_RAISED}]{{2}})(?=[{_RAISED}]{{0,8}}/[{_LOWERED}]{{1,9}}(?![{_LOWERED}])))"
)
_INSIDE = re.compile(
    r"(?:(?P<index>(?:\^|(?<=[\w)\]}|])_)\s*[{(]?)"
    r"|\\(?:sqrt|root|[dt]?binom|[pb]?mod|log|ln|lg|exp|sin|cos|tan|cot|sec|csc|arc[a-z]+"
    r"|overline|underline|tag|[hv]space\*?|h?phantom|color|ref|eqref|label|Gamma|zeta)"
    r"\s*(?:\[[^\[\]]{0,8}\])?\s*(?:\^\s*\{?-?[0-9]*\}?\s*)?[{(]?|\\sqrt\s*\[|[√∛∜]\s*[{(]?"
    r"|[A-Za-z]\(|(?<![A-Za-z\\])(?:sqrt|cbrt|log|ln|sin|cos|tan|exp|root of)[ (])"
    r"\s*[+-]?\s*\Z"
)
"""Text that makes the digits behind it an index, or the argument of a function."""
_INSIDE_SIGN = re.compile(r"[\^_\\√∛∜(]|[tgnspf] *\Z")
_COMMAND_END = re.compile(r"\\[A-Za-z]+\Z")
_BESIDE = re.compile(rf"{_CLOSE}[)\]]?{_CLOSE}")
"""Text between a number and the operator behind it."""
_TERM_END = re.compile(r"(?:[)\]]|(?<![A-Za-z\\])[A-Za-z])\Z")

_GROUPED = re.compile(
    rf"[1-9][0-9]{{0,2}}(?P<gap>{_SEPARATOR})[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*(?![0-9])"
    r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?![0-9])"
)
_EUROPEAN = re.compile(
    r"([1-9][0-9]{0,2}(?:\.[0-9]{3})+),([0-9]+)(?![.,]?[0-9])"
    r"|([1-9][0-9]{0,2}(?:\.[0-9]{3}){2,})(?![.,]?[0-9])"
)
_WHOLE = re.compile(r"[0-9]+")
_DECIMALS = re.compile(r"\.([0-9]+(?:\\[,;:!] ?[0-9]+)*)")
_REPEATING = re.compile(
    r"\.(?P<first>[0-9]*)(?:"
    r"\\(?:overline|bar)\s*(?:\{\s*(?P<bar>[0-9]+)\s*\}|(?P<one>[0-9]))"
    r"|(?P<dots>\\dot\s*\{?\s*[0-9]\s*\}?(?:[0-9]*\\dot\s*\{?\s*[0-9]\s*\}?)?)"
    r"|\((?P<bracket>[0-9]+)\)"
    r"|(?P<marked>(?:[0-9][\u0304\u0305])+|[0-9]\u0307(?:[0-9]*[0-9]\u0307)?))"
)
_GOES_ON = re.compile(r"\.\.\.+|…|\\(?:[lc]?dots|dotsc?)(?![A-Za-z])")
_CYCLE = re.compile(r"(?:([0-9])\1\1+|([0-9]{2,6}?)\2+)$")
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]{1,5})(?![\w]|\.[0-9])")
_POWER = re.compile(
    rf"{_S}(?:\^|\*\*){_S}(?:\{{{_S}([+-]?[0-9]{{1,5}}){_S}\}}|\(([+-]?[0-9]{{1,5}})\)"
    rf"|([+-]?[0-9]{{1,5}})(?![0-9]))|([⁺⁻]?[{_RAISED}]{{1,5}})(?![{_RAISED}])"
)
_TIMES_TEN = re.compile(
    rf"{_S}(?:\u00d7|\\times|\\cdot|\\ast|\*|·|[xX]|times(?= )){_S}10(?![0-9.,])"
)
_RAISED_FRACTION = re.compile(rf"([{_RAISED}]{{1,9}})/([{_LOWERED}]{{1,9}})(?![{_LOWERED}])")
_PLAIN_FRACTION = re.compile(r"([0-9]{1,9})/([0-9]{1,9})(?![0-9/]|\.[0-9])")
_SLASH = re.compile(r" ?/ ?(?P<negative>-?)(?=[0-9])|\s*\\over(?![A-Za-z])\s*(?=[0-9])")
_SPACES = re.compile(_S)
_BRACE = re.compile(r"(?<!\\)[{}]")
_DIGITS = frozenset("0123456789")
_AND_PART = re.compile(
    r" and (?:(?:a |one[ -])(half|third|quarter|fourth|fifth)|(two[ -]third|three[ -]quarter)s"
    r"|(?P<digits>(?=[0-9]+/|\\|[½⅓⅔¼¾])))(?![A-Za-z])"
)
_PARTS = {
    "half": (1, 2), "third": (1, 3), "quarter": (1, 4), "fourth": (1, 4), "fifth": (1, 5),
    "two": (2, 3), "thr": (3, 4),
}  # fmt: skip
_SCALES = {
    "hundred": Fraction(10**2),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "mln": Fraction(10**6),
    "billion": Fraction(10**9),
    "bln": Fraction(10**9),
    "trillion": Fraction(10**12),
    "quadrillion": Fraction(10**15),
    "quintillion": Fraction(10**18),
    "dozen": Fraction(12),
    "lakh": Fraction(10**5),
    "crore": Fraction(10**7),
    "tenths": Fraction(1, 10),
    "hundredths": Fraction(1, 10**2),
    "thousandths": Fraction(1, 10**3),
    "millionths": Fraction(1, 10**6),
    "billionths": Fraction(1, 10**9),
}
_SCALE = re.compile(
    rf"{_CLOSE}-?(?P<text>{_TEXT})?"
    rf"(?P<word>(?ai:{'|'.join(sorted(_SCALES, key=len, reverse=True))}))(?i:s?)"
    r"(?![A-Za-z]|(?<=hundred)-)(?(text)\s*\}?)"
)
_LETTER_SCALES = {"k": 3, "K": 3, "M": 6, "mn": 6, "bn": 9, "Bn": 9}
_MONEY_SCALES = {"m": 6, "mm": 6, "MM": 6, "B": 9, "b": 9, "BN": 9, "T": 12, "tn": 12}
_LETTER_SCALE = re.compile(
    rf"{_S}({'|'.join(sorted(_LETTER_SCALES | _MONEY_SCALES, key=len, reverse=True))})(?![\w^²³/])"
)
_PERCENT = re.compile(
    rf"{_CLOSE}(?:\\?%|(?i:percent|per cent|pct)(?![A-Za-z])"
    rf"|{_TEXT}(?:\\?%|(?i:percent|per cent))\s*\}}?)"
)
_ON_THE_HOUR = re.compile(r":00(?![0-9:.])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])|[0-9]{1,2}([-/.])[0-9]{1,2}\1[0-9]{4}\b")
_TAIL = re.compile(
    r"(?P<fine>(?:st|nd|rd|th)(?![A-Za-z])|\s?\^\s*\{?\s*(?:\\(?:circ|degree)|°"
    r"|(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)(?![A-Za-z])))"
    r"|(?P<more>(?:[.,:/'][0-9]+)+|_(?=[0-9A-Za-z{\\]))"
    r"|(?:\\[,;:! ]|[ ~])?(?:\^|[√π∞±]|\\(?:pi|sqrt|sin|cos|tan|log|ln|exp|alpha|beta|gamma|theta"
    r"|lambda|phi|mu|sigma|omega|infty|[dt]?binom|sum|prod|int|mathbb|choose|pm|mp)(?![A-Za-z])"
    r"|\\(?:mathrm|text|textit|mathit|mathbf)\{\s*[abceinpqrtuvxyz]\s*\})"
    r"|(?:[abceijnpqruvwxyzPQRSXYZ](?!\.?[A-Za-z'])|\((?=[0-9a-z])|!(?=[$})\\]))"
)
"""Text right behind a number that makes it part of another token (``fine`` does not)."""
_PLAIN = re.compile(
    r"([0-9]{1,15}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9})(?:\.([0-9]{1,15}))?"
    r"(?=\Z|[)\]};?\"=+<>|&]|\n(?!\s*[\\^])|\.(?![0-9.(\\])|,(?![0-9]| ?\\)|:(?![0-9])"
    r"| (?:[=+<>()\"]|-[ $0-9]|\* (?!10)[0-9]|(?:is|in|of|to|at|by|on|or|so|we|he|as|if) "
    rf"|(?!(?i:{'|'.join(_SCALES)}|percent|per cent|pct)|times |and )[A-Za-z]{{3}}))"
)
"""Digits before text with which no other pattern of a number's end begins, as most are."""
_FULL_STOP = re.compile(r"(?<!\.)\.\Z")
_BROKEN_OFF = re.compile(
    r"[ \t.,:/^'{(=+*\u00d7\u00b7-]*(?:\\[A-Za-z]*[ \t{]*)?(?P<word>[A-Za-z]*)[ \t]*\Z"
)
_MORE_WORDS = (*_SCALES, "percent", "and", "or", "to", "times")
_AROUND = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"),
    ("`", "`"), ("{", "}"), ("\\text{", "}"), ("\\mathbf{", "}"), ("\\textbf{", "}"),
)  # fmt: skip


def parse_number(text: str) -> Number | None:
    r"""The number that the whole of ``text`` is; ``None`` for any other text.

    Delimiters of mathematics, braces, bold type, currency, a percent sign and a closing full stop
    belong to a number; units and variables do not, so that ``5k`` is none.
    """
    if len(text) > 8 * _LONGEST:
        return None
    text = _bare(plain_letters(text))
    head = _HEAD_START.match(text)
    if head is None or _START.match(text, head.end()) is None:
        return None
    number, end = _read(text, head.end(), head, prose=False)
    return number if _REST.fullmatch(text, end) else None


def scan_numbers(text: str) -> list[Numeral]:
    r"""Every token of ``text`` that has digits, from left to right.

    Units are skipped; in prose ``5k`` is 5,000 and ``7:00`` is 7. Digits of names and indices
    (``x2``, ``H_2O``, ``m^2``, ``COVID-19``) are no tokens.
    """
    text = plain_letters(text)
    found: list[Numeral] = []
    place = last = 0
    while (start := _START.search(text, place)) is not None:
        digits = start.start()
        window = max(last, digits - _LOOK_BACK)
        before = text[window:digits]
        head = _head_at_end(before, 0)
        inside = _INSIDE.search(before) if _INSIDE_SIGN.search(before) else None
        named = not head[0] and _is_letter(before[-1:]) and not _COMMAND_END.search(before)
        if head["sign"] and _subtracts(text, window + head.start(), last):
            named = head.end("sign") == len(before) and _is_letter(before[-2:-1])
            head = _head_at_end(before, head.end("sign"))
        number, place = _read(text, digits, head, prose=True)
        if not named and not (inside and inside["index"]):
            last = place
            found.append(Numeral(window + head.start(), place, None if inside else number))
    return found


def may_continue(text: str, end: int) -> bool:
    """Whether the number that ends at ``end`` may be incomplete because ``text`` is truncated."""
    rest = _BROKEN_OFF.match(plain_letters(text), end)
    word = "" if rest is None else rest["word"].lower()
    return rest is not None and any(more.startswith(word) for more in _MORE_WORDS)


def _head_at_end(text: str, start: int) -> re.Match[str]:
    found = _HEAD_END.search(text, start)
    assert found is not None  # it matches an empty text
    return found


def _is_letter(character: str) -> bool:
    """Whether it is a letter of a script with spaces between words."""
    return character.isalpha() and character < "\u2e80"


def _bare(text: str) -> str:
    """``text`` without delimiters around it."""
    for _ in range(8):
        before = text
        text = _FULL_STOP.sub("", text.strip())
        for opening, closing in _AROUND:
            if len(text) > len(opening + closing) and text.startswith(opening):
                inner = text[len(opening) : -len(closing)]
                if text.endswith(closing) and not (closing == "}" and _closes_early(inner)):
                    text = inner
        if text == before:
            break
    return text


def _closes_early(inner: str) -> bool:
    """Whether ``inner`` closes a brace that it does not open."""
    depth = 0
    for brace in _BRACE.findall(inner):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return True
    return False


def _subtracts(text: str, sign: int, last: int) -> bool:
    """Whether the sign at ``sign`` is between two terms; the last number ended at ``last``."""
    if text[sign : sign + 3].lower() == "neg":
        return False
    if last and sign - last <= _LOOK_BACK and _BESIDE.fullmatch(text, last, sign):
        return True
    before = text[max(0, sign - _LOOK_BACK) : sign]
    if not before.endswith(" "):
        return before[-1:].isalnum() or before[-1:] in (")", "]", "}", "!")
    if text[sign + 1 : sign + 2].isdigit():
        return False
    return _TERM_END.search(before.rstrip(" ")) is not None


def _read(text: str, place: int, head: re.Match[str], *, prose: bool) -> tuple[Number | None, int]:
    """The number whose digits begin at ``place``, and the index behind it."""
    plain, percent = _PLAIN.match(text, place), False
    if plain is not None:
        whole, decimals = plain[1].replace(",", ""), plain[2] or ""
        value: Fraction | None = Fraction(int(whole + decimals), 10 ** len(decimals))
        end = plain.end()
    else:
        value, end, percent = _scaled(text, place, head, prose=prose)
    if value is None:
        return None, end
    negative = (head["sign"] == "-" or bool(head["negative"])) != (head["inner"] == "-")
    return Number(-value if negative else value, percent), end


def _scaled(
    text: str, place: int, head: re.Match[str], *, prose: bool
) -> tuple[Fraction | None, int, bool]:
    """A number with its scale, the index behind it, and whether a percent sign is before that."""
    date = _DATE.match(text, place)
    if date is not None:
        return None, date.end(), False
    value, end = _quotient(text, place, prose=prose)
    for _ in range(3):
        scale = _SCALE.match(text, end)
        if scale is None or value is None:
            break
        value, end = value * _SCALES[scale["word"].lower()], scale.end()
    letter = _LETTER_SCALE.match(text, end)
    if value is not None and letter is not None:
        spaced, name = letter.start(1) > end, letter[1]
        power = _LETTER_SCALES.get(name) if prose and not spaced else None
        if head["currency"]:
            power = _LETTER_SCALES.get(name) or _MONEY_SCALES.get(name)
        if power is not None:
            value, end = value * 10**power, letter.end()
    percent = _PERCENT.match(text, end)
    if percent is not None:
        end = percent.end()
    hour = _ON_THE_HOUR.match(text, end)
    if prose and hour is not None:
        end = hour.end()
    tail = _TAIL.match(text, end)
    if tail is not None and not tail["fine"]:
        value, end = None, max(tail.end("more"), end)
    return value, end, percent is not None


def _quotient(text: str, place: int, *, prose: bool) -> tuple[Fraction | None, int]:
    """A number, or the quotient of two by a slash."""
    value, end = _mixed(text, place, prose=prose)
    slash = _SLASH.match(text, end)
    if slash is None:
        return value, end
    below, end, _ = _raised(text, slash.end())
    if value is None or not below:
        return None, end
    return value / (-below if slash["negative"] else below), end


def _mixed(text: str, place: int, *, prose: bool) -> tuple[Fraction | None, int]:
    """A fraction, a number, or a whole number with a fraction behind it."""
    part = _part(text, place, 0)
    if part is not None:
        return part
    value, end, whole = _raised(text, place)
    beside = _skip(text, end)
    part = _part(text, beside, 0)
    spoken = _AND_PART.match(text, end) if prose and whole else None
    if spoken is not None and spoken["digits"] is not None:
        beside, spoken = spoken.end(), None
        part = _part(text, beside, 0)
    if part is not None:
        small, last = part
        if value is None or small is None:
            return None, last
        if not 0 < small < 1 or not whole:
            return value * small, last
        return value + small, last
    if value is None or not whole:
        return value, end
    if spoken is not None:
        top, bottom = _PARTS[spoken[1] or spoken[2][:3]]
        return value + Fraction(top, bottom), spoken.end()
    plain = _PLAIN_FRACTION.match(text, beside) if beside > end else None
    if plain is not None and 0 < int(plain[1]) < int(plain[2]):
        return value + Fraction(int(plain[1]), int(plain[2])), plain.end()
    return value, end


def _part(text: str, place: int, depth: int) -> tuple[Fraction | None, int] | None:
    r"""A ``\frac``, ``½`` or ``¹⁄₂``; ``None`` where there is none."""
    vulgar = _VULGAR.get(text[place : place + 1])
    if vulgar is not None:
        return Fraction(*vulgar), place + 1
    raised = _RAISED_FRACTION.match(text, place)
    if raised is not None:
        top, bottom = (group.translate(_TO_PLAIN) for group in raised.groups())
        return (Fraction(int(top), int(bottom)) if int(bottom) else None), raised.end()
    command = _FRACTION.match(text, place)
    if command is None:
        return None
    above, end = _argument(text, command.end(), depth)
    below = None
    if above is not None:
        below, end = _argument(text, end, depth)
    if above is not None and below is not None:
        return (above / below if below else None), end
    return None, _behind_braces(text, command.end()) if depth == 0 else end


def _argument(text: str, place: int, depth: int) -> tuple[Fraction | None, int]:
    """An argument of a fraction: a number in braces, or a single digit."""
    place = _skip(text, place)
    if text[place : place + 1] != "{":
        digit = text[place : place + 1]
        return (Fraction(int(digit)), place + 1) if digit in _DIGITS else (None, place)
    head = _HEAD_START.match(text, _skip(text, place + 1))
    if head is None or _START.match(text, head.end()) is None or depth == _DEEPEST:
        return None, place
    part = _part(text, head.end(), depth + 1)
    value, end = part if part is not None else _raised(text, head.end())[:2]
    end = _skip(text, end)
    if value is None or text[end : end + 1] != "}":
        return None, place
    negative = head["sign"] == "-" or head["negative"]
    return (-value if negative else value), end + 1


def _behind_braces(text: str, place: int) -> int:
    """The index behind the two arguments at ``place``, within a limited distance."""
    for _ in range(2):
        place, depth = _skip(text, place), 0
        for brace in _BRACE.finditer(text, place, place + _NEAR):
            depth += 1 if brace[0] == "{" else -1
            if depth <= 0:
                place = brace.end()
                break
    return place


def _skip(text: str, place: int) -> int:
    """The index behind the white space at ``place``."""
    spaces = _SPACES.match(text, place)
    return place if spaces is None else spaces.end()


def _raised(text: str, place: int) -> tuple[Fraction | None, int, bool]:
    """A decimal number with its powers; whether it is a whole number without them."""
    value, end, whole = _decimal(text, place)
    if value is None or _RAISED_FRACTION.match(text, end):
        return value, end, whole
    power = _POWER.match(text, end)
    if power is not None:
        return _to_the(value, power), power.end(), False
    times = _TIMES_TEN.match(text, end)
    power = _POWER.match(text, times.end()) if times is not None else None
    if power is not None:
        scale = _to_the(Fraction(10), power)
        return (None if scale is None else value * scale), power.end(), False
    return value, end, whole


def _to_the(value: Fraction, power: re.Match[str]) -> Fraction | None:
    """``value`` to an integer power; ``None`` if that is too large or undefined."""
    exponent = int(next(group for group in power.groups() if group).translate(_TO_PLAIN))
    size = max(value.numerator.bit_length(), value.denominator.bit_length())
    if size * abs(exponent) > _LARGEST or (value == 0 and exponent <= 0):
        return None
    raised: Fraction = value**exponent
    return raised


def _decimal(text: str, place: int) -> tuple[Fraction | None, int, bool]:
    """A number of digits, separators and a point; whether it is a whole number."""
    european = _EUROPEAN.match(text, place)
    if european is not None:
        whole, decimals, grouped = european.groups()
        digits = (whole or grouped).replace(".", "")
        if len(european[0]) > _LONGEST:
            return None, european.end(), False
        return Fraction(f"{digits}.{decimals or 0}"), european.end(), False
    digits, end = "", place
    first = _GROUPED.match(text, place) or _WHOLE.match(text, place)
    if first is not None:
        digits, end = re.sub("[^0-9]", "", first[0]), first.end()
    repeating = _REPEATING.match(text, end)
    if repeating is not None:
        value = _repeated(digits, repeating) if repeating.end() - place <= _LONGEST else None
        return value, repeating.end(), False
    point = _DECIMALS.match(text, end)
    decimals = ""
    if point is not None:
        decimals, end = re.sub("[^0-9]", "", point[1]), point.end()
    if end - place > _LONGEST:
        return None, end, False
    value = Fraction(int(digits + decimals), 10 ** len(decimals))
    further = _GOES_ON.match(text, end) if point is not None else None
    if further is not None:
        cycle = _CYCLE.search(decimals) if len(decimals) <= _LOOK_BACK else None
        again = "" if cycle is None else cycle[1] or cycle[2]
        return (repeating_decimal(digits, decimals, again) if again else None), further.end(), False
    exponent = _EXPONENT.match(text, end)
    if exponent is not None:
        power = int(exponent[1])
        small = abs(power) * 4 <= _LARGEST
        return (value * Fraction(10) ** power if small else None), exponent.end(), False
    return value, end, point is None


def _repeated(whole: str, match: re.Match[str]) -> Fraction | None:
    """The value of a repeating decimal, written with a bar, dots or brackets."""
    first = match["first"]
    again = match["bar"] or match["one"] or match["bracket"]
    if again is None:
        again = re.sub("[^0-9]", "", match["dots"] or match["marked"])
    return repeating_decimal(whole, first, again)


def repeating_decimal(whole: str, first: str, again: str) -> Fraction:
    """The value of ``whole.first`` followed by ``again`` without end."""
    value = int(whole + first or "0") + Fraction(int(again), 10 ** len(again) - 1)
    return value / Fraction(10) ** len(first)
