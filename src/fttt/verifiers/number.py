"""Numbers compared by value: ``18``, ``18.0`` and ``$18.00`` are the same answer."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from fttt.types import JSON, Outcome, Question, Verdict
from fttt.verifiers.answer_extraction import after_thought, find_candidates
from fttt.verifiers.number_parser import (
    Number,
    Numeral,
    may_continue,
    parse_number,
    plain_letters,
    scan_numbers,
)
from fttt.verifiers.verifier import check_rule, timed_verdict

__all__ = ["NUMBER_RULES", "NumberRule", "NumberVerifier", "find_numbers", "read_number"]

NumberRule = Literal["value", "strict"]
NUMBER_RULES: tuple[str, ...] = get_args(NumberRule)

_STRICT = re.compile(r"\bthe final answer is\b:?", re.IGNORECASE)
_TAIL = 100_000
"""Characters at the end of a completion in which the strict rule searches its marker."""
_STATEMENT = 800
"""Characters of a statement behind the strict rule's marker."""
_LONGEST = 2000
"""Characters of an answer; a longer one is no number."""
_DIGITS = 15
"""Most digits of a number that is read without the patterns."""
_LARGEST = 8192
"""Bits of the value of a sum; a larger one does not count as a number."""

# Text between two numbers, or beside one.
_SPACE = (
    r"(?:\s|\$|\*\*|__|\\[()\[\],;:! ]|[{}~&]|\\(?:text(?:bf)?|math(?:rm|bf)|left|right|boxed"
    r"|displaystyle|q?quad)(?![A-Za-z]))"
)
_NO_UNIT = (
    r"(?!(?:and|or|but|because|since|as|so|if|when|while|that|which|who|then|to|of|in|at|by|for|from"
    r"|with|on|is|are|was|were|equals|makes|gives|after|before|than|out|over|more|fewer|less|plus"
    r"|minus|times|multiplied|divided|x)(?![A-Za-z]))"
)
_UNIT = rf"(?:{_NO_UNIT}-?[A-Za-z\u00b0\u00b2\u00b3][A-Za-z\u00b2\u00b3'/-]*(?![A-Za-z])\.?)"
_UNITS = rf"{_SPACE}*(?:{_UNIT}{_SPACE}*){{0,4}}"
_OPERATION = re.compile(
    rf"(?i:{_UNITS}[()\s]*(?:"
    r"(?P<equals>=+>?|\u2248|\\approx(?![A-Za-z])|\u2192|\u21d2|->"
    r"|\\(?:implies|[Rr]ightarrow|to)(?![A-Za-z])|(?:which )?(?:is|are|equals|makes|gives)\b"
    r"(?: equal to\b)?)"
    r"|(?P<sign>[+-]|\*(?!\*)|[\u00d7\u00b7/\u00f7]|\\(?:times|cdot|ast|div)(?![A-Za-z])"
    r"|x(?![A-Za-z])|(?:plus|minus|times|multiplied by|divided by)\b))"
    rf"(?:{_SPACE}|[()]|(?:a total of|about|only|just)\b)*)"
)
_ONLY_UNITS = re.compile(_UNITS, re.IGNORECASE)
_JOIN = re.compile(
    rf"(?i:{_SPACE}*(?P<units>(?:{_UNIT}{_SPACE}*){{0,2}})"
    rf"(?P<join>,?\s*\b(?:or|and|to)\b|[,;]|){_SPACE}*(?:[a-z](?:_\{{?\w\}}?)?{_SPACE}*={_SPACE}*)?)"
)
_LOOK_BACK = 30
"""Characters before a number that tell its role."""
_NEAR = 80
"""Characters between two numbers that belong together."""
_SHAPED = (
    r"(?:[<\u2264\u2265\u2260\u00b1^]"
    r"|\\(?:leq?|geq?|leqslant|geqslant|neq?|lt|gt|pm|mp)(?![A-Za-z]))"
)
_SPOILED_BEFORE = re.compile(
    rf"(?:{_SHAPED}|(?<![=\"-])>|(?<!\*)\*|[+\u00d7\u00b7/]|\\(?:times|cdot|div|sqrt)(?![A-Za-z])"
    rf"|(?<=[\w)}}\]] )-|\b(?:than|at (?:least|most)|up to|over|under|above|below|almost|nearly"
    r"|not|isn't|twice|double|triple"
    r"|half(?: of)?|(?:third|quarter|fifth|tenth|root) of"
    r"|(?:minus|negative)\s+[a-z]{3,9}))(?:\s|\$|\*\*|[({])*\Z",
    re.IGNORECASE,
)
"""Text before a number that makes it part of an expression or of a bound."""
_SPOILED_BEHIND = re.compile(
    rf"(?:\s|\*\*|\$)*(?:{_SHAPED}|>|\+(?=[\s.,)*$]*\Z)|(?:or|and) (?:more|fewer|less"
    r"|greater|higher|lower|above|over|up|under|below)\b"
    r"|(?:[+\u00d7\u00b7\u00f7-]|\*(?!\*)|\\(?:times|cdot|div)(?![A-Za-z]))"
    r"\s*(?:[A-Za-z](?![A-Za-z])|\\[A-Za-z]+|\$?\()|\(?\\?p?mod\b"
    r"|(?:factorial|choose|squared|cubed)\b(?!\s+[a-z]))",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(
    rf"(?i:{_SPACE}|[\"'\u201c(=:\u2248]|\b(?:about|approximately|exactly|just|only|simply"
    r"|around|roughly|therefore|thus|a total of|indeed|now|equal to)\b"
    rf"|\b[a-z](?:_\{{?\w\}}?)?{_SPACE}*=)*"
)
_IS = re.compile(
    rf"(?:\b(?:is|are|was|were|be|equals?)\b|[=:])"
    rf"(?:{_SPACE}|\b(?:about|approximately|exactly|just|only|a total of)\b)*\Z",
    re.IGNORECASE,
)
_BESIDES = re.compile(
    r"(?:\b(?:in|after|for|over|at|with|from|by|per|every|each|during|within|all|these|those|the|her|his"
    r"|their|its|than|on|between|among)|[0-9][a-z ]*\bof(?: the)?)(?:\s|\$)*\Z",
    re.IGNORECASE,
)
"""Words that make the number behind them a given, not the result of the sentence."""
_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,20}>|<<[^<>\n]{0,80}>>")
"""A tag of HTML, or a calculation as GSM8K notes it."""
_WORD = re.compile(r"[A-Za-z]+")


