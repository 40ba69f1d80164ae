"""Answers written otherwise, and wrong ones on purpose, to see that a verifier tells them apart."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from fractions import Fraction

__all__ = [
    "echoes",
    "number_lists",
    "rewritten_answers",
    "wrong_answers",
    "wrong_programs",
]

_DIGITS = re.compile(r"\d+")
_PAIR = re.compile(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])")
_WORDS = re.compile(r"\\text\{[^{}]*[A-Za-z][^{}]*\}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_OPERATOR = re.compile(r"(?<!\\)([+,=])")
_THOUSANDS = re.compile(r"\d(?:,|\{,\}|,\s*\\!)\s*\d{3}(?!\d)")
_STRUCTURE = re.compile(r"[()\[\]]|\\\{|\\begin|\\pm|\\cup|\\text|\\mbox")
_NO_EXPRESSION = re.compile(
    r"[=<>%:]|\\[lg]eq?\b|\\(?:circ|\$|in|approx|text|mbox|infty|overline)|_|^[A-Za-z]+$|\.$"
)


def rewritten_answers(gold: str) -> list[str]:
    """The mathematical answer ``gold`` written in other ways, without repetition.

    Between dollar signs and with larger fractions; with more space; a list the other way round; a
    number as a fraction that can be shortened; any other expression as half of its double.
    """
    large = gold.replace("\\frac", "\\dfrac").replace("\\left", "").replace("\\right", "")
    found = [f"${large}$."]
    if _THOUSANDS.search(gold):
        return found
    found.append(_OPERATOR.sub(r" \1 ", gold))
    parts = [part.strip() for part in gold.split(",")]
    if len(parts) > 1 and not _STRUCTURE.search(gold):
        found.append(", ".join(reversed(parts)))
    value = _value(gold)
    if value is not None:
        found.append(f"\\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}")
    elif len(parts) == 1 and not _STRUCTURE.search(gold) and not _NO_EXPRESSION.search(gold):
        found.append(f"\\frac{{2({gold})}}{{2}}")
    return list(dict.fromkeys(found))


def wrong_answers(gold: str) -> list[str]:
    """Answers near ``gold`` that differ from it in value, without repetition.

    A number one too large, its sign turned, ten times its size; the parts of a pair exchanged, its
    first bracket turned; other words; one more than an expression without numbers.
    """
    found = [answer for answer in _variants(gold) if answer != gold]
    return list(dict.fromkeys(found))


def _variants(gold: str) -> Iterator[str]:
    numbers = list(_DIGITS.finditer(gold))
    for match in {m.start(): m for m in (*numbers[:1], *numbers[-1:])}.values():
        larger = str(int(match[0]) + 1).rjust(len(match[0]), "0")
        yield gold[: match.start()] + larger + gold[match.end() :]
    value = _value(gold)
    if value is not None and value != 0:
        yield gold.replace("-", "", 1) if value < 0 else f"-{gold}"
        yield str(value * 10)
    pair = _PAIR.fullmatch(gold)
    if pair:
        opening, first, second, closing = pair.groups()
        if first.strip() != second.strip():
            yield f"{opening}{second},{first}{closing}"
        yield f"{'[' if opening == '(' else '('}{first},{second}{closing}"
    if not numbers:
        if _WORDS.search(gold):
            yield _WORDS.sub(lambda _: r"\text{something else}", gold, count=1)
        elif not pair:
            yield f"{gold}+1"


def _value(gold: str) -> Fraction | None:
    try:
        return None if "_" in gold else Fraction(gold)  # "52_8" has a base
    except (ValueError, ZeroDivisionError):
        return None


def echoes(prompt: str) -> list[str]:
    """A question repeated instead of answered, without repetition.

    The whole prompt, each paragraph of it that has a number, that paragraph without its last
    sentence, and the first half of its words; texts of one or two words could be answers.
    """
    found = [prompt]
    for paragraph in prompt.split("\n\n"):
        if _DIGITS.search(paragraph):
            words = paragraph.split(" ")
            sentences = _SENTENCE.split(paragraph)
            found += [paragraph, " ".join(sentences[:-1]), " ".join(words[: len(words) // 2])]
    return [text for text in dict.fromkeys(found) if len(text.split()) > 2]


def number_lists(gold: str) -> list[str]:
    """Lists that end with the number ``gold`` and give no answer; none for other golds.

    Numbers side by side and one a line, and a list that breaks off behind its last marker.
    """
    value = _value(gold)
    if value is None:
        return []
    numbers = [str(value - 2), str(value - 1), str(value)]
    lists = [", ".join(numbers), " ".join(numbers), "\n".join(numbers)]
    lists.append("\n".join(f"- {number}" for number in numbers))
    if value.denominator == 1 and value > 0:
        lists.append(f"Step 1: Read the question.\nStep {value}:")
    if value in range(1, 100):
        steps = [f"{number}. We add {number} pens." for number in range(1, int(value))]
        lists.append("\n".join([*steps, f"{value}."]))
    return lists


def wrong_programs(program: str) -> list[str]:
    """Versions of ``program`` whose functions return nothing, or raise."""
    return [
        _with_bodies(program, "return None"),
        _with_bodies(program, "raise NotImplementedError"),
    ]


def _with_bodies(program: str, statement: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that are none, in a benchmark's own programs
        tree = ast.parse(program)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = ast.parse(f"def f():\n    {statement}").body[0].body  # type: ignore[attr-defined]
    return ast.unparse(tree)
