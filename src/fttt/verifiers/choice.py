r"""Multiple choice: the letter of the option that a completion chooses.

Where the answer stands is found as for numbers (:mod:`fttt.verifiers.answer_extraction`): a box, a
tag, a heading, "the answer is"; else "option B is correct", else a last line that is an option. The
statement must choose one option: ``(B)``, ``B.``, ``B) with its text``, ``\text{B}``, or the text
of an option, word for word. A list of options chooses none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fttt.types import JSON, Outcome, Question, Verdict
from fttt.verifiers.answer_extraction import after_thought, find_candidates
from fttt.verifiers.verifier import timed_verdict

__all__ = ["LETTERS", "ChoiceVerifier", "find_choice", "gold_letter", "read_options"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The names of options, in their order."""
_UNKNOWN = 10
"""Options that a question is taken to have where its prompt lists none."""
_TAIL = 20_000
"""Characters at the end of a completion in which "option B is correct" is searched."""
_LOOK_BACK = 40
"""Characters before a letter that may deny it."""

_OPTION = re.compile(r"^[ \t>*-]*(?:\(([A-Z])\)|([A-Z])[.):])[ \t]+(\S.*)$", re.MULTILINE)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf)?|math(?:bf|rm|it|sf|tt|bb|cal)|boxed|fbox|emph|underline|mbox|bf|rm)"
    r"\s*\{([^{}]*)\}"
)
_LAYOUT = re.compile(
    r"\\[()\[\],;:! ]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|[$*`\"{}]"
)
_QUOTES = re.compile("['\u2018\u2019\u201c\u201d\u00ab\u00bb_]")
_SPACE = re.compile(r"\s+")
_LEAD = re.compile(
    r"(?:(?:an?|(?i:the|most|very|likely|probably|clearly|therefore|thus|then|so|indeed|definitely"
    r"|only|just|simply|obviously|actually|in fact|either|both|correct|best|right|final|following))"
    r"[\s,:]+)*(?i:(?:options?|choices?|answers?|letters?|alternatives?|statements?)\b[\s:#]*)*"
)
"""Words in front of a letter; a capital A is no article."""
_AND = re.compile(
    r"\s*(?:,\s*(?:and|or)?|;|/|&|\+|\band\b|\bor\b|)\s*(?:options?\s+|choices?\s+)?\s*"
)
_BEHIND = re.compile(
    r"\s*(?:\Z|[.,;:)/&+\u2013\u2014=-]|\((?![A-Z]\))"
    r"|(?:because|since|as|which|for|and|or|is|was|but|with|where|due|given|i\.e"
    r"|rather than|instead of)\b)"
)
"""What may stand behind a bare letter that is an option, and no word of a sentence."""
_LISTED = re.compile(r"\s*(?:\Z|[.,;:)/&+]|(?:and|or)\b)")
"""What may stand behind a bare letter that is listed with the one before it."""
_REFUTED = re.compile(
    r"(?:\s+(?:is|was)|(?:(?:,\s*|\s+)(?:(?:and|or)\s+)?\(?[A-Z]\b\)?){1,9}\s+(?:are|were))"
    r"(?:nt\b|\s+(?:(?:both|all|also|clearly|obviously)\s+)?"
    r"(?:not|wrong|incorrect|false|ruled out|eliminated)\b)"
)
"""What behind letters says that they are wrong, without apostrophes."""
_DENIED = re.compile(
    r"(?:\b(?:not(?:\s+\w+\s+that)?|isn't|cannot be|can't be|neither|nor|than|instead of|except"
    r"|unlike|eliminat\w+|exclud\w+|discard\w*|reject\w*|rul\w+ out|if|whether|maybe|perhaps"
    r"|suppose)"
    r"(?:\s+(?:even|the|be|an?|option|choice|answer))*\s*)\(?\Z",
    re.IGNORECASE,
)
_RIGHT = (
    r"(?:the\s+)?(?:(?!(?:not|never|hardly)\b)\w+\s+)?(?:correct|right|best|true|answer)\b"
    r"(?!\s+(?:if|only|when|for|in)\b)"
)


@dataclass(frozen=True)
class _Forms:
    """The expressions that find the letters of a question's options."""

    letter: re.Pattern[str]
    """An option in brackets, or a bare capital."""
    marked: re.Pattern[str]
    """An option in brackets, or named by the word "option"."""
    chosen: re.Pattern[str]
    """A sentence that chooses an option without the word "answer"."""
    line: re.Pattern[str]
    """A line that is an option, perhaps with its text."""


