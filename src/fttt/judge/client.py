"""Asks a judge: one that is served somewhere, or one embedded in this process tree."""

from __future__ import annotations

import asyncio
import json
import os
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary, WeakSet

import httpx
import tenacity

from fttt.errors import RunError, UsageError
from fttt.judge.problem import BadRequest, Judgement, StdinProblem, Submission
from fttt.judge.sandbox import Sandbox

__all__ = ["EmbeddedJudge", "Judge", "JudgeClient", "find_judge"]

_ATTEMPTS = 8
_FULL_SECONDS = 600.0  # a queue that is full for so long will not become free
# For an answer and for a connection. Much longer than either takes, since the engine's passes may
# hold this event loop for seconds at a time; to wait for one's own other requests is no failure.
_ANSWER, _CONNECTION = 120.0, 30.0
_PER_RUN = 10.0
"""Seconds more for an answer, a run of a program that reads standard input."""


class Judge(Protocol):
    """Anything that judges submissions."""

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one; raises :class:`fttt.errors.RunError` where judging is impossible."""

    async def close(self) -> None:
        """Let go of what it holds. Calling it twice is harmless."""


class _Busy(Exception):  # noqa: N818
    """The service asked to come back later."""

    def __init__(self, detail: str, after: float, full: bool) -> None:
        super().__init__(detail)
        self.after, self.full = after, full


class JudgeClient:
    """A client of a served judge.

    It may be this package's or the one that was published with the paper. A refused connection, a
    broken one and a full queue are tried again with growing pauses; a judge that stays down, or
    full for minutes, raises :class:`fttt.errors.RunError`, never a verdict.
    """

    def __init__(
        self,
        url: str,
        *,
        attempts: int = _ATTEMPTS,
        first_pause: float = 0.25,
        full_seconds: float = _FULL_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url.strip()
        if not self._url.startswith(("http://", "https://")):
            raise UsageError(f"the judge's address {url!r} is no http:// or https:// address")
        self._attempts = attempts
        self._full_seconds = full_seconds
        self._pause = tenacity.wait_random_exponential(multiplier=first_pause, max=10.0)
        self._http = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=True)

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one submission by the service."""
        retrying = tenacity.AsyncRetrying(
            stop=self._stop,
            wait=self._wait,
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _Busy)),
            reraise=True,
        )
        attempts = 0
        try:
            async for attempt in retrying:
                attempts = attempt.retry_state.attempt_number
                with attempt:
                    return await self._ask(submission)
        except (httpx.TransportError, _Busy) as error:
            why = str(error) or type(error).__name__
            raise RunError(
                f"the code judge at {self._url} did not answer in {attempts} attempts "
                f"({why}); start it with `fttt judge serve` or leave OJ_API and --judge-url out "
                "to use the embedded one"
            ) from error
        raise AssertionError("unreachable")

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give up: a judge that is only full is waited for longer."""
        error = state.outcome.exception() if state.outcome is not None else None
        waited = state.seconds_since_start or 0.0
        enough = state.attempt_number >= self._attempts
        full = isinstance(error, _Busy) and error.full
        return enough and not (full and waited < self._full_seconds)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return max(self._pause(state), error.after if isinstance(error, _Busy) else 0.0)

    async def _ask(self, submission: Submission) -> Judgement:
        body = {"problem": submission.problem.to_json(), "completion": submission.completion}
        # In ASCII, so that even a lone surrogate reaches the judge, whose business it is.
        content = json.dumps(body).encode("ascii")
        headers = {"Content-Type": "application/json"}
        answer = await self._http.post(
            self._url, content=content, headers=headers, timeout=_patience(submission)
        )
        if answer.status_code == 503:
            after = answer.headers.get("Retry-After", "")
            # Only full: it says when to come back, or is a server that says nothing but "503".
            full = after.isdigit() or "json" not in answer.headers.get("Content-Type", "")
            raise _Busy(_detail(answer), float(after) if after.isdigit() else 0.0, full)
        if answer.status_code != 200:
            raise RunError(
                f"the code judge at {self._url} refused the request with {answer.status_code}: "
                f"{_detail(answer)}"
            )
        try:
            return Judgement.from_json(answer.json())
        except (BadRequest, ValueError) as error:
            raise RunError(f"the code judge at {self._url} gave no verdict: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _patience(submission: Submission) -> httpx.Timeout:
    problem = submission.problem
    runs = len(problem.inputs) if isinstance(problem, StdinProblem) else 0
    return httpx.Timeout(_ANSWER + runs * _PER_RUN, connect=_CONNECTION, pool=None)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return answer.text[:200]


class EmbeddedJudge:
    """One user's share in the sandbox of an event loop; the last one that closes ends it.

    So the runs of a sweep, which are asked together, have the boxes of one sandbox.
    """

    _sharing: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[EmbeddedJudge]]] = (
        WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self._sandbox: Sandbox | None = None
        self._sharers: WeakSet[EmbeddedJudge] = WeakSet()

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one in the sandbox, which starts with the first submission of all users."""
        if self._sandbox is None:
            loop = asyncio.get_running_loop()
            self._sharers = self._sharing.setdefault(loop, WeakSet())
            others = (one._sandbox for one in self._sharers)
            self._sandbox = next(others, None) or Sandbox()
            self._sharers.add(self)
        return await self._sandbox.judge(submission)

    async def close(self) -> None:
        """Let the sandbox go."""
        sandbox, self._sandbox = self._sandbox, None
        self._sharers.discard(self)
        if sandbox is not None and not self._sharers:
            await sandbox.close()


def find_judge(url: str | None = None) -> Judge:
    """The judge at ``url``, else at ``OJ_API`` (the published code's variable), else embedded.

    The embedded judge is a sandbox of this process: it starts with the first submission and ends
    with this process, however that ends.
    """
    url = url or os.environ.get("OJ_API")
    return JudgeClient(url) if url else EmbeddedJudge()
