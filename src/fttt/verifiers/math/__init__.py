"""Answers of competition mathematics, compared as mathematics or by the benchmark's string rule.

Completion -> text of its answer (``answer_finder``) -> tokens (``lexer``) -> syntax tree
(``answer_parser`` and its parent ``expression_parser``, with ``units``) -> comparison in a worker
process (``comparison`` over ``answer_equality`` over ``value_equality`` over ``evaluation``);
beside it, in the caller's process, a text for votes (``normal_forms``).
"""

from __future__ import annotations

import importlib.util
import re
import time
from functools import lru_cache
from typing import Literal, get_args

from fttt.errors import UsageError
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.answer_extraction import after_thought, boxed_answer, last_boxed
from fttt.verifiers.math.answer_finder import find_answer
from fttt.verifiers.math.lexer import NotUnderstoodError, scan, spelled
from fttt.verifiers.math.normal_forms import normal_form, strict_form
from fttt.verifiers.number_parser import Number, parse_number
from fttt.verifiers.verifier import check_rule, timed_verdict
from fttt.verifiers.worker_pool import JobError, WorkerPool

__all__ = ["MATH_RULES", "MathRule", "MathVerifier", "judge_quickly"]

MathRule = Literal["equivalence", "strict"]
MATH_RULES: tuple[str, ...] = get_args(MathRule)

_LONGEST = 2000
"""Characters of an answer that is parsed; a longer one must equal the gold answer's text."""
_MONEY = re.compile(r"[$€£¥₹₩₽₺]|[A-Z]{2}|Rs")
"""Text that may be a currency, which is compared too."""


class MathVerifier:
    r"""Compares the answer of a completion with the gold answer.

    By the rule ``equivalence``, two numbers, and answers with the same tokens, are judged at once.
    All others are compared as mathematics in a worker process with a time and a memory limit. By
    the rule ``strict``, the string rule of the MATH benchmark decides.

    An answer that cannot be read or computed is ``incorrect``, and a detail says why. The verdict
    is ``failed`` too where nothing is known of the answer: the comparison reached a limit or raised
    an error of its own, or the *gold* answer is empty or cannot be read or computed.
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
            workers: how many comparisons run at once, in processes of its own; by default all
                verifiers together run one a processor, at most 16.

        Raises:
            UsageError: there is no such rule, or ``mpmath`` is not installed.
        """
        check_rule(rule, MATH_RULES, "mathematics")
        if importlib.util.find_spec("mpmath") is None:
            raise UsageError(
                "Comparing mathematics needs the mpmath package; install it with "
                "pip install 'fttt[math]'."
            )
        self.rule: MathRule = rule
        self._pool = WorkerPool(
            "fttt.verifiers.math.comparison:judged",
            time_limit=time_limit,
            workers=workers,
            memory_mb=memory_mb,
        )

    async def verify(self, question: Question, completion: str, *, cut: bool = False) -> Verdict:
        """``unanswered`` without an answer, else whether it equals the gold answer."""
        start = time.perf_counter()
        gold = "" if question.gold is None else str(question.gold).strip()
        boxed = last_boxed(gold) if self.rule == "strict" else boxed_answer(gold)
        gold = boxed or gold
        answer = self._find(question, completion, cut)
        if answer is None:
            detail = "no \\boxed{} and no other answer in the completion"
            return timed_verdict(start, "unanswered", None, detail)
        right, detail, known = False, "the gold answer is empty", False
        if gold:
            try:
                right, detail, known = await self._compare(gold, answer)
            except JobError as error:
                reason = str(error).partition("\n")[0]
                detail = f"the comparison of {answer[:200]} with {gold[:200]} {reason}"
        outcome: Outcome = "correct" if right else "incorrect"
        return timed_verdict(start, outcome, self._normal(answer), detail, failed=not known)

    async def _compare(self, gold: str, answer: str) -> tuple[bool, str, bool]:
        """Whether both are the same, a detail if not, and whether that is known.

        Raises:
            JobError: the comparison reached a limit, or raised what no answer may raise.
        """
        differ = f"{answer[:200]} is not {gold[:200]}"
        if self.rule == "strict":
            alike = strict_form(gold) == strict_form(answer)
            return alike, "" if alike else differ, True
        if gold == answer:
            return True, "", True
        if len(answer) > _LONGEST:
            return False, f"the answer is longer than {_LONGEST} characters", True
        quick = judge_quickly(gold, answer)
        if quick is not None:
            return quick, "" if quick else differ, True
        alike, why, known = await self._pool.run([gold, answer])
        if not known:
            return False, f"the gold answer {gold[:200]} cannot be compared with any: {why}", False
        return alike, "" if alike else f"{differ}{why and f' ({why})'}", True

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
        return answer if len(answer) > _LONGEST else normal_form(answer)

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()


def judge_quickly(gold: str, answer: str) -> bool | None:
    """The verdict on two numbers or on answers with the same tokens, else ``None``."""
    first, second = _number(gold), parse_number(answer)
    if first is not None and second is not None and not _MONEY.search(gold + answer):
        return first.matches(second)
    known, given = _spelled(gold), _spelling(answer)
    return True if known is not None and known == given else None


@lru_cache(maxsize=4096)
def _number(gold: str) -> Number | None:
    return parse_number(gold)


@lru_cache(maxsize=4096)
def _spelled(gold: str) -> str | None:
    return _spelling(gold)


def _spelling(answer: str) -> str | None:
    try:
        return spelled(scan(answer))
    except NotUnderstoodError:
        return None
