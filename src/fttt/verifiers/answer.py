r"""Where a completion says its answer.

An answer stands in a ``\boxed{…}``, in ``<answer>…</answer>``, behind "answer is", "answer:" or
``####``, or under a heading "Final Answer"; the last of them counts. Without any, the last line of
an answer that ended by itself may state it. What a model thought, what it took back, what it asked
and what it repeats of its question never is an answer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from fttt.verifiers.numeral import parse_number
from fttt.verifiers.thought import after_thought

__all__ = ["Place", "boxed_answer", "find_answer", "find_places", "last_boxed"]

_TAIL = 100_000
"""Characters at the end of a completion that are searched for an answer."""
_LONGEST = 800
"""Characters of a statement."""
_FORMULA = 200
"""Characters of a formula without delimiters."""
_MOST = 64
"""Places that are looked at; behind so many without an answer there is none."""

Kind = Literal["box", "statement", "last"]


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of a completion that may say its answer."""

    kind: Kind
    """In a box; in a statement of the answer; or the last line, which states it or does not."""
    text: str
    cut: bool = False
    """Whether the completion was cut off where the text ends."""


# ---- boxes

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_BARE_BOX = re.compile(r"(?:[-+\d\\.(\[]|[A-Za-z](?![A-Za-z]))[^\s$]*")
_PLACEHOLDER = re.compile(
    r"\.{2,}|\u2026|\?+|(?:\\text\s*\{)?\W*(?:(?:your|the|final)\s+)*(?:answer|number|result|value|solution)"
    r"(?:\s+here)?\W*|\\(?:dots|ldots|cdots|square|Box)",
    re.IGNORECASE,
)
"""What a box holds when a completion speaks of a box."""
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NEXT_BOX = re.compile(
    r"[\s$,;]*(?:\\\))?(?:,?\s*(?:and|or|\\text\s*\{\s*,?\s*(?:and|or)\s*\}))?[\s$,;]*(?:\\\()?\s*"
    r"(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"
)
"""What may stand between the boxes of one answer."""


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    text: str


def _boxes(text: str) -> tuple[list[_Box], int]:
    """The closed boxes that hold something, and where one begins that never closes (or ``-1``).

    ``\\boxed 5`` boxes the next word, as the MATH benchmark's own solutions write it, but
    ``\\boxed notation`` speaks of a box. Time is linear in the text.
    """
    begun = list(_BOX.finditer(text)) if "box" in text else []
    closing = _closing_braces(text) if begun else {}
    found: list[_Box] = []
    unclosed = -1
    for match in begun:
        start = match.end()
        if text[start : start + 1] != "{":
            bare = _BARE_BOX.match(text, start, start + _FORMULA)
            if bare is not None and bare[0] not in ("a", "I"):
                found.append(_Box(match.start(), bare.end(), bare[0]))
        elif start in closing:
            content = text[start + 1 : closing[start]].strip()
            if content and not _PLACEHOLDER.fullmatch(content):
                found.append(_Box(match.start(), closing[start] + 1, content))
        else:
            unclosed = match.start()
    return found, unclosed


def _closing_braces(text: str) -> dict[int, int]:
    """The place of the closing brace of each opening one; escaped braces are letters."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` or ``\fbox{…}`` that is closed and not empty."""
    found, _ = _boxes(text)
    return found[-1].text if found else None


def boxed_answer(text: str) -> str | None:
    r"""What the last box holds, with those before it where they make one answer.

    ``\boxed{2}$ and $\boxed{3}`` is ``2, 3``; boxes of the same number are one.
    """
    runs = list(_runs(text, _boxes(text)[0]))
    return runs[-1][1] if runs else None


def _runs(text: str, boxes: list[_Box]) -> Iterator[tuple[_Box, str]]:
    """Boxes side by side: the last one of each run, and what they hold together."""
    run: list[_Box] = []
    for box in boxes:
        if run and not _NEXT_BOX.fullmatch(text, run[-1].end, min(box.start, run[-1].end + 60)):
            yield run[-1], _together(run)
            run = []
        if run and box.start - run[-1].end > 60:
            yield run[-1], _together(run)
            run = []
        run.append(box)
    if run:
        yield run[-1], _together(run)


def _together(run: list[_Box]) -> str:
    """The different contents of boxes, joined."""
    found: dict[object, str] = {}
    for box in run:
        number = parse_number(box.text)
        found[box.text if number is None else number.value] = box.text
    return ", ".join(found.values())


# ---- statements

