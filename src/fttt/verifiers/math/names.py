r"""What an answer calls its value: ``x``, ``f(x)``, ``P(X = 2)``, ``\angle ABC``, ``\text{Area}``.

Only a name may be left out of an answer: ``x = 5`` is 5, and ``x^2 = 5`` is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fttt.verifiers.math.notation import Token
from fttt.verifiers.math.symbols import FUNCTIONS, word_set
from fttt.verifiers.math.tree import Name

__all__ = ["NEGATIVES", "name_of", "words_of"]

NEGATIVES = word_set("not no never cannot isn't aren't nor and or")
"""Words that no name has."""
_ANGLES = [[f"\\{name}"] for name in ("alpha", "beta", "gamma", "theta", "phi", "varphi")]
_PARTS = word_set("twice half double triple square cube reciprocal negative opposite")
"""Words that begin the name of another number: "twice the length"."""
_POINTS = 2
"""Letters side by side that name a segment."""


def words_of(tokens: tuple[Token, ...]) -> str:
    """Words, letters and numbers as a line of text, punctuation and capitals levelled."""
    parts = []
    for token in tokens:
        if token.sign(".", ",", "{", "}", "'"):
            continue
        text = str(token.value) if token.value is not None else token.text
        parts.append(text.casefold() if token.kind == "word" else text)
    return " ".join(parts)


def name_of(
    tokens: tuple[Token, ...], partner: Mapping[int, int], low: int, high: int
) -> Name | None:
    """The name that fills the span; ``None`` where it is an expression."""
    while low < high and tokens[low].sign("{") and partner[low] == high - 1:
        low, high = low + 1, high - 1
    span = tokens[low:high]
    if not span:
        return None
    if any(t.kind == "word" for t in span) and _is_words(span):
        return Name("words", words_of(span))
    return (
        _ratio_of_angle(span)
        or _figure(span)
        or _tuple(span)
        or _variable(tokens, partner, low, high)
    )


def _is_words(span: tuple[Token, ...]) -> bool:
    words = [t.text.lower() for t in span if t.kind == "word"]
    first = next((word for word in words if word not in ("a", "the")), "")
    if NEGATIVES & set(words) or first in _PARTS:
        return False
    plain = all(t.kind in ("word", "letter") or t.sign(".", "{", "}", "'", "(", ")") for t in span)
    return plain and any(t.kind == "word" and t.text not in FUNCTIONS for t in span)


def _figure(span: tuple[Token, ...]) -> Name | None:
    """Points, segments, angles, lengths and areas."""
    core = [t for t in span if not t.sign("{", "}")]
    kind = ""
    if core[0].kind == "letter" and core[0].text == "m" and core[1:2]:
        core = core[1:] if core[1].command("angle") else core
    if core[0].kind == "command" and core[0].text in ("angle", "triangle", "widehat", "hat"):
        kind, core = f"{core[0].text} ".replace("widehat", "angle"), core[1:]
    elif len(core) > 2 and core[0].sign("|", "lvert", "||") and core[-1].sign("|", "rvert", "||"):
        core = core[1:-1]
        if len(core) == 1:
            return None
    elif core[0].sign("[") and core[-1].sign("]"):
        kind, core = "area ", core[1:-1]
    if core and core[0].command("overline", "vec", "bar", "overarc", "wideparen"):
        kind, core = kind or ("" if len(core) > 2 else "bar "), core[1:]
    if [t.text for t in core[:1]] == ["frac"] and len(core) == 5 and core[1].text == "d":
        return Name("figure", f"d{core[2].text}/d{core[4].text}")
    letters = all(t.kind == "letter" or t.sign("'") for t in core)
    if not letters or not (kind or len(core) >= _POINTS):
        return None
    capitals = all(t.text.isupper() or t.sign("'") for t in core)
    if not capitals and not (kind and kind != "area "):
        return None
    points = [t.text for t in core]
    if not any(t.sign("'") for t in core):
        points = min(points, points[::-1])  # the angle ABC is the angle CBA
    return Name("figure", kind + "".join(points))


def _ratio_of_angle(span: tuple[Token, ...]) -> Name | None:
    r"""``\sin\theta``, ``\cos A``, ``\tan\angle ABC``: of an angle, not of an unknown ``x``."""
    if span[0].kind != "command" or span[0].text not in ("sin", "cos", "tan", "cot", "sec", "csc"):
        return None
    angle = [t for t in span[1:] if not t.sign("{", "}", "(", ")") and not t.command("angle")]
    points = all(t.kind == "letter" and not t.text.islower() for t in angle)
    if not angle or not (points or [t.text for t in angle] in _ANGLES):
        return None
    return Name("figure", f"{span[0].text} {''.join(t.text for t in angle)}")


def _tuple(span: tuple[Token, ...]) -> Name | None:
    if not (span[0].sign("(", "langle") and span[-1].sign(")", "rangle")):
        return None
    names = "".join(t.text for t in span[1:-1] if not t.sign("{", "}")).split(",")
    if len(names) < 2 or not all(re.fullmatch(r"\\?[A-Za-z]\w*'*", name) for name in names):
        return None
    return Name("tuple", ",".join(names), tuple(names))


def _variable(
    tokens: tuple[Token, ...], partner: Mapping[int, int], low: int, high: int
) -> Name | None:
    """A variable, or a function with its argument."""
    token = tokens[low]
    functions = ("Pr", "det", "deg", "dim", "arg")
    if token.command("max", "min", "gcd", "lcm") and high > low + 1:
        of_letters = any(t.kind == "letter" for t in tokens[low:high])
        return Name("words", words_of(tokens[low:high])) if of_letters else None
    if token.kind != "letter" and not token.command(*functions):
        return None
    place, text = low + 1, token.text
    if place < high and tokens[place].sign("_"):
        end = partner.get(place + 1, place + 1) + 1
        script = [t for t in tokens[place + 1 : end] if not t.sign("{", "}")]
        if not any(t.sign(",") for t in script):  # "x_{1,2}" are the values of x
            text += "_" + "".join(str(t.value) if t.value is not None else t.text for t in script)
        place = end
    if place < high and tokens[place].sign("^"):
        end = partner.get(place + 1, place + 1) + 1
        power = "".join(t.text for t in tokens[place + 1 : end] if not t.sign("{", "}"))
        if power not in ("-1", "*", "'", "''") or (power == "-1" and end == high):
            return None
        text += f"^{power}"
        place = end
    while place < high and tokens[place].sign("'"):
        text += "'"
        place += 1
    if place >= high:
        return Name("var", text) if place == high else None
    if tokens[place].sign("(", "[") and partner[place] == high - 1:
        inside = tokens[place + 1 : high - 1]
        params = "".join(t.text for t in inside if not t.sign("{", "}")).split(",")
        simple = all(re.fullmatch(r"\\?[A-Za-z]+", param) for param in params)
        if not simple and not (token.text.isupper() or token.text in "fgh" or text[1:]):
            return None  # "x(x+1) = 6" is an equation
        if not simple and any(t.sign("+", "-", "*", "/") for t in inside) and text not in "fghP":
            return None
        return Name("function", text, tuple(params) if simple else (words_of(inside),))
    if token.kind == "command" and all(t.kind == "letter" for t in tokens[place:high]):
        return Name("function", text, tuple(t.text for t in tokens[place:high]))
    return None
