"""Answers of competition mathematics, compared as mathematics or by the benchmark's string rule."""

from __future__ import annotations

import importlib.util
import time
from functools import lru_cache
from typing import Literal, get_args

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.answer import boxed_answer, find_answer, last_boxed
from fttt.verifiers.base import feedback_on
from fttt.verifiers.latex import compact, rational, spoken, tidy, unit_of, without_units
from fttt.verifiers.numeral import Number
from fttt.verifiers.pool import JobError, WorkerPool
from fttt.verifiers.strict import same_string, strict_form
from fttt.verifiers.thought import after_thought

__all__ = ["MathRule", "MathVerifier", "check_rule"]

MathRule = Literal["equivalence", "strict"]

_LONGEST = 2000
"""Characters of an answer that is read as mathematics; a longer one is right only word for word."""


def check_rule(rule: str) -> None:
    """Raise :class:`fttt.errors.UsageError` for a rule that does not exist."""
    if rule not in get_args(MathRule):
        known = ", ".join(get_args(MathRule))
        raise UsageError(f"There is no rule {rule!r} for mathematics; choose from {known}.")


class MathVerifier:
    r"""Holds the last ``\boxed{…}`` of a completion against the gold answer.

    By the rule ``equivalence``, answers that are the same string in a normal form, or both rational
    numbers, are judged at once. All others are read by ``math-verify``'s parser in a worker
    process with a time and a memory limit, and one that reaches a limit is ``incorrect`` with a
    detail that says so. By the rule ``strict``, the string rule of the MATH benchmark decides.
    """

    def __init__(
        self,
        *,
        rule: MathRule = "equivalence",
        time_limit: float = 5.0,
        memory_mb: int = 1024,
        workers: int | None = None,
    ) -> None:
        """Prepare the verifier; workers start when an answer needs them.

        Args:
            rule: how answers are compared.
            time_limit: seconds for one comparison in a worker.
            memory_mb: address space of a worker, in MiB.
            workers: how many comparisons run at once; by default one a processor, at most 16.

        Raises:
            UsageError: there is no such rule, or ``math-verify`` is not installed.
        """
        check_rule(rule)
        if importlib.util.find_spec("math_verify") is None:
            raise UsageError(
                "Comparing mathematics needs the math-verify package; install it with "
                "pip install 'fttt[math]'."
            )
        self.rule: MathRule = rule
        self._pool = WorkerPool(
            "fttt.verifiers.equivalence:equivalent",
            time_limit=time_limit,
            workers=workers,
            memory_mb=memory_mb,
        )

    async def verify(self, question: Question, completion: str, *, cut: bool = False) -> Verdict:
        """``unanswered`` where there is no answer, else whether it is the gold one."""
        start = time.perf_counter()
        gold = "" if question.gold is None else str(question.gold).strip()
        boxed = last_boxed(gold) if self.rule == "strict" else boxed_answer(gold)
        gold = boxed or gold
        answer = self._find(question, completion, cut)
        if answer is None:
            detail = "no \\boxed{} and no other answer in the completion"
            seconds = time.perf_counter() - start
            return Verdict("unanswered", None, detail, seconds, feedback_on("unanswered", None))
        detail = "the gold answer is empty"
        right = False
        if gold:
            right, detail = await self._compare(gold, answer)
        outcome: Literal["correct", "incorrect"] = "correct" if right else "incorrect"
        normal, seconds = self._normal(answer), time.perf_counter() - start
        return Verdict(outcome, normal, detail, seconds, feedback_on(outcome, normal))

    async def _compare(self, gold: str, answer: str) -> tuple[bool, str]:
        """Whether both are the same, and a detail where they are not."""
        differ = f"{answer[:200]} is not {gold[:200]}"
        if self.rule == "strict":
            return (True, "") if same_string(gold, answer) else (False, differ)
        if gold == answer:
            return True, ""
        if len(answer) > _LONGEST:
            return False, f"the answer is longer than {_LONGEST} characters"
        known, given = _tidy(gold), tidy(answer)
        quick = _judge_quickly(known, given)
        if quick is not None:
            return quick, "" if quick else differ
        try:
            same = bool(await self._pool.run([known, given]))
        except JobError as error:
            reason = str(error).partition("\n")[0]
            return False, f"the comparison of {answer[:200]} with {gold[:200]} {reason}"
        return same, "" if same else differ

    def extract(self, question: Question, completion: str, *, cut: bool = False) -> str | None:
        """The answer in the rule's normal form, so that equal strings vote together."""
        answer = self._find(question, completion, cut)
        return None if answer is None else self._normal(answer)

    def _find(self, question: Question, completion: str, cut: bool) -> str | None:
        if self.rule == "strict":
            said = after_thought(completion)
            return None if said is None else last_boxed(said)
        return find_answer(completion, prompt=question.prompt, cut=cut)

    def _normal(self, answer: str) -> str:
        if self.rule == "strict":
            return strict_form(answer)
        if len(answer) > _LONGEST:
            return answer
        plain = without_units(tidy(answer))
        number = rational(plain)
        return str(Number(*number)) if number is not None else spoken(plain) or compact(plain)

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()


@lru_cache(maxsize=4096)
def _tidy(gold: str) -> str:
    return tidy(gold)


def _judge_quickly(gold: str, answer: str) -> bool | None:
    """The verdict where it needs no parser, else ``None``."""
    if compact(gold) == compact(answer):
        return True
    known, given = unit_of(gold), unit_of(answer)
    if known is not None and given is not None and known != given:
        return False
    first, second = rational(without_units(gold)), rational(without_units(answer))
    if first is None or second is None:
        return None
    return Number(*first).matches(Number(*second))