def read_number(gold: JSON) -> Number | None:
    """The number that a gold answer is or states; ``None`` without one."""
    return None if isinstance(gold, bool) else _read_gold(str(gold))


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> Number | None:
    whole = parse_number(gold)
    if whole is not None:
        return whole
    stated = find_numbers(gold)
    if stated:
        return stated[0]
    found = [token.number for token in scan_numbers(gold[-_STATEMENT:]) if token.number is not None]
    return found[-1] if found else None


@lru_cache(maxsize=8)  # a vote asks for the answer that was judged just before
def find_numbers(
    completion: str, *, prompt: str = "", cut: bool = False, rule: NumberRule = "value"
) -> tuple[Number, ...] | None:
    """The numbers in the answer of a completion; ``None`` without an answer.

    An answer of several values ("4 or 6") has several, and an answer that is no number (``2x``) has
    none. By the rule ``strict`` only the text behind "The final answer is" is an answer.

    Args:
        completion: the model's text.
        prompt: the question, whose repetition is no answer.
        cut: whether the completion ended at its length limit.
        rule: where an answer is searched.
    """
    if rule == "strict":
        return _find_strictly(completion, cut)
    for place in find_candidates(completion, prompt=prompt, cut=cut):
        found = _stated(place.text, kind=place.kind, cut=place.cut)
        if found is not None or place.cut:
            return found
    return None