@lru_cache(maxsize=32)
def _forms(count: int) -> _Forms:
    upper = f"A-{LETTERS[count - 1]}"
    either = f"{upper}{upper.lower()}"
    named = rf"\(\s*([{either}])\s*\)|\[\s*([{either}])\s*\]"
    option = rf"(?:\(\s*([{either}])\s*\)|(?<![A-Za-z])([{upper}])(?![A-Za-z'\u2019]))"
    return _Forms(
        letter=re.compile(rf"{named}|([{upper}])(?![A-Za-z0-9_'\u2019^])\)?"),
        marked=re.compile(
            rf"{named}|\b(?i:options?|choices?|letters?|alternatives?)\s+([{upper}])(?![A-Za-z])"
        ),
        chosen=re.compile(
            r"(?i:\b(?:(?:correct|right|best|final|my|answer)\s+(?:answer\s+)?(?:option|choice|letter"
            r"|selection)|(?:i|we)(?:'ll|\s+will|\s+would|\s+therefore)?\s+(?:choose|select|pick|go\s+with))"
            rf"\s*(?:is|are|:|would be|must be)?\s*(?:option\s+|choice\s+)?){option}"
            rf"|(?i:\b(?:options?|choices?|answers?|statements?)\s+)?{option}"
            rf"(?i:\s+(?:is|must be|seems|appears to be)\s+{_RIGHT})"
            r"|(?i:\b(?:answer|option|choice)(?:\s+is\s+(?:\w+\s+)?(?:not|neither)|\s+isn['\u2019]t)\s+)"
            r"\(?[A-Z]\)?(?:\s+nor\s+\(?[A-Z]\)?)?"
            rf"(?i:[,;]?\s+(?:but(?:\s+rather)?|it(?:['\u2019]s|\s+is))\s+(?:option\s+)?){option}"
        ),
        line=re.compile(
            rf"(?i:(?:option|choice|answer)s?\s*:?\s*)?(?:\(\s*([{either}])\s*\)|([{upper}])(?=[.):]|\Z))"
            r"[.):]*(?:\s+(\S.*))?"
        ),
    )


def gold_letter(gold: JSON) -> str | None:
    """The letter of a gold answer, ``B`` or ``(B)``; ``None`` where it is none."""
    letter = str(gold).strip("() ").upper()
    return letter if letter in tuple(LETTERS) else None


def read_options(prompt: str) -> dict[str, str]:
    """The options that a prompt lists by their letters, the last list where it has several.

    A list begins with A and goes on line by line: ``(A) text``, ``A. text``, ``A) text``.
    """
    found: dict[str, str] = {}
    for match in _OPTION.finditer(prompt):
        letter = match[1] or match[2]
        if letter == "A":
            found = {"A": match[3].strip()}
        elif len(found) < len(LETTERS) and letter == LETTERS[len(found)]:
            found[letter] = match[3].strip()
    return found if len(found) > 1 else {}


def find_choice(completion: str, *, prompt: str = "", cut: bool = False) -> tuple[str, ...] | None:
    """The letters of the options in the answer of a completion; ``None`` without an answer.

    An answer that names several options has several.

    Args:
        completion: the model's text.
        prompt: the question with its options; without any, they are the letters A to J.
        cut: whether the completion ended at its length limit.
    """
    options = read_options(prompt)
    forms = _forms(len(options) or _UNKNOWN)
    for place in find_candidates(completion, prompt=prompt, cut=cut, letters=True):
        if place.kind != "last":
            found = _stated(place.text, forms, options, place.cut)
            if found or place.cut:
                return found or None
    said = (after_thought(completion) or "")[-_TAIL:]
    if "\n" in said.strip() and " ".join(said.split()) in " ".join(prompt.split()):
        return None  # a part of the prompt, repeated
    return _sentence(said, forms, options, cut) or _last_line(said, forms, options, cut)


def _stated(
    text: str, forms: _Forms, options: dict[str, str], cut: bool = False
) -> tuple[str, ...] | None:
    """The letters that a statement chooses; ``None`` without any, or where it is truncated."""
    text = _plain(text)
    if re.fullmatch(r"[a-z]", text) and text.upper() in LETTERS[: len(options) or _UNKNOWN]:
        return None if cut else (text.upper(),)
    lead = _LEAD.match(text)
    start = lead.end() if lead is not None else 0
    first = forms.letter.match(text, start)
    if first is not None and first[0][0] not in "([" and not _is_option(text, first, options):
        first = None
    if first is not None:
        if cut and first.end() == len(text) and first[0][-1] not in ")]":
            return None
        if _REFUTED.match(text, first.end()):
            return _sentence(text, forms, options, cut)  # "A is wrong, B is right"
        return _joined(text, first, forms)
    found = dict.fromkeys(
        _letter(match)
        for match in forms.marked.finditer(text)
        if not _DENIED.search(text, max(0, match.start() - _LOOK_BACK), match.start())
    )
    if found:
        return tuple(found)
    same = [letter for letter, option in options.items() if _same(option, text)]
    return (same[0],) if len(same) == 1 and not cut else None


def _is_option(text: str, match: re.Match[str], options: dict[str, str]) -> bool:
    """Whether a bare capital is an option's letter, as what stands behind it shows."""
    if match[0].endswith(")") or _BEHIND.match(text, match.end()):
        return True
    option = options.get(_letter(match))
    return option is not None and _same(option, text[match.end() :])


