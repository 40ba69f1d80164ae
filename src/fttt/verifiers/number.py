"""Numbers compared by value: ``18``, ``18.0`` and ``$18.00`` are the same answer."""

from __future__ import annotations

import re
import time
from fractions import Fraction

from fttt.types import JSON, Outcome, Question, Verdict
from fttt.verifiers.base import feedback_on
from fttt.verifiers.numeral import Number

__all__ = ["NumberVerifier", "find_number", "read_number"]

_LONGEST = 1000
"""Digits; longer ones are noise, and reading them costs quadratic time."""
_TAIL = 100_000
"""Characters at the end of a completion that are searched for an answer."""

_GAP = "\u00a0\u2009\u202f"
_MINUS = "\u2212\u2013-"
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])(?P<sign>[+{_MINUS}]))?"
    rf"(?:[$€£¥]\s?(?P<inner>[{_MINUS}])?)?"
    r"(?<![\w.])(?:"
    r"(?P<whole>\d+)\s(?P<top>\d+)/(?P<bottom>\d+)(?![\d/.]\d)(?!\d)"
    rf"|(?P<value>\d{{1,3}}(?:[,{_GAP}]\d{{3}})+(?!\d)(?:\.\d+)?"
    r"|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\w))?)"
    r"(?:/(?P<below>\d+)(?![\d/.]\d)(?!\d))?"
    r")(?P<percent>\s?(?:%|percent\b))?"
)
_MARKER = re.compile(r"\banswer\s*(?:is|:|=)|####|boxed\s*\{", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")
_LATEX = str.maketrans({"\\": None})


def _value(match: re.Match[str]) -> Number | None:
    """The number of one match, or ``None`` for one too long to be meant."""
    if len(match[0]) > _LONGEST:
        return None
    if match["whole"]:
        bottom = int(match["bottom"])
        value = Fraction(match["whole"])
        value += Fraction(int(match["top"]), bottom) if bottom else 0
    else:
        value = Fraction(re.sub(f"[,{_GAP}]", "", match["value"]))
        below = int(match["below"] or 1)
        value = value / below if below else value
    negative = (match["sign"] or match["inner"] or "+") not in "+"
    return Number(-value if negative else value, bool(match["percent"]))


def _plain(text: str) -> str:
    """``text`` with LaTeX's ways to write a number undone."""
    text = _FRACTION.sub(r"\1/\2", text)
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").translate(_LATEX)


def read_number(gold: JSON) -> Number | None:
    """The number that a gold answer is: its last one, ``None`` where it holds none."""
    if isinstance(gold, bool):
        return None
    found = list(_NUMBER.finditer(_plain(str(gold))))
    return _value(found[-1]) if found else None


def find_number(completion: str) -> Number | None:
    """The number that a completion gives as its answer.

    Behind the last "answer is" (or "answer:", ``####``, ``\\boxed{``) that has a number behind it,
    the first number counts, and in a sum ("the answer is 9 * 2 = 18") the one behind the last
    equals sign. Without such a marker it is the last number. Only the last 100,000 characters are
    read.
    """
    text = _plain(completion[-_TAIL:])
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1].start()
    starts = [m.end() for m in _MARKER.finditer(text) if m.end() <= last]
    if not starts:
        return _value(numbers[-1])
    start = starts[-1]
    after = [m for m in numbers if m.start() >= start]
    ending = _SENTENCE_END.search(text, start)
    equals = text.rfind("=", start, ending.start() if ending else len(text))
    summed = [m for m in after if m.start() > equals]
    return _value((summed or after)[0])


class NumberVerifier:
    """Holds the number in a completion against the gold number."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        """``unanswered`` where there is no number, else whether both are equal by value."""
        start = time.perf_counter()
        found, gold = find_number(completion), read_number(question.gold)
        seconds = time.perf_counter() - start
        if gold is None:
            detail = f"the gold answer {question.gold!r} holds no number"
            return _verdict("incorrect", found, detail, seconds)
        if found is None:
            return _verdict("unanswered", None, "no number in the completion", seconds)
        if found.matches(gold):
            return _verdict("correct", found, "", seconds)
        return _verdict("incorrect", found, f"{found} is not {gold}", seconds)

    def extract(self, question: Question, completion: str) -> str | None:
        """The number in its shortest exact form, so that ``18`` and ``$18.00`` vote together."""
        found = find_number(completion)
        return None if found is None else str(found)

    async def close(self) -> None:
        """Nothing to close."""


def _verdict(outcome: Outcome, found: Number | None, detail: str, seconds: float) -> Verdict:
    extracted = None if found is None else str(found)
    return Verdict(outcome, extracted, detail, seconds, feedback_on(outcome, extracted))
