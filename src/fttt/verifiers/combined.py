"""Verifiers made of verifiers: all of them, any of them, or a weighted mean of their scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from fttt.errors import UsageError
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.function import FunctionVerifier
from fttt.verifiers.verifier import (
    Rule,
    Verifier,
    choose_verifier,
    extract_answer,
    feedback_on,
    verify_completion,
)

__all__ = ["CombinedVerifier", "all_of", "any_of", "as_verifier", "weighted"]

_ENOUGH = 1e-9
"""What a weighted mean may lack of its mark by rounding."""


class CombinedVerifier:
    """Asks several verifiers at once and makes one verdict of theirs.

    - ``all``: correct where every member finds it so. The score is the lowest of the members'.
    - ``any``: correct where one member does. The score is the highest.
    - ``weighted``: the score is the mean of the members' by their weights; correct from ``mark`` on
      (by default 1, that is where all are).

    A member without a score counts 1 where it finds the answer correct, else 0; where no member has
    one, ``all`` and ``any`` have none either. The first answer that a member extracts is taken.
    What the model may be told is what the member says that decided. Where a member failed, and the
    others do not decide without it, the verdict is ``failed``.
    """

    def __init__(
        self,
        rule: Rule,
        members: Sequence[Verifier],
        weights: Sequence[float] = (),
        mark: float | None = None,
        *,
        names: Sequence[str] = (),
    ) -> None:
        """Take the members, which are closed with it.

        Args:
            rule: how their verdicts make one.
            members: at least one.
            weights: of each, for ``weighted``; by default all are alike.
            mark: the score from which on a weighted mean is correct.
            names: what ``detail`` calls them.
        """
        if not members:
            raise UsageError(f"The verifier {rule!r} has no members; give one at least.")
        self._rule, self._members = rule, list(members)
        self._weights = list(weights) or [1.0] * len(members)
        self._mark = 1.0 if mark is None else mark
        self._names = list(names) or [str(n + 1) for n in range(len(members))]

    async def verify(self, question: Question, completion: str, cut: bool = False) -> Verdict:
        """Ask all members, and combine what they say."""
        start = time.perf_counter()
        said = await asyncio.gather(
            *(verify_completion(one, question, completion, cut=cut) for one in self._members)
        )
        verdict = self._combined(said)
        tested = next((one for one in said if one.tests_total is not None), verdict)
        return Verdict(
            outcome=verdict.outcome,
            extracted=next((one.extracted for one in said if one.extracted is not None), None),
            detail="; ".join(map(_told, self._names, said)),
            seconds=time.perf_counter() - start,
            feedback=verdict.feedback,
            score=verdict.score,
            tests_passed=tested.tests_passed,
            tests_total=tested.tests_total,
            failed=verdict.failed,
            tokens=sum(one.tokens for one in said),
        )

    def _combined(self, said: Sequence[Verdict]) -> Verdict:
        """The outcome, its score and its feedback."""
        scored = any(one.score is not None for one in said)
        scores = [float(one.correct) if one.score is None else one.score for one in said]
        wrong = [one for one in said if not one.correct and not one.failed]
        failed = any(one.failed for one in said)
        right = next((one for one in said if one.correct), None)
        if self._rule == "all":
            if wrong:
                return _verdict(wrong, min(scores) if scored and not failed else None)
            return _failure() if failed else _verdict(said, min(scores) if scored else None)
        if self._rule == "any":
            if right is not None:
                return _verdict([right], max(scores) if scored and not failed else None)
            return _failure() if failed else _verdict(wrong, max(scores) if scored else None)
        if failed:
            return _failure()
        pairs = zip(self._weights, scores, strict=True)
        score = sum(weight * own for weight, own in pairs) / sum(self._weights)
        if not any(one.answered for one in said):
            return _verdict(said, None)
        outcome: Outcome = "correct" if score >= self._mark - _ENOUGH else "incorrect"
        deciding = wrong[0] if outcome == "incorrect" and wrong else said[0]
        told = deciding.feedback if deciding.outcome == outcome else feedback_on(outcome, None)
        return Verdict(outcome, score=score, feedback=told)

    def extract(self, question: Question, completion: str, cut: bool = False) -> str | None:
        """The first answer that a member extracts."""
        found = (extract_answer(one, question, completion, cut=cut) for one in self._members)
        return next((answer for answer in found if answer is not None), None)

    async def close(self) -> None:
        """Close all members."""
        await asyncio.gather(*(one.close() for one in self._members))


def _verdict(deciding: Sequence[Verdict], score: float | None) -> Verdict:
    """That of the first; without an answer only where none of them has one."""
    first = next((one for one in deciding if one.answered), deciding[0])
    return Verdict(first.outcome, score=score, feedback=first.feedback)


def _failure() -> Verdict:
    return Verdict("incorrect", feedback=feedback_on("incorrect", None), failed=True)


def _told(name: str, said: Verdict) -> str:
    score = "" if said.score is None else f" {said.score:.4g}"
    return f"{name}: {said.outcome}{score}{said.detail and f' ({said.detail})'}"


Given = Verifier | Callable[..., Any] | str


def as_verifier(given: Given) -> Verifier:
    """A verifier of what stands for one: an object, a function, or a text as after ``--verifier``.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(given, Verifier):
        return given
    if isinstance(given, str):
        return choose_verifier(given)
    if not callable(given):
        raise UsageError(
            f"verify cannot be {given!r}; give a function check(completion), a verifier "
            "object, or a text such as 'regex:PATTERN'."
        )
    return FunctionVerifier(given)


def all_of(*members: Given) -> CombinedVerifier:
    """A verifier that finds correct what all members do.

    Args:
        members: verifier objects, functions, or texts as after ``--verifier``.
    """
    return CombinedVerifier("all", [as_verifier(member) for member in members])


def any_of(*members: Given) -> CombinedVerifier:
    """A verifier that finds correct what one of its members does.

    Args:
        members: see :func:`all_of`.
    """
    return CombinedVerifier("any", [as_verifier(member) for member in members])


def weighted(*members: tuple[float, Given], mark: float = 1.0) -> CombinedVerifier:
    """A verifier whose score is the mean of its members' by their weights.

    Args:
        members: each with its weight, which is positive; see :func:`all_of`.
        mark: the score from which on an answer is correct.

    Raises:
        UsageError: a weight is not positive.
    """
    if any(not weight > 0 for weight, _ in members):
        raise UsageError("A weight of a verifier is not positive; leave that member away.")
    own = [as_verifier(member) for _, member in members]
    return CombinedVerifier("weighted", own, [weight for weight, _ in members], mark)
