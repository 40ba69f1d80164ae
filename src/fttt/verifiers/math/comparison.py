r"""Comparison of two answers as texts: the job of the math verifier's worker processes.

Both are parsed to trees, which are the same or not (``answer_equality``). An answer that cannot be
parsed equals only an answer with the same tokens. One that cannot be parsed or computed is wrong;
where that is the gold one, nothing is known of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from fttt.verifiers.math.answer_equality import same
from fttt.verifiers.math.answer_parser import readings
from fttt.verifiers.math.evaluation import UndecidedError
from fttt.verifiers.math.lexer import NotUnderstoodError, scan, spelled
from fttt.verifiers.math.syntax_tree import EXPRESSIONS, Node, number, walk
from fttt.verifiers.math.units import UnitLetters

__all__ = ["GoldError", "equivalent", "judged"]

_UNCLEAR = (NotUnderstoodError, UndecidedError, RecursionError)
"""What an answer may raise; anything else is an error of this program."""


class GoldError(Exception):
    """The gold answer cannot be read or computed, so that nothing can be said of an answer."""


def judged(request: tuple[str, str]) -> tuple[bool, str, bool]:
    """The worker's job: whether ``[gold, answer]`` are the same, why not, and if that is known.

    An answer that cannot be read or computed is another one. The reason is empty where both could
    be; where the gold one could not be, nothing is known.
    """
    try:
        return equivalent(request), "", True
    except GoldError as error:
        return False, str(error), False
    except _UNCLEAR as error:
        return False, _reason(error), True


def _reason(error: Exception) -> str:
    return "an expression that is too deep" if isinstance(error, RecursionError) else str(error)


def equivalent(request: tuple[str, str]) -> bool:
    """Whether the answers ``[gold, answer]`` are the same.

    Raises:
        GoldError: the gold answer cannot be parsed or computed, and their tokens differ.
        NotUnderstoodError: the other one cannot be parsed, and their tokens differ.
        UndecidedError: its values are too large or take too long to compute.
        RecursionError: it is too deep.
    """
    gold, answer = request
    try:
        wanted = spelled(scan(gold))
    except NotUnderstoodError as error:
        raise GoldError(str(error)) from None
    unclear: Exception | None = None
    try:
        if wanted == spelled(scan(answer)):
            return True
    except NotUnderstoodError as error:
        unclear = error
    try:
        known, units = _gold_readings(gold)
    except _UNCLEAR as error:
        raise GoldError(_reason(error)) from None
    given: tuple[Node, ...] = ()
    try:
        given = () if unclear else readings(answer, units)
    except NotUnderstoodError as error:
        if any(_same_words(first, first, gold, answer) for first in known):
            return True
        unclear = error
    for first in known:
        for second in given:
            try:
                if same(first, second) or _same_words(first, second, gold, answer):
                    return True
            except _UNCLEAR as error:
                unclear = error
    if unclear is not None:
        _check(known)
        raise unclear
    return False


def _check(known: Sequence[Node]) -> None:
    """Raise :class:`GoldError` where no reading of the gold answer can be compared with any other.

    All of its parts are compared with a number, for which they are computed.
    """
    failures: list[Exception] = []
    for tree in known:
        try:
            for part in walk(tree):
                same(part, number(0))
        except _UNCLEAR as error:
            failures.append(error)
    if len(failures) == len(known):
        raise GoldError(_reason(failures[0])) from None


def _gold_readings(gold: str) -> tuple[tuple[Node, ...], UnitLetters]:
    """The trees of the gold answer, and which letters of the other answer may be units.

    If the gold answer has variables, letters are variables; if it has a unit, a letter behind a
    number may be one.
    """
    trees = readings(gold, "marked")
    parts = [part for tree in trees for part in walk(tree)]
    if any(part.head == "quantity" and part.data.unit is not None for part in parts):
        return trees, "all"
    if any(part.head == "var" for part in parts):
        return readings(gold, "none"), "none"
    return trees, "marked"


def _same_words(first: Node, second: Node, gold: str, answer: str) -> bool:
    """Words, choices and numbers with a base, compared without punctuation."""
    heads, words = {first.head, second.head}, {"text", "choice", "based"}
    if not heads & words or not heads <= EXPRESSIONS | words:
        return False
    if "based" in heads:
        based, other = (first, answer) if first.head == "based" else (second, gold)
        return _letters(other) == str(based.data[0]).casefold()
    return _letters(gold) == _letters(answer)


def _letters(text: str) -> str:
    """The letters and digits of an answer; a single letter keeps its case."""
    tokens = scan(text)
    letters = "".join(t.text for t in tokens if t.kind in ("word", "letter", "number"))
    signs = "".join(t.text for t in tokens if t.sign("-", "+", "/", "^", "_", "*", "="))
    return signs + (letters if len(letters) == 1 else letters.casefold())