def _find_strictly(completion: str, cut: bool) -> tuple[Number, ...] | None:
    said = after_thought(completion)
    text = "" if said is None else said[-_TAIL:]
    starts = [match.end() for match in _STRICT.finditer(text)]
    if not starts:
        return None
    line = text[starts[-1] : starts[-1] + _STATEMENT].partition("\n")[0]
    return _stated(line, kind="statement", cut=cut and text.endswith(line))


class _Term(NamedTuple):
    """A number, or a calculation up to its result."""

    start: int
    end: int
    number: Number | None
    worked: bool
    """Whether it is a calculation of several numbers."""


def _stated(
    text: str, *, kind: Literal["box", "statement", "last"], cut: bool
) -> tuple[Number, ...] | None:
    """The numbers that a piece of text states; ``None`` without any, or if one is truncated."""
    if not cut and len(text) <= _DIGITS and text.isascii() and text.isdigit():
        return (Number(Fraction(int(text))),)  # as most answers are; the rest finds the same
    if len(text) > _LONGEST:
        return ()
    text = plain_letters(text)
    if "<" in text:
        text = _TAG.sub("", text)
    groups = _grouped(text, _terms(text))
    if not groups:
        return None
    group = _chosen(text, groups, kind)
    if group is None or (cut and _is_broken(text, group)):
        return None
    different: list[Number] = []
    for term in group:
        if term.number is None:
            return () if kind != "last" else None
        if not any(term.number.matches(other) for other in different):
            different.append(term.number)
    return tuple(different)


def _is_broken(text: str, group: Sequence[_Term]) -> bool:
    """Whether the end of a truncated text is within the answer."""
    return may_continue(text, group[-1].end) or any(term.number is None for term in group)


def _terms(text: str) -> list[_Term]:
    """The terms of a text: its numbers, joined by the operators between them."""
    terms: list[_Term] = []
    parts: list[tuple[str, Numeral]] = []
    start = 0
    nested = False

    def end() -> None:
        if parts:
            terms.append(_term(text, start, parts, nested))

    for token in scan_numbers(text):
        gap = text[parts[-1][1].end : token.start] if parts else ""
        joined = _OPERATION.fullmatch(gap) if parts and len(gap) <= _NEAR else None
        signed = text[token.start] in "+-" and _ONLY_UNITS.fullmatch(gap) is not None
        if joined is not None and joined["equals"]:
            parts, nested = [("", token)], False
        elif parts and (joined is not None or (signed and len(gap) <= _NEAR)):
            parts.append(("+" if joined is None else joined["sign"].lower(), token))
            nested = nested or "(" in gap or ")" in gap
        else:
            end()
            start, parts, nested = token.start, [("", token)], False
    end()
    return terms


def _term(text: str, start: int, parts: Sequence[tuple[str, Numeral]], nested: bool) -> _Term:
    """The term from ``start`` on, with the value of its ``parts``."""
    first, last = parts[0][1].start, parts[-1][1].end
    spoiled = (
        (nested and len(parts) > 1)
        or _SPOILED_BEHIND.match(text, last) is not None
        or (first == start and _SPOILED_BEFORE.search(text, max(0, first - 12), first) is not None)
    )
    worked = first != start or len(parts) > 1
    return _Term(start, last, None if spoiled else _sum(parts), worked)


def _sum(parts: Sequence[tuple[str, Numeral]]) -> Number | None:
    """The value of numbers with operators between them."""
    if len(parts) == 1:
        return parts[0][1].number
    total, product = Fraction(0), Fraction(0)
    for sign, token in parts:
        if token.number is None:
            return None
        value = token.number.plain.value
        if sign in ("", "+", "-", "plus", "minus"):
            total, product = total + product, -value if sign in ("-", "minus") else value
        elif sign in ("/", "\u00f7", "\\div", "divided by"):
            if value == 0:
                return None
            product /= value
        else:
            product *= value
        if max(product.numerator.bit_length(), product.denominator.bit_length()) > _LARGEST:
            return None
    return Number(total + product)