_MARKUP = r"[*_`}]*"
_SAYS = (
    r"(?:(?:is|are|was|were|equals|becomes|(?:should|would|will|must|has to|can only) be|comes to"
    r"|turns out to be)(?![\w'])(?!\s+not\b)|[:=\uff1a]|[-\u2013\u2014]+>?(?=\s)|\u2192|\u21d2)"
)
_NOUN = (
    r"(?:answers?|ans|final\s+(?:result|value|total|solution|count|number|amount|sum|price|cost))"
)
_MARKER = re.compile(
    r"<(?P<tag>(?:final[_ -]?)?answer)>|\[(?P<bracket>answer)\]|(?P<rule>(?<!#)####(?!#))"
    rf"|(?<![A-Za-z\\])(?P<final>final\s+)?{_NOUN}(?![A-Za-z]){_MARKUP}(?:\s?\([^()\n]{{1,40}}\))?"
    r"(?:,[^,.:;?!\n]{1,30},|\s+(?:to|for|of|in|we)\b[^.:;?!=\n]{0,80}?(?!\s*=))?"
    rf"{_MARKUP}\s*{_SAYS}|\u7b54\u6848[\u662f\u4e3a:\uff1a=]",
    re.IGNORECASE,
)
_HINT = re.compile(r"[aA][nN][sS]|[fF][iI][nN][aA][lL]|####|\u7b54\u6848")
"""How every marker and heading begins, but for the bracket of a tag."""
_LINE_START = re.compile(r"(?:\n|\A)[^\w\n]*(?:(?:the|my|your|our)\s+)?\Z", re.IGNORECASE)
_HEADING_LENGTH = 60
_HEADING = re.compile(
    r"[^\w\n</]{0,12}(?:\\(?:textbf|section\*?|subsection\*?|paragraph|text)\s*\{\s*)?[^\w\n</]{0,4}"
    r"(?:(?:the|my|your|our)\s+)?(?:final\s+)?answers?(?:\s*\([^()\n]{1,30}\))?[^\w\n]{0,12}",
    re.IGNORECASE,
)
_NOT_YET = re.compile(
    r"(?:\b(?:maybe|perhaps|possibly|suppose|assume|guess)\b[^.?!\n]*"
    r"|\b(?:check(?:ing)?|verify(?:ing)?|confirm(?:ing)?|test(?:ing)?|convert)\s+(?:\w+\s+){0,3}"
    r"|\b(?:if|whether|an?|any|no|another|wrong|incorrect|previous|earlier|initial|possible"
    r"|intermediate)\s+(?:(?:the|my|your|our)\s+)?(?:final\s+)?)\Z",
    re.IGNORECASE,
)
"""What makes the statement behind it none."""
_TAKEN_BACK = re.compile(
    r"[\s.!?*_\"')\]$}`]*(?:(?:but|oh|hmm|wait)[,.!\u2026 ]+)*"
    r"(?:no[,.:;!\u2014\u2013]|no -|oops|scratch that|correction\b|wait,? i (?:made|forgot|missed)"
    r"|(?:that|this)(?:'s| is| was) (?:wrong|not right|not correct|incorrect|a mistake))",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:\n[ \t]*(?:[-*+\u2022][ \t]+|>[ \t]*|\(?1[.)][ \t]+(?=\S))|[\s:\"\u201c'`*_}]|\\\\(?=\s))*"
)
"""What may stand between the words that announce an answer and the answer."""
_DISPLAYS = {"\\[": "\\]", "$$": "$$"}
_END = re.compile(
    r"\n|[.!?](?=\s+[\"'(*_\u201c$\\]*[A-Z\\]|[\"'\u201d*_)\]}$`]*\s*(?:\n|\Z))"
    r"|[\u3002\uff01\uff1f]"
)
_NOTHING = re.compile(r"[ \t.!?:;*_\"')\]}$`\\]*")
_BLANK = re.compile(r"\W*[A-Za-z]\W*[\"'\u201d`]\W*|\W*[\[<][A-Za-z _]*[\]>]\W*|[\W_]+")
"""A place for an answer, as in a quoted "The final answer is N"."""
_RULED = re.compile(
    r"[ \t]*(?:\*\*|[$\\(\[{]|boxed)*[-+\u2212]?[ $\u20ac\u00a3]*[\d.\\]"
    r"(?!\d*[.):][ \t]+[A-Za-z])(?!\d*[ \t](?:\w+[ \t]+){3})"
)
"""What ``####`` stands before: a value, and no heading."""
_VALUE_FIRST = re.compile(
    r"(?:[\s*_>:]|(?:about|approximately|exactly|just|only|simply|around|roughly|therefore|thus|then"
    r"|indeed|also|clearly|now|hence)\s|(?:[A-Za-z](?:_\{?\w\}?)?|\([A-Za-z, ]+\))\s*=)*"
    r"(?:[$\\(\[{|+\u2212\u2013\d.-]|[^\x00-\x7f])"
)
"""What begins with a value."""

# ---- the last line

_LISTED = re.compile(
    r"\s*(?:[-*+\u2022>]\s+|#+\s+|\(?(?P<number>\d{1,3})[.)](?!\d)\s*|step\s+\d+[.:]\s*)",
    re.IGNORECASE,
)
_BARE_NUMBER = re.compile(r"[\W_]*\d[\d.,/ ]*[\W_]*")
_CLOSING = re.compile(
    r"[\W_]*$|[\W_]*\([^()]*(?<![\\A-Za-z])[A-Za-z]{3}[^()]*\)[\W_]*$"
    r"|[\W_]*(?:i hope|hope (?:this|that|it)|let me know|feel free|please|thanks?|you're welcome"
    r"|good luck|have a (?:nice|great|good)|is there anything|if you (?:have|need|would)|do you"
    r"|would you|that's it|that is it|q\.?e\.?d|done"
    r"|check(?:ed|ing)?|verif(?:y|ying|ication)|note)\b",
    re.IGNORECASE,
)
"""A line behind the answer that says nothing about it."""
_DOUBT = re.compile(
    r"^\W*no\b\D*$|\b(?:can(?:not|'t)|could(?: not|n't)|do(?:es)?(?: not|n't) (?:know|say|tell)"
    r"|not enough|unable|unclear|unknown|impossible|not sure)\b"
    r"|(?:^|,\s*)\W*(?:please\s+)?(?:calculate|find|determine|compute|evaluate|solve"
    r"|how (?:many|much)|what (?:is|are|was))\b",
    re.IGNORECASE,
)
"""A sentence that gives no answer, or asks for one."""
_BREAKS_OFF = re.compile(
    r"(?:[,:(+/\u00d7=-]|(?<!\*)\*|\b(?:so|and|but|then|or|the|an?|of|to|which|because|since|if|as|we|she|he"
    r"|they|it|that|with|for|in|at|by|from|is|are|was|has|have|than|plus|minus|times))\s*\Z",
    re.IGNORECASE,
)
"""The end of a line that is no end of a sentence."""
_WORD = re.compile(r"\w+")
_LAST = 2000
"""Characters at the end that may be the last line."""


def find_places(completion: str, *, prompt: str = "", cut: bool = False) -> Iterator[Place]:
    """Where a completion may say its answer; the place that outweighs the others comes first.

    A reader takes the first place that says an answer in its sense, and nothing behind one that was
    cut off. Only the last 100,000 characters are looked at, and at most 64 places.

    Args:
        completion: what the model wrote.
        prompt: the question; what a completion repeats of it is no answer.
        cut: whether the completion ended at its length limit.
    """
    said = after_thought(completion)
    if said is None:
        return
    text = said[-_TAIL:]
    marks = _marks(text, cut)
    taken_back = False
    boxed = any(mark.kind == "box" for mark in marks)
    for number, mark in enumerate(marks[:_MOST]):
        if _NOT_YET.search(text, max(0, mark.start - 60), mark.start):
            continue
        place, end = _place(text, mark, cut)
        if place is None or _is_echo(text, mark, end, prompt):
            continue
        if mark.in_passing and boxed and not place.cut and not _VALUE_FIRST.match(place.text):
            continue
        if number == 0 and place.cut and _loops(text, marks):
            continue
        taken_back = not place.cut and _TAKEN_BACK.match(text, end) is not None
        if taken_back:
            break
        if place.cut or place.kind == "box" or not _BLANK.fullmatch(place.text):
            yield place
    last = None if cut else _last_line(text)
    if last is not None and not _stands_in(prompt, _WORD.findall(last), 3):
        yield Place("last", last)


@dataclass(frozen=True, slots=True)
class _Mark:
    """What announces an answer, or a box that holds it."""

    start: int
    end: int
    kind: Literal["box", "unclosed", "heading", "tag", "rule", "words"]
    text: str = ""
    """What the box holds; the tag that closes this one."""
    in_passing: bool = False
    """Whether words speak of "the answer" within a line, and not of "the final answer"."""


def _marks(text: str, cut: bool) -> list[_Mark]:
    """Every mark of an answer in ``text``, the last one first."""
    boxes, unclosed = _boxes(text)
    marks = [_Mark(box.start, box.end, "box", content) for box, content in _runs(text, boxes)]
    spans = _spans(boxes)
    if cut and unclosed >= 0:
        marks.append(_Mark(unclosed, len(text), "unclosed"))
    end = 0
    for hint in _HINT.finditer(text):
        if hint.start() >= end:
            found = _mark(text, hint.start())
            if found is not None:
                marks.append(found)
                end = found.end
    outside = [mark for mark in marks if mark.kind == "box" or not _is_within(mark.start, spans)]
    return sorted(outside, key=lambda mark: mark.start, reverse=True)


def _mark(text: str, start: int) -> _Mark | None:
    """The mark whose word begins at ``start``, if it is one."""
    begins = text.rfind("\n", max(0, start - _HEADING_LENGTH), start) + 1
    if begins or start < _HEADING_LENGTH:
        ends = text.find("\n", start, start + _HEADING_LENGTH)
        ends = len(text) if ends < 0 and len(text) - start < _HEADING_LENGTH else ends
        if ends > 0 and _HEADING.fullmatch(text, begins, ends):
            return _Mark(begins, ends, "heading")
    match = _MARKER.match(text, start - 1 if text[start - 1 : start] in ("<", "[") else start)
    if match is None or (match["rule"] and not _RULED.match(text, match.end())):
        return None
    if match["tag"] or match["bracket"]:
        return _Mark(match.start(), match.end(), "tag", f"{match[0][0]}/{match[0][1:]}")
    if match["rule"]:
        return _Mark(match.start(), match.end(), "rule")
    begin = _LINE_START.search(text, max(0, start - 30), start)
    passing = begin is None and not match["final"]
    return _Mark(match.start(), match.end(), "words", in_passing=passing)


def _spans(boxes: list[_Box]) -> list[tuple[int, int]]:
    """Where the outermost boxes begin and end, from left to right."""
    spans: list[tuple[int, int]] = []
    for box in boxes:
        if not spans or box.start >= spans[-1][1]:
            spans.append((box.start, box.end))
    return spans


def _is_within(place: int, spans: list[tuple[int, int]]) -> bool:
    number = bisect_right(spans, (place, 0)) - 1
    return number >= 0 and place < spans[number][1]


def _place(text: str, mark: _Mark, cut: bool) -> tuple[Place | None, int]:
    """What a mark announces, if it is a statement, and where that ends."""
    if mark.kind == "unclosed":
        return Place("box", "", cut=True), mark.end
    if mark.kind == "box":
        return Place("box", mark.text), mark.end
    if mark.kind == "heading":
        return _under(text, mark.end, cut), mark.end
    if mark.kind == "tag":
        end = text.find(mark.text, mark.end, mark.end + _LONGEST)
        if end >= 0:
            return Place("statement", text[mark.end : end].strip()), end
    return _statement(text, mark.end, cut)


def _statement(text: str, start: int, cut: bool) -> tuple[Place | None, int]:
    """The sentence at ``start``, ``None`` where it is a question or empty, and where it ends."""
    lead = _LEAD.match(text, start)
    start = start if lead is None else lead.end()
    limit = min(len(text), start + _LONGEST)
    closing = _DISPLAYS.get(text[start : start + 2])
    closed = text.find(closing, start + 2, limit) if closing else -1
    ending = _END.search(text, max(start, closed), limit)
    end = limit if ending is None else ending.start()
    if cut and _NOTHING.fullmatch(text, end):
        return Place("statement", text[start:], cut=True), len(text)
    asked = ending is not None and ending[0] in ("?", "\uff1f")
    if asked or not text[start:end].strip():
        return None, end
    return Place("statement", text[start:end]), end


def _under(text: str, start: int, cut: bool) -> Place | None:
    """What stands under a heading: an answer, or a solution that ends with it."""
    lines = [line for line in text[start : start + _LAST].split("\n") if not _CLOSING.match(line)]
    if not lines or len(lines) == 1 or _VALUE_FIRST.match(lines[0]):
        return _statement(text, start, cut)[0]
    if cut:
        return Place("statement", "", cut=True)
    last = _last_line(text[start:])
    return None if last is None else Place("statement", last)


def _loops(text: str, marks: list[_Mark]) -> bool:
    """Whether the last mark repeats, word for word, the two before it."""
    if len(marks) < 3:
        return False
    last, before = marks[0].start, marks[1].start
    period = last - before
    return period <= before and text[before - period : before] == text[before:last]


def _last_line(text: str) -> str | None:
    """The sentence with a number in the last line of ``text``, without list markers."""
    lines = [line for line in text[-_LAST:].split("\n") if line.strip()]
    while len(lines) > 1 and _CLOSING.match(lines[-1]):
        lines.pop()
    if not lines:
        return None
    line, before = lines[-1].strip(), lines[-2] if len(lines) > 1 else ""
    numbers = _BARE_NUMBER.fullmatch(before) and _BARE_NUMBER.fullmatch(line)
    if numbers and _WORD.findall(before) != _WORD.findall(line):
        return None  # the end of a list
    while (listed := _LISTED.match(line)) is not None and (before or line[0] not in "+-"):
        number = listed["number"]
        if listed.end() == len(line.rstrip()) and number is not None:
            above = {m["number"] for line in lines[:-1] if (m := _LISTED.match(line))}
            if number == "1" or str(int(number) - 1) in above:
                return None  # an entry that was not written
            break
        line = line[listed.end() :]
    sentences = _sentences(line)
    if not sentences or _BREAKS_OFF.search(sentences[-1]):
        return None
    for sentence in reversed(sentences):
        if _DOUBT.search(sentence) or sentence.endswith(("?", "\uff1f")):
            return None
        if any(map(str.isnumeric, sentence)):
            return sentence
    return sentences[-1]


def _sentences(line: str) -> list[str]:
    """The sentences of a line, with the signs that end them."""
    places = [0, *(match.end() for match in _END.finditer(line)), len(line)]
    parts = [line[start:end].strip() for start, end in pairwise(places)]
    return [part for part in parts if part]


def _is_echo(text: str, mark: _Mark, end: int, prompt: str) -> bool:
    """Whether a mark, what it announces and what stands before it are the question's own."""
    if mark.kind == "box":
        return text[max(0, mark.start - 80) : end] in prompt
    before = _WORD.findall(text[max(0, mark.start - 120) : mark.start])
    return _stands_in(prompt, before[-6:] + _WORD.findall(text[mark.start : end]), 8)


def _stands_in(prompt: str, words: list[str], least: int) -> bool:
    """Whether many words stand in ``prompt`` just so."""
    if not prompt or len(words) < least:
        return False
    return f" {' '.join(words)} ".casefold() in _spaced(prompt)


@lru_cache(maxsize=2048)
def _spaced(prompt: str) -> str:
    return f" {' '.join(_WORD.findall(prompt.casefold()))} "


# ---- mathematics

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
_MOST_WORDS = 8
"""Words of an answer that is no formula."""


def find_answer(completion: str, *, prompt: str = "", cut: bool = False) -> str | None:
    r"""The answer of a completion as mathematics, ``None`` where it says none.

    It is what the last box or statement holds (see :func:`find_places`). Without any, a last line
    that is nothing but a formula is the answer. Words are an answer where there is no formula.
    """
    words: str | None = None
    for place in find_places(completion, prompt=prompt, cut=cut):
        if place.kind == "box":
            return None if place.cut else place.text
        if place.kind == "last":
            return words or _bare(place.text)
        formula, rest = _formula(place.text)
        closed = place.text.rstrip("*_ .").endswith(("$", "\\)", "\\]"))
        if place.cut and not (formula and (closed or rest.strip("*_ "))):
            return None
        if _BOX.search(place.text):
            continue
        if formula:
            return _result(formula)
        if words is None and len(_WORD.findall(place.text)) <= _MOST_WORDS:
            words = place.text.strip().strip("*$").rstrip(".").strip() or None
    return words


def _formula(text: str) -> tuple[str, str]:
    """The value that a sentence states, empty where it states none, and the text behind it."""
    marked = list(_MATH.finditer(text))
    for start in (0, *(match.end() for match in _IS.finditer(text))):
        if any(formula.start() < start < formula.end() for formula in marked):
            continue
        found, rest = _value(text, start)
        if found:
            return found, rest
    if len(marked) == 1:
        return _inside(marked[0]), text[marked[0].end() :]
    return "", ""


def _result(formula: str) -> str:
    """What a calculation comes to; any other formula is what it is."""
    *worked, result = formula.rstrip(" ,;").split("=")
    letters = _LETTER.search(_COMMAND.sub("", "".join(worked)))
    return result.strip() if worked and letters is None and result.strip() else formula


def _value(text: str, start: int) -> tuple[str, str]:
    """The formulas at ``start``, empty where there are none, and the text behind them."""
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
    bare = text[start:end].strip().strip("*$").rstrip(".").strip()
    spoken = _SPOKEN.search(_COMMAND.sub("", bare))
    return (bare if _SIGN.search(bare) or not spoken else ""), text[end:]


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _bare(text: str) -> str | None:
    """``text`` where it is one line of mathematics without words."""
    if len(text) > _FORMULA or _BOX.search(text):
        return None
    if _SPOKEN.search(_COMMAND.sub("", text)) or not _SIGN.search(text):
        return None
    return _formula(text)[0] or None
