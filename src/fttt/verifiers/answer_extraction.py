r"""The pieces of a completion that may state its answer.

An answer stands in a ``\boxed{…}``, in ``<answer>…</answer>``, behind "answer is", "answer:" or
``####``, or under a heading "Final Answer"; the last of these counts. Without any, the last line of
a completion that was not truncated may state the answer. Thoughts, withdrawn statements, questions
and repetitions of the prompt are no answers.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from fttt.verifiers.number_parser import parse_number

__all__ = [
    "BOX",
    "AnswerCandidate",
    "after_thought",
    "boxed_answer",
    "find_candidates",
    "last_boxed",
]

_TAIL = 100_000
"""Characters at the end of a completion that are searched for an answer."""
_LONGEST = 800
"""Characters of a statement."""
_FORMULA = 200
"""Characters of a formula without delimiters."""
_MOST = 64
"""Candidates that are examined."""


class AnswerCandidate(NamedTuple):
    """A piece of a completion that may state its answer."""

    kind: Literal["box", "statement", "last"]
    """A box, a statement of the answer, or the last line."""
    text: str
    cut: bool = False
    """Whether the completion was truncated where the text ends."""


# ---- thoughts

_THOUGHT_NAMES = r"(?:(?:seed:)?think(?:ing)?|thoughts?|reason(?:ing)?|scratch_?pad|reflection)"
_THOUGHT_START = re.compile(
    rf"(?<![\"'`(])(?:<{_THOUGHT_NAMES}>|<\|begin_of_thought\|>|\[THINK\]|◁think▷)"
    r"(?![\"')]|`(?!``)|\s*(?:tags?|blocks?|tokens?|elements?|sections?)\b|\s+(?:and|or)\s+\W*<)",
    re.IGNORECASE,
)
_THOUGHT_END = re.compile(
    rf"(?:</{_THOUGHT_NAMES}>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷)"
    r"(?![\"']|`(?!``))",  # a quoted tag is a mention
    re.IGNORECASE,
)


def after_thought(completion: str) -> str | None:
    """The text behind the last thought; ``None`` where a thought is not closed.

    A template may open the thought in the prompt, so a closing tag alone ends a thought too. A
    quoted tag, or a mention ("the <think> tag"), opens nothing.
    """
    if "<" not in completion and "[" not in completion and "\u25c1" not in completion:
        return completion  # most have no tag at all
    *_, said = _THOUGHT_END.split(completion)
    return None if _THOUGHT_START.search(said) else said


# ---- boxes

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_BARE_BOX = re.compile(r"(?:[-+\d\\.(\[]|[A-Za-z](?![A-Za-z]))[^\s$]*")
_PLACEHOLDER = re.compile(
    r"\.{2,}|\u2026|\?+|(?:\\text\s*\{)?\W*(?:(?:your|the|final)\s+)*(?:answer|number|result|value|solution)"
    r"(?:\s+here)?\W*|\\(?:dots|ldots|cdots|square|Box)",
    re.IGNORECASE,
)
"""The content of a box that is a mention, not an answer."""
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NEXT_BOX = re.compile(
    r"[\s$,;]*(?:\\\))?(?:,?\s*(?:and|or|\\text\s*\{\s*,?\s*(?:and|or)\s*\}))?[\s$,;]*(?:\\\()?\s*"
    r"(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"
)
"""Text between two boxes of one answer."""
_APART = 60
"""Characters between two boxes of one answer, at most."""


class _BoxedText(NamedTuple):
    start: int
    end: int
    text: str


def _boxes(text: str) -> tuple[list[_BoxedText], int]:
    """The closed boxes with content, and the start of a box that never closes (or ``-1``).

    ``\\boxed 5`` boxes the next word, as the MATH benchmark's own solutions write it, but
    ``\\boxed notation`` is a mention of a box. Time is linear in the text.
    """
    begun = list(BOX.finditer(text)) if "box" in text else []
    closing = _closing_braces(text) if begun else {}
    found: list[_BoxedText] = []
    unclosed = -1
    for match in begun:
        start = match.end()
        if text[start : start + 1] != "{":
            bare = _BARE_BOX.match(text, start, start + _FORMULA)
            if bare is not None and bare[0] not in ("a", "I"):
                found.append(_BoxedText(match.start(), bare.end(), bare[0]))
        elif start in closing:
            content = text[start + 1 : closing[start]].strip()
            if content and not _PLACEHOLDER.fullmatch(content):
                found.append(_BoxedText(match.start(), closing[start] + 1, content))
        else:
            unclosed = match.start()
    return found, unclosed


def _closing_braces(text: str) -> dict[int, int]:
    """The index of the closing brace of each opening brace; escaped braces are letters."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` or ``\fbox{…}`` that is closed and not empty."""
    found, _ = _boxes(text)
    return found[-1].text if found else None