def _grouped(text: str, terms: Sequence[_Term]) -> list[list[_Term]]:
    """The terms in groups: several values of one answer, as in "4 or 6", are one group."""
    groups: list[list[_Term]] = []
    for place, term in enumerate(terms):
        before = terms[place - 1].end if place else 0
        joined = _JOIN.fullmatch(text, before, term.start) if groups else None
        if joined is not None and term.start - before <= _NEAR:
            following = terms[place + 1].start if place + 1 < len(terms) else len(text)
            word = joined["join"].strip(", ").lower()
            beside = not joined["join"] and not joined["units"]
            few = not term.worked and _few_words(text, term.end, following)
            if word in ("or", "to") or beside or few:
                groups[-1].append(term)
                continue
        groups.append([term])
    return groups


def _few_words(text: str, start: int, end: int) -> bool:
    """Whether the span has at most two words."""
    return end - start <= _NEAR and len(_WORD.findall(text, start, end)) <= 2


def _chosen(
    text: str, groups: Sequence[list[_Term]], kind: Literal["box", "statement", "last"]
) -> list[_Term] | None:
    """The group of numbers that is the result of a sentence, among those that it mentions."""
    first = groups[0]
    if len(groups) == 1:
        return first
    if kind != "last" and _SENTENCE_START.fullmatch(text, 0, first[0].start):
        return first
    bold = [group for group in groups if _is_bold(text, group)]
    if len(bold) == 1:
        return bold[0]
    free = [group for group in groups if not _before(_BESIDES, text, group)]
    if kind == "last":
        return (free or groups)[-1]
    stated = [group for group in groups if _before(_IS, text, group)]
    if stated:
        return stated[0]
    return free[0] if len(free) == 1 else None


def _before(pattern: re.Pattern[str], text: str, group: Sequence[_Term]) -> bool:
    start = group[0].start
    return pattern.search(text, max(0, start - _LOOK_BACK), start) is not None


def _is_bold(text: str, group: Sequence[_Term]) -> bool:
    start, end = group[0].start, group[-1].end
    return "**" in text[max(0, start - 3) : start] and "**" in text[end : end + _LOOK_BACK]


class NumberVerifier:
    """Compares the number in the answer of a completion with the gold number."""

    def __init__(self, *, rule: NumberRule = "value") -> None:
        """Set where an answer is searched.

        Args:
            rule: ``value`` reads boxes, statements and headings, else the last line; ``strict``
                only the text behind "The final answer is".

        Raises:
            UsageError: there is no such rule.
        """
        check_rule(rule, NUMBER_RULES, "numbers")
        self.rule: NumberRule = rule

    async def verify(self, question: Question, completion: str, *, cut: bool = False) -> Verdict:
        """``unanswered`` without an answer, else whether it is the gold number."""
        start = time.perf_counter()
        gold = read_number(question.gold)
        found = find_numbers(completion, prompt=question.prompt, cut=cut, rule=self.rule)
        outcome, detail = _judged(question.gold, gold, found)
        return timed_verdict(start, outcome, _text(found), detail, failed=gold is None)

    def extract(self, question: Question, completion: str, *, cut: bool = False) -> str | None:
        """The number in its shortest exact form, so that ``18`` and ``$18.00`` vote together."""
        found = find_numbers(completion, prompt=question.prompt, cut=cut, rule=self.rule)
        plain = {number.plain for number in found or ()}
        return _text(sorted(plain, key=lambda number: number.value))

    async def close(self) -> None:
        """Nothing to close."""


def _judged(
    stated: JSON, gold: Number | None, found: Sequence[Number] | None
) -> tuple[Outcome, str]:
    """The outcome, and a detail unless it is ``correct``."""
    if gold is None:
        return "incorrect", f"the gold answer {stated!r} holds no number"
    if found is None:
        return "unanswered", "no number is given as the answer"
    if not found:
        return "incorrect", f"the answer is no number, and not {gold}"
    if len(found) > 1:
        return "incorrect", f"the answer has {len(found)} values, not only {gold}"
    return ("correct", "") if found[0].matches(gold) else ("incorrect", f"{found[0]} is not {gold}")


def _text(numbers: Sequence[Number] | None) -> str | None:
    return ", ".join(map(str, numbers)) if numbers else None
