"""A Python function of the user as a verifier."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from fttt.errors import UsageError
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.verifier import feedback_on
from fttt.verifiers.worker_pool import JobError, WorkerPool

__all__ = ["FunctionVerifier"]


class FunctionVerifier:
    """Calls a function to judge a completion.

    The function is called as ``check(completion)`` or, where it takes two arguments, as
    ``check(completion, question)``; it may be a coroutine function. It returns a truth value, a
    score (a ``float``, of which 1.0 is correct; ``--until`` sets another mark), or a
    :class:`fttt.Verdict`, which may also hold a ``score`` and the ``feedback`` for the model (by
    default feedback is made from the extracted answer alone). A call that raises or takes too long
    is an ``incorrect`` verdict that is ``failed`` and whose detail is the reason.

    It runs in a child process forked when the verifier is made (so a lambda or closure is fine),
    which can be killed after the time limit. The child has the caller's objects as they were at
    that moment, its changes to them stay its own, and it cannot use a GPU that the caller has used
    before. With ``time_limit=None`` the function runs in a thread of the caller's process instead:
    it has live state and may use the GPU (a reward model, say), but it cannot be stopped.
    """

    def __init__(
        self,
        check: Callable[..., Any],
        *,
        time_limit: float | None = 30.0,
        workers: int | None = None,
        extract: Callable[[str], str | None] | None = None,
        name: str | None = None,
    ) -> None:
        """Wrap ``check``.

        Args:
            check: the function.
            time_limit: seconds for one call, or ``None`` to call it in this process.
            workers: how many calls run at once, in processes of its own; by default all verifiers
                together run one a processor, at most 16.
            extract: finds the answer in a completion, for methods that vote; without it no
                completion has a vote.
            name: of ``check``, where verifiers made of it at the same time may share their
                processes.

        Raises:
            UsageError: ``check`` cannot be called with a completion.
        """
        self._call = _Call(check, _arguments(check))
        self._extract = extract
        self._pool = (
            None
            if time_limit is None
            else WorkerPool(self._call, time_limit=time_limit, workers=workers, name=name)
        )

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Call the function and convert its result to a verdict."""
        start = time.perf_counter()
        request = {"question": asdict(question), "completion": completion}
        try:
            if self._pool is not None:
                reply = await self._pool.run(request)
            else:
                reply = await asyncio.to_thread(self._call, request)
        except JobError as failure:
            reply = _failure(f"the verifier {failure}")
        except Exception as error:
            if self._pool is not None:
                raise
            reply = _failure(f"the verifier raised {type(error).__name__}: {error}")
        verdict = Verdict(**{**reply, "seconds": time.perf_counter() - start})
        extracted = verdict.extracted or self.extract(question, completion)
        feedback = verdict.feedback or feedback_on(verdict.outcome, extracted)
        return replace(verdict, extracted=extracted, feedback=feedback)

    def extract(self, question: Question, completion: str) -> str | None:
        """The result of the ``extract`` function, ``None`` without one."""
        return None if self._extract is None else self._extract(completion)

    async def close(self) -> None:
        """End the child processes."""
        if self._pool is not None:
            await self._pool.close()


class _Call:
    """The function as a job: JSON in, JSON out."""

    def __init__(self, check: Callable[..., Any], arguments: int) -> None:
        self._check = check
        self._arguments = arguments

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        arguments = (request["completion"], Question(**request["question"]))[: self._arguments]
        result = self._check(*arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        if isinstance(result, Verdict):
            score = None if result.score is None else float(result.score)  # NumPy's, say
            return {**asdict(result), "score": score}
        if isinstance(result, str | bytes):
            return _failure(f"the verifier returned the text {result[:60]!r} and no truth value")
        if isinstance(result, float):
            if not math.isfinite(result):
                return _failure(f"the verifier returned {result!r}, which is no score")
            scored: Outcome = "correct" if result == 1 else "incorrect"
            return {"outcome": scored, "detail": f"score {result:g}", "score": result}
        outcome: Outcome = "correct" if result else "incorrect"
        return {"outcome": outcome, "detail": ""}


def _failure(detail: str) -> dict[str, Any]:
    """The verdict where the function said nothing of the answer."""
    return {"outcome": "incorrect", "detail": detail, "failed": True}


def _arguments(check: Callable[..., Any]) -> int:
    """1 or 2: how many of (completion, question) the function takes."""
    try:
        signature = inspect.signature(check)
    except (TypeError, ValueError):
        return 1  # a builtin without a signature, or no callable: the first call tells
    for arguments in (2, 1):
        try:
            signature.bind(*[None] * arguments)
        except TypeError:
            continue
        return arguments
    name = getattr(check, "__name__", repr(check))
    raise UsageError(
        f"The verifier function {name!r} takes {signature}; "
        "write it as check(completion) or check(completion, question)."
    )
