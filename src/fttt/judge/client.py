"""Asks a judge: one that is served somewhere, or one embedded in this process tree."""

from __future__ import annotations

import json
import os
from typing import Protocol

import httpx
import tenacity

from fttt.errors import RunError, UsageError
from fttt.judge.problem import BadRequest, Judgement, Submission
from fttt.judge.sandbox import Sandbox

__all__ = ["Judge", "JudgeClient", "find_judge"]

_ATTEMPTS = 8
# For an answer and for a connection. Much longer than either takes, since the engine's passes may
# hold this event loop for seconds at a time; to wait for one's own other requests is no failure.
_PATIENCE = httpx.Timeout(120.0, connect=30.0, pool=None)


class Judge(Protocol):
    """Anything that judges submissions."""

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one; raises :class:`fttt.errors.RunError` where judging is impossible."""

    async def close(self) -> None:
        """Let go of what it holds. Calling it twice is harmless."""


class _Busy(Exception):  # noqa: N818
    """The service asked to come back later."""

    def __init__(self, detail: str, after: float) -> None:
        super().__init__(detail)
        self.after = after


class JudgeClient:
    """A client of a served judge.

    A refused connection, a broken one and a full queue are tried again with growing pauses; a
    judge that stays down raises :class:`fttt.errors.RunError`, never a verdict.
    """

    def __init__(
        self,
        url: str,
        *,
        attempts: int = _ATTEMPTS,
        first_pause: float = 0.25,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"the judge's address {url!r} is no http:// or https:// address")
        self._url = url
        self._attempts = attempts
        self._pause = tenacity.wait_random_exponential(multiplier=first_pause, max=10.0)
        self._http = httpx.AsyncClient(timeout=_PATIENCE, transport=transport, trust_env=False)

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one submission by the service."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _Busy)),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._ask(submission)
        except (httpx.TransportError, _Busy) as error:
            why = str(error) or type(error).__name__
            raise RunError(
                f"the code judge at {self._url} did not answer in {self._attempts} attempts "
                f"({why}); start it with `fttt judge serve` or leave OJ_API and --judge-url out "
                "to use the embedded one"
            ) from error
        raise AssertionError("unreachable")

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return max(self._pause(state), error.after if isinstance(error, _Busy) else 0.0)

    async def _ask(self, submission: Submission) -> Judgement:
        body = {"problem": submission.problem.to_json(), "completion": submission.completion}
        # In ASCII, so that even a lone surrogate reaches the judge, whose business it is.
        content = json.dumps(body).encode("ascii")
        headers = {"Content-Type": "application/json"}
        answer = await self._http.post(self._url, content=content, headers=headers)
        if answer.status_code == 503:
            after = answer.headers.get("Retry-After", "0")
            raise _Busy(_detail(answer), float(after) if after.isdigit() else 0.0)
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


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return answer.text[:200]


def find_judge(url: str | None = None) -> Judge:
    """The judge at ``url``, else at ``OJ_API`` (the published code's variable), else embedded.

    The embedded judge is a sandbox of this process: it starts with the first submission and ends
    with this process, however that ends.
    """
    url = url or os.environ.get("OJ_API")
    return JudgeClient(url) if url else Sandbox()
