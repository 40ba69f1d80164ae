"""Where a completion says its mathematical answer."""

from __future__ import annotations

import re

__all__ = ["find_answer", "last_boxed"]

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_MARKER = re.compile(r"\banswer\s*(?:is|:|=)\s*:?|####", re.IGNORECASE)
_LINE_END = re.compile(r"\n(?=\s*\S)|[.!?](?=\s+[A-Z]|\s*$)")
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|(?<!\S)[A-Za-z]{2}(?![^\s.,]))")
_SIGN = re.compile(r"[\d\\=+*/^(-]")
_COMMAND = re.compile(r"\\[A-Za-z]+\s*(?:\{[A-Za-z ]*\})?")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_FORMULA = 200
"""Characters: a longer text is no bare formula."""
_TAIL = 100_000


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` or ``\fbox{…}`` that is closed and not empty.

    ``\boxed 5`` boxes the next word, as the MATH benchmark's own solutions write it. Time is linear
    in the text.
    """
    boxes = list(_BOX.finditer(text))
    closing = _closing_braces(text) if boxes else {}
    for match in reversed(boxes):
        start = match.end()
        if text[start : start + 1] == "{":
            content = text[start + 1 : closing[start]].strip() if start in closing else ""
        else:
            content = re.split(r"[\s$]", text[start : start + _FORMULA], maxsplit=1)[0]
        if content:
            return content
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """The place of the closing brace of each opening one; escaped braces are letters."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def find_answer(completion: str) -> str | None:
    r"""The answer of a completion: its last ``\boxed{…}``.

    Without a box, it is the sentence behind the last "answer is" (or "answer:", ``####``), or the
    whole completion where that is nothing but one short formula. Anything else is no answer. Only
    the last 100,000 characters are read.
    """
    completion = completion[-_TAIL:]
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed
    for match in reversed(list(_MARKER.finditer(completion))):
        rest = completion[match.end() : match.end() + 4 * _FORMULA].strip().strip("*").strip()
        end = _LINE_END.search(rest)
        sentence = _formula(rest[: end.start()] if end else rest)
        if sentence:
            return sentence
    return _bare(completion.strip())


def _formula(sentence: str) -> str:
    """The mathematics of a sentence, or all of it where none is marked."""
    found = _MATH.search(sentence)
    if found is not None:
        return next(group for group in found.groups() if group is not None).strip()
    return sentence.strip().strip("*$").rstrip(".").strip()


def _bare(text: str) -> str | None:
    """``text`` where it is one line of mathematics without words."""
    if not text or len(text) > _FORMULA or "\n" in text or _BOX.search(text):
        return None
    if _WORD.search(_COMMAND.sub("", text)) or not _SIGN.search(text):
        return None
    return _formula(text) or None