def boxed_answer(text: str) -> str | None:
    r"""The content of the last box and of the boxes side by side with it.

    ``\boxed{2}$ and $\boxed{3}`` is ``2, 3``; boxes of the same number count once.
    """
    runs = list(_runs(text, _boxes(text)[0]))
    return runs[-1][1] if runs else None


def _runs(text: str, boxes: list[_BoxedText]) -> Iterator[tuple[_BoxedText, str]]:
    """The last box of each run of boxes side by side, and the joined content of the run."""
    run: list[_BoxedText] = []
    for box in boxes:
        gap = box.start - run[-1].end if run else 0
        if run and (gap > _APART or not _NEXT_BOX.fullmatch(text, run[-1].end, box.start)):
            yield run[-1], _together(run)
            run = []
        run.append(box)
    if run:
        yield run[-1], _together(run)


def _together(run: list[_BoxedText]) -> str:
    """The distinct contents of boxes, joined."""
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
_WORDS = ("ans", "final")
_HINTS = (*_WORDS, "####", "\u7b54\u6848")
"""How every marker and heading begins, in lower case and apart from the bracket of a tag."""
_HINT = re.compile(r"[aA][nN][sS]|[fF][iI][nN][aA][lL]|####|\u7b54\u6848")
"""The same in any text."""
_LINE_START = re.compile(r"(?:\n|\A)[^\w\n]*(?:(?:the|my|your|our)\s+)?\Z", re.IGNORECASE)
_HEADING_LENGTH = 60
_HEADING = re.compile(
    r"[^\w\n</]{0,12}(?:\\(?:textbf|section\*?|subsection\*?|paragraph|text)\s*\{\s*)?[^\w\n</]{0,4}"
    r"(?:(?:the|my|your|our)\s+)?(?:final\s+)?answers?(?:\s*\([^()\n]{1,30}\))?[^\w\n]{0,12}",
    re.IGNORECASE,
)
_SUPPOSED = "maybe|perhaps|possibly|suppose|assume|guess"
_CHECKED = "check|checking|verify|verifying|confirm|confirming|test|testing|convert"
_MISTAKEN = "mistake|mistakes|error|errors"
_OTHERS = (
    "if|whether|a|an|any|no|another|wrong|incorrect|mistaken|previous|earlier|initial|original|given"
    "|provided|listed|proposed|suggested|possible|intermediate|worst|not"
)
_NOT_YET = re.compile(
    rf"(?:\b(?:{_SUPPOSED})\b[^.?!\n]*|\b(?:{_CHECKED})\s+(?:\w+\s+){{0,3}}"
    rf"|\b(?:{_MISTAKEN})\s+(?:in|of|with)\s+(?:\w+\s+){{0,3}}"
    rf"|\b(?:{_OTHERS})\s+(?:(?:the|my|your|our)\s+)?(?:final\s+)?)\Z",
    re.IGNORECASE,
)
"""Words that make the statement behind them a supposition, or one about others' answers."""
_NOT_YET_FAR = frozenset(f"{_SUPPOSED}|{_CHECKED}|{_MISTAKEN}".split("|"))
_NOT_YET_NEAR = frozenset(_OTHERS.split("|"))
"""Words of which that pattern needs one: anywhere, or among the last three."""
_ENTRY = re.compile(r"(?:\n|\A)[^\w\n]*\d{1,2}[.)][^\w\n]*\Z")
"""The beginning of an entry of a numbered list."""
_TAKEN_BACK = re.compile(
    r"[\s.!?*_\"')\]$}`]*(?:(?:but|oh|hmm|wait)[,.!\u2026 ]+)*"
    r"(?:no[,.:;!\u2014\u2013]|no -|oops|scratch that|correction\b|wait,? i (?:made|forgot|missed)"
    r"|(?:that|this)(?:'s| is| was) (?:wrong|not right|not correct|incorrect|a mistake))",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:\n[ \t]*(?:[-*+\u2022][ \t]+|>[ \t]*|\(?1[.)][ \t]+(?=\S))|[\s:\"\u201c'`*_}]|\\\\(?=\s))*"
)
"""Text between the words that announce an answer and the answer."""
_DISPLAYS = {"\\[": "\\]", "$$": "$$"}
_END = re.compile(
    r"[\n.!?\u3002\uff01\uff1f]"  # a set in front is searched many times as fast
    r"(?:(?<=[\n\u3002\uff01\uff1f])|(?=\s+[\"'(*_\u201c$\\]*[A-Z\\])"
    r"|(?=[\"'\u201d*_)\]}$`]*\s*(?:\n|\Z)))"
)
_NOTHING = re.compile(r"[ \t.!?:;*_\"')\]}$`\\]*")
_BLANK = re.compile(r"\W*[A-Za-z]\W*[\"'\u201d`]\W*|\W*[\[<][A-Za-z _]*[\]>]\W*|[\W_]+")
"""A placeholder for an answer, as in a quoted "The final answer is N"."""
_RULED = re.compile(
    r"[ \t]*(?:\*\*|[$\\(\[{]|boxed)*[-+\u2212]?[ $\u20ac\u00a3]*[\d.\\]"
    r"(?!\d*[.):][ \t]+[A-Za-z])(?!\d*[ \t](?:\w+[ \t]+){3})"
)
"""Text behind ``####`` that is a value, and no heading."""
_VALUE_FIRST = re.compile(
    r"(?:[\s*_>:]|(?:about|approximately|exactly|just|only|simply|around|roughly|therefore|thus|then"
    r"|indeed|also|clearly|now|hence)\s|(?:[A-Za-z](?:_\{?\w\}?)?|\([A-Za-z, ]+\))\s*=)*"
    r"(?:[$\\(\[{|+\u2212\u2013\d.-]|[^\x00-\x7f])"
)
"""Text that begins with a value."""

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
"""A closing line behind the answer."""
_DOUBT = re.compile(
    r"^\W*no\b\D*$|\b(?:can(?:not|'t)|could(?: not|n't)|do(?:es)?(?: not|n't) (?:know|say|tell)"
    r"|not enough|unable|unclear|unknown|impossible|not sure)\b"
    r"|(?:^|,\s*)\W*(?:please\s+)?(?:calculate|find|determine|compute|evaluate|solve"
    r"|how (?:many|much)|what (?:is|are|was))\b",
    re.IGNORECASE,
)
"""A sentence without an answer, or a request for one."""
_DOUBT_WORDS = (
    "no|can|cannot|could|couldn|do|does|don|doesn|not|unable|unclear|unknown|impossible|calculate|find"
    "|determine|compute|evaluate|solve|how|what"
)
_DOUBTFUL = frozenset(_DOUBT_WORDS.split("|"))
"""Words of which that pattern needs one."""
_BREAKS_OFF = re.compile(
    r"(?:[,:(+/\u00d7=-]|(?<!\*)\*|\b(?:so|and|but|then|or|the|an?|of|to|which|because|since|if|as|we|she|he"
    r"|they|it|that|with|for|in|at|by|from|is|are|was|has|have|than|plus|minus|times))\s*\Z",
    re.IGNORECASE,
)
"""The end of a line in the middle of a sentence."""
_BREAK = 10
"""Characters at the end of a sentence in which that is searched; its longest word is "because"."""
_WORD = re.compile(r"\w+")
_LAST = 2000
"""Characters at the end in which the last line is searched."""


def find_candidates(
    completion: str, *, prompt: str = "", cut: bool = False, letters: bool = False
) -> Iterator[AnswerCandidate]:
    """The pieces of a completion that may state its answer, in the order of their priority.

    A caller takes the first candidate that it can read, and none behind a truncated one. The search
    covers the last 100,000 characters and at most 64 candidates.

    Args:
        completion: the model's text.
        prompt: the question, whose repetition is no answer.
        cut: whether the completion ended at its length limit.
        letters: whether a quoted letter may be the answer, and no placeholder.
    """
    said = after_thought(completion)
    if said is None:
        return
    text = said[-_TAIL:]
    marks = _marks(text, cut)
    boxed = any(mark.kind == "box" for mark in marks)
    listed = sum(mark.in_list for mark in marks) > 1  # the answers that a text goes through
    for number, mark in enumerate(marks[:_MOST]):
        if _is_not_yet(text, mark.start):
            continue
        found, end = _candidate(text, mark, cut)
        if found is None or _is_echo(text, mark, end, prompt):
            continue
        if mark.in_passing and boxed and found.text and not _VALUE_FIRST.match(found.text):
            continue
        if mark.in_list and boxed and listed:
            continue
        if number == 0 and found.cut and _loops(text, marks):
            continue
        if not found.cut and _TAKEN_BACK.match(text, end) is not None:
            break
        if found.cut or letters or found.kind == "box" or not _BLANK.fullmatch(found.text):
            yield found
    last = None if cut else _last_line(text)
    if last is not None and not _stands_in(prompt, _WORD.findall(last), 3):
        yield AnswerCandidate("last", last)


class _Mark(NamedTuple):
    """A mark of an answer: words or signs that announce it, or a box that holds it."""

    start: int
    end: int
    kind: Literal["box", "unclosed", "heading", "tag", "rule", "words"]
    text: str = ""
    """The content of a box, or the closing tag of a tag."""
    in_passing: bool = False
    """Whether the words stand within a line and are not "the final answer"."""
    in_list: bool = False
    """Whether the words begin an entry of a numbered list."""


def _marks(text: str, cut: bool) -> list[_Mark]:
    """Every mark of an answer in ``text``, in reverse order."""
    boxes, unclosed = _boxes(text)
    marks = [_Mark(box.start, box.end, "box", content) for box, content in _runs(text, boxes)]
    spans = _spans(boxes)
    if cut and unclosed >= 0:
        marks.append(_Mark(unclosed, len(text), "unclosed"))
    end = 0
    for start in _hints(text):
        if start >= end:
            found = _mark(text, start)
            if found is not None:
                marks.append(found)
                end = found.end
    outside = [mark for mark in marks if mark.kind == "box" or not _is_within(mark.start, spans)]
    return sorted(outside, key=lambda mark: mark.start, reverse=True)


def _hints(text: str) -> list[int]:
    """Where :data:`_HINT` matches, found by what is ten times as fast."""
    lower = text.lower()
    if len(lower) != len(text):  # a letter whose lower case is two, one of them an "i"
        return [match.start() for match in _HINT.finditer(text)]
    found: list[int] = []
    for hint in _HINTS:
        start = lower.find(hint)
        while start >= 0:
            if hint not in _WORDS or not "a" <= lower[start - 1 : start] <= "z":  # as in "means"
                found.append(start)
            start = lower.find(hint, start + len(hint))
    return sorted(found)


def _is_not_yet(text: str, start: int) -> bool:
    """Whether :data:`_NOT_YET` is before ``start``; seldom, so its words are looked for first."""
    begin = max(0, start - 60)
    before = text[begin:start]
    if before.isascii():
        words = _WORD.findall(before.lower())
        if _NOT_YET_FAR.isdisjoint(words) and _NOT_YET_NEAR.isdisjoint(words[-3:]):
            return False
    return _NOT_YET.search(text, begin, start) is not None


def _mark(text: str, start: int) -> _Mark | None:
    """The mark whose word begins at ``start``, if there is one."""
    begins = text.rfind("\n", max(0, start - _HEADING_LENGTH), start) + 1
    if begins or start < _HEADING_LENGTH:
        ends = text.find("\n", start, start + _HEADING_LENGTH)
        ends = len(text) if ends < 0 and len(text) - start < _HEADING_LENGTH else ends
        # a heading ends in its word or in no word at all, so not in a digit as most statements do
        if ends > 0 and not text[ends - 1].isdigit() and _HEADING.fullmatch(text, begins, ends):
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
    entry = _ENTRY.search(text, max(0, start - 30), start) is not None
    return _Mark(match.start(), match.end(), "words", in_passing=passing, in_list=entry)


def _spans(boxes: list[_BoxedText]) -> list[tuple[int, int]]:
    """The spans of the outermost boxes, from left to right."""
    spans: list[tuple[int, int]] = []
    for box in boxes:
        if not spans or box.start >= spans[-1][1]:
            spans.append((box.start, box.end))
    return spans


def _is_within(index: int, spans: list[tuple[int, int]]) -> bool:
    number = bisect_right(spans, (index, 0)) - 1
    return number >= 0 and index < spans[number][1]


def _candidate(text: str, mark: _Mark, cut: bool) -> tuple[AnswerCandidate | None, int]:
    """The candidate behind a mark, ``None`` without one, and its end."""
    if mark.kind == "unclosed":
        return AnswerCandidate("box", "", cut=True), mark.end
    if mark.kind == "box":
        return AnswerCandidate("box", mark.text), mark.end
    if mark.kind == "heading":
        return _under(text, mark.end, cut), mark.end
    if mark.kind == "tag":
        end = text.find(mark.text, mark.end, mark.end + _LONGEST)
        if end >= 0:
            return AnswerCandidate("statement", text[mark.end : end].strip()), end
    return _statement(text, mark.end, cut)


def _statement(text: str, start: int, cut: bool) -> tuple[AnswerCandidate | None, int]:
    """The sentence at ``start``, ``None`` for a question or nothing, and its end."""
    lead = _LEAD.match(text, start)
    start = start if lead is None else lead.end()
    limit = min(len(text), start + _LONGEST)
    closing = _DISPLAYS.get(text[start : start + 2])
    closed = text.find(closing, start + 2, limit) if closing else -1
    ending = _END.search(text, max(start, closed), limit)
    end = limit if ending is None else ending.start()
    if cut and _NOTHING.fullmatch(text, end):
        return AnswerCandidate("statement", text[start:], cut=True), len(text)
    asked = ending is not None and ending[0] in ("?", "\uff1f")
    if asked or not text[start:end].strip():
        return None, end
    return AnswerCandidate("statement", text[start:end]), end


def _under(text: str, start: int, cut: bool) -> AnswerCandidate | None:
    """The answer under a heading, or the last line of the solution there."""
    lines = [line for line in text[start : start + _LAST].split("\n") if not _CLOSING.match(line)]
    if not lines or len(lines) == 1 or _VALUE_FIRST.match(lines[0]):
        return _statement(text, start, cut)[0]
    if cut:
        return AnswerCandidate("statement", "", cut=True)
    last = _last_line(text[start:])
    return None if last is None else AnswerCandidate("statement", last)


def _loops(text: str, marks: list[_Mark]) -> bool:
    """Whether the text repeats itself, word for word, at the last three marks."""
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
                return None  # a list entry without its text
            break
        line = line[listed.end() :]
    sentences = _sentences(line)
    if not sentences or _BREAKS_OFF.search(sentences[-1], len(sentences[-1]) - _BREAK):
        return None
    for sentence in reversed(sentences):
        if _is_doubtful(sentence) or sentence.endswith(("?", "\uff1f")):
            return None
        if any(map(str.isnumeric, sentence)):
            return sentence
    return sentences[-1]


def _is_doubtful(sentence: str) -> bool:
    """Whether :data:`_DOUBT` is in a sentence; seldom, so its words are looked for first."""
    if sentence.isascii() and _DOUBTFUL.isdisjoint(_WORD.findall(sentence.lower())):
        return False
    return _DOUBT.search(sentence) is not None


def _sentences(line: str) -> list[str]:
    """The sentences of a line, with the signs that end them."""
    ends = [0, *(match.end() for match in _END.finditer(line)), len(line)]
    parts = [line[start:end].strip() for start, end in pairwise(ends)]
    return [part for part in parts if part]


def _is_echo(text: str, mark: _Mark, end: int, prompt: str) -> bool:
    """Whether a mark, its candidate and the words before it are a repetition of the prompt."""
    if mark.kind == "box":
        return text[max(0, mark.start - 80) : end] in prompt
    own = _WORD.findall(text[mark.start : end])
    if not _stands_in(prompt, own, 1):
        return False
    before = _WORD.findall(text[max(0, mark.start - 120) : mark.start])
    return _stands_in(prompt, before[-6:] + own, 8)


def _stands_in(prompt: str, words: list[str], least: int) -> bool:
    """Whether ``prompt`` has these words in this order, and they are many enough to tell."""
    if not prompt or len(words) < least:
        return False
    return f" {' '.join(words)} ".casefold() in _spaced(prompt)


@lru_cache(maxsize=2048)
def _spaced(prompt: str) -> str:
    return f" {' '.join(_WORD.findall(prompt.casefold()))} "