def _joined(text: str, first: re.Match[str], forms: _Forms) -> tuple[str, ...]:
    """The first letter of a statement and those listed with it."""
    found = {_letter(first): None}
    end = first.end()
    while (gap := _AND.match(text, end)) is not None:
        following = forms.letter.match(text, gap.end())
        bare = following is not None and following[0][0] not in "(["
        if following is None or (bare and gap.end() == end):
            break
        if bare and not (following[0].endswith(")") or _LISTED.match(text, following.end())):
            break
        found[_letter(following)] = None
        end = following.end()
    return tuple(found)


def _sentence(
    said: str, forms: _Forms, options: dict[str, str], cut: bool
) -> tuple[str, ...] | None:
    """The option that a sentence calls right or chooses, the last where several do."""
    text = _LAYOUT.sub("", _unwrapped(said))
    for letter, option in options.items():  # "(B) its text is correct"
        words = re.escape(_LAYOUT.sub("", _unwrapped(option)).strip(" ."))
        named = rf"(?<![A-Za-z])(?:\({letter}\)|{letter}[.):])\s*(?i:{words})(?!\w)"
        text = re.sub(named, f"({letter})", text)
    for match in reversed(list(forms.chosen.finditer(text))):
        before = text[max(0, match.start() - _LOOK_BACK) : match.start()]
        asked = text[match.end() : match.end() + 80].partition("\n")[0].lstrip()[:1] == "?"
        truncated = cut and match.end() == len(text)
        if not (_DENIED.search(before) or asked or truncated):
            return (_letter(match),)
    return None


def _last_line(
    said: str, forms: _Forms, options: dict[str, str], cut: bool
) -> tuple[str, ...] | None:
    """The option that the last line is; none at the end of a list of options."""
    lines = [_plain(line) for line in said.rstrip().split("\n")[-20:] if line.strip()]
    if not lines or cut:
        return None
    lead = _LEAD.match(lines[-1])
    start = lead.end() if lead is not None else 0
    last = forms.line.fullmatch(lines[-1].rstrip("."), start)
    if last is None:
        return None
    rest = last[3]
    if rest is not None and options and not _same(options.get(_letter(last), ""), rest):
        return None
    above = forms.line.fullmatch(lines[-2].rstrip(".")) if len(lines) > 1 and not start else None
    if above is not None and (above[3] is None) == (rest is None):
        return None
    if above is not None and LETTERS.find(_letter(above)) == LETTERS.find(_letter(last)) - 1:
        return None  # a list that breaks off
    return (_letter(last),)


def _letter(match: re.Match[str]) -> str:
    """The letter of an option in a match, whose groups are letters but for a text behind them."""
    found = next(group for group in match.groups() if group is not None)
    return found.upper()


def _unwrapped(text: str) -> str:
    for _ in range(4):
        text, changed = _WRAPPED.subn(r"\1", text)
        if not changed:
            break
    return text


def _plain(text: str) -> str:
    """A text without LaTeX's wrappings, emphasis and quotation marks, in single spaces."""
    text = _QUOTES.sub("", _LAYOUT.sub("", _unwrapped(text[:2000])))
    return _SPACE.sub(" ", text).strip()


def _same(option: str, text: str) -> bool:
    """Whether a text is an option's, without regard to case, layout and its last full stop."""
    one, other = (_plain(part).strip(" .").casefold() for part in (option, text))
    return bool(one) and one == other


class ChoiceVerifier:
    """Compares the letter that a completion chooses with the gold letter.

    The options are those that the question's prompt lists.
    """

    async def verify(self, question: Question, completion: str, *, cut: bool = False) -> Verdict:
        """``unanswered`` where no option is chosen, else whether it is the gold one alone."""
        start = time.perf_counter()
        found = find_choice(completion, prompt=question.prompt, cut=cut)
        outcome, detail = _judged(question.gold, found)
        failed = gold_letter(question.gold) is None
        return timed_verdict(start, outcome, _text(found), detail, failed=failed)

    def extract(self, question: Question, completion: str, *, cut: bool = False) -> str | None:
        """The letter, for votes."""
        return _text(sorted(find_choice(completion, prompt=question.prompt, cut=cut) or ()))

    async def close(self) -> None:
        """Nothing to close."""


def _judged(gold: JSON, found: Sequence[str] | None) -> tuple[Outcome, str]:
    """The outcome, and a detail unless it is ``correct``."""
    letter = gold_letter(gold)
    if letter is None:
        return "incorrect", f"the gold answer {gold!r} is no letter of an option"
    if not found:
        return "unanswered", "no option is given as the answer"
    if len(found) > 1:
        return "incorrect", f"the answer names {len(found)} options, not only {letter}"
    return ("correct", "") if found[0] == letter else ("incorrect", f"{found[0]} is not {letter}")


def _text(found: Sequence[str] | None) -> str | None:
    return ", ".join(found) if found else None
