r"""The answer of a completion as mathematics: a formula, or a few words where there is none."""

from __future__ import annotations

import re

from fttt.verifiers.answer_extraction import BOX, find_candidates

__all__ = ["find_answer"]

_FORMULA = 200
"""Characters of a formula without delimiters."""
_WORD = re.compile(r"\w+")
_MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\$)(\S|\S[^$]*\S|\s[^$]*\s)(?<!\\)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)",
    re.DOTALL,
)
_JOINED = re.compile(r"\s*(?:,\s*(?:or\b|and\b)?|;|or\b|and\b)\s*")
_BEHIND = re.compile(
    r"\s*(\\?%|percent\b|(?:hundred|thousand|million|billion|trillion|dozen)\b)", re.IGNORECASE
)
_ABOUT = re.compile(
    r"(?:\*\*|\s|(?:about|approximately|exactly|just|only|simply|around|roughly|therefore|thus|then"
    r"|indeed|also|clearly|now|hence)\s)*"
)
_IS = re.compile(r"(?:\b(?:is|are|equals?|be|was|were)\s|[=:])")
_STOP = re.compile(
    r"\s+(?:because|since|as|so|when|where|which|for|if|by|with|that|who|from|after|in|at|on|of|is"
    r"|are|but|while|making|giving)\b|\s+\((?=[a-z]{3})|,\s+(?!and\b|or\b)(?=[a-z]{3})"
)
_SPOKEN = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|(?<!\S)[A-Za-z]{2}(?![^\s.,]))")
_SIGN = re.compile(r"[\d\\=+*/^(-]")
_COMMAND = re.compile(r"\\[A-Za-z]+\s*(?:\{[A-Za-z ]*\})?")
_STARTS = re.compile(r"[\d$.\\(\[{|+-]|[A-Za-z](?![A-Za-z])(?!\s+[A-Za-z]{2})|[^\x00-\x7f]")
_LETTER = re.compile("[A-Za-z]")
_NAME = re.compile(
    r"\W*([A-Z][a-z]+(?: [A-Z][a-z]+)?)\W*,?\s+(?:because|since|as|with|who|which|while|so|but)\b"
)
"""A name as an answer, with a reason behind it."""
_MOST_WORDS = 8
"""Words of an answer in words."""


def find_answer(completion: str, *, prompt: str = "", cut: bool = False) -> str | None:
    r"""The answer of a completion as mathematics; ``None`` without one.

    It is the content of the last box or statement (see :func:`find_candidates`), else a last line
    that consists of a formula. Words are an answer where there is no formula.
    """
    words: str | None = None
    for found in find_candidates(completion, prompt=prompt, cut=cut):
        if found.kind == "box":
            return None if found.cut else found.text
        if found.kind == "last":
            return words or _bare(found.text)
        formula, rest = _formula(found.text, cut=found.cut)
        closed = found.text.rstrip("*_ .").endswith(("$", "\\)", "\\]"))
        if found.cut and not (formula and (closed or rest.strip("*_ "))):
            return None
        if BOX.search(found.text):
            continue
        if formula:
            return _result(formula)
        words = words or _words(found.text)
    return words


def _words(text: str) -> str | None:
    """A name, or a few words that announce no more."""
    named = _NAME.match(text)
    if named is not None:
        return named[1]
    said = text.strip().strip("*$").rstrip(".").strip()
    few = len(_WORD.findall(said)) <= _MOST_WORDS and not said.endswith(":")
    return said if said and few else None


def _formula(text: str, *, cut: bool = False) -> tuple[str, str]:
    """The value in a sentence, empty without one, and the text behind it.

    The only formula of a sentence is its value, unless the sentence was truncated.
    """
    marked = list(_MATH.finditer(text))
    for start in (0, *(match.end() for match in _IS.finditer(text))):
        if any(formula.start() < start < formula.end() for formula in marked):
            continue
        found, rest = _value(text, start)
        if found:
            return found, rest
    if len(marked) == 1 and not cut:
        return _inside(marked[0]), text[marked[0].end() :]
    return "", ""


def _result(formula: str) -> str:
    """The result of a calculation; any other formula unchanged."""
    *worked, result = formula.rstrip(" ,;").split("=")
    letters = _LETTER.search(_COMMAND.sub("", "".join(worked)))
    return result.strip() if worked and letters is None and result.strip() else formula


def _value(text: str, start: int) -> tuple[str, str]:
    """The formulas at ``start``, empty without any, and the text behind them."""
    about = _ABOUT.match(text, start)
    start = start if about is None else about.end()
    parts: list[str] = []
    end = start
    while (formula := _MATH.match(text, start)) is not None:
        parts.append(_inside(formula))
        end = formula.end()
        behind = _BEHIND.match(text, end)
        if behind is not None:
            parts[-1], end = f"{parts[-1]} {behind[1]}", behind.end()
        joined = _JOINED.match(text, end)
        if joined is None:
            break
        start = joined.end()
    if parts:
        return ", ".join(parts), text[end:]
    if _STARTS.match(text, start) is None:
        return "", ""
    stop = _STOP.search(text, start)
    end = len(text) if stop is None else stop.start()
    bare = text[start:end].strip().strip("*$").rstrip(".,; ")
    spoken = _SPOKEN.search(_COMMAND.sub("", bare))
    return (bare if _SIGN.search(bare) or not spoken else ""), text[end:]


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _bare(text: str) -> str | None:
    """``text`` if it is one line of mathematics without words."""
    if len(text) > _FORMULA or BOX.search(text):
        return None
    if _SPOKEN.search(_COMMAND.sub("", text)) or not _SIGN.search(text):
        return None
    return _formula(text)[0] or None
