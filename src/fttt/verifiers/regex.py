"""A regular expression as a verifier, under a time limit that also stops catastrophic patterns."""

from __future__ import annotations

import re
import time
from typing import Any

from fttt.errors import UsageError
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.verifier import feedback_on
from fttt.verifiers.worker_pool import JobError, WorkerPool

__all__ = ["RegexVerifier", "search"]


class RegexVerifier:
    """Correct where a regular expression matches somewhere in the completion.

    The expression is ``pattern``, or the question's gold where there is none. The syntax is that of
    Python's ``re``; flags are written inline (``(?i)``, ``(?s)``).
    """

    def __init__(self, pattern: str | None = None, *, time_limit: float = 5.0) -> None:
        """Check the pattern, where one is given.

        Raises:
            UsageError: it is no regular expression.
        """
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"The pattern {pattern!r} is no regular expression: {error}; "
                    "see the documentation of Python's re module."
                ) from None
        self._pattern = pattern
        self._pool = WorkerPool("fttt.verifiers.regex:search", time_limit=time_limit)

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Search the completion."""
        start, failed = time.perf_counter(), False
        pattern = self._pattern if self._pattern is not None else str(question.gold)
        try:
            found = await self._pool.run([pattern, completion])
            detail = "" if found is not None else f"no match of {pattern!r}"
        except JobError as failure:
            found, detail = None, f"the regular expression {pattern!r} {failure}"
            failed = True
        outcome: Outcome = "incorrect" if found is None else "correct"
        seconds = time.perf_counter() - start
        said = feedback_on(outcome, None)
        return Verdict(outcome, found, detail, seconds, said, failed=failed)

    def extract(self, question: Question, completion: str) -> str | None:
        """Always ``None``: a pattern extracts no answer."""
        return None

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()


def search(request: Any) -> str | None:
    """The worker's job: the first match of ``[pattern, completion]``."""
    pattern, completion = request
    match = re.search(pattern, completion)
    return None if match is None else match[0]
