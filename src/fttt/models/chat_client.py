"""A client of an OpenAI-compatible server: answers asked for again until they come."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from fttt.errors import RunError
from fttt.models.messages import MessageFormat
from fttt.models.served import ServedModel, client_options, words
from fttt.types import FinishReason

__all__ = ["ChatClient", "RefusedError", "ServedAnswer", "sendable"]

_FAILURES, _HANGS, _FAULTS, _RATE_LIMITS = 8, 2, 3, 30
"""Requests for one answer before it is given up: with the server out of order, without an answer in
time, with answers that are none, and where it asks to come back later."""
_LONGEST_PAUSE, _LONGEST_WAIT = 30.0, 600.0
"""Seconds between two requests, of our own choice and as the server may ask for."""
_NEWER_LIMIT = "max_completion_tokens"
"""What some servers want for ``max_tokens``, which most know."""


class _Again(Exception):  # noqa: N818 - no error yet
    """A request that is to be made again."""

    def __init__(self, why: str, most: int | None, pause: float | None = None) -> None:
        super().__init__(why)
        self.most = most
        """Requests before it is given up, if it ever is."""
        self.pause = pause
        """Seconds; ``None``: longer each time."""


class RefusedError(RunError):
    """The server does not take this one request; it may take others."""


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What a server wrote for one request."""

    text: str
    finish_reason: FinishReason
    seconds: float
    """Of the request that was answered."""
    generated_tokens: int
    prompt_tokens: int | None
    """``None`` where the server counts nothing."""
    token_ids: tuple[int, ...] = ()
    """Empty where the server gives none."""
    thought: str | None = None


class ChatClient:
    """Asks a server for chat completions, and again where it is busy or out of order.

    What the server asks to wait, all requests of a client wait.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        first_pause: float = 0.5,
        optional: Collection[str] = (),
        limit_name: str = "--request-timeout",
    ) -> None:
        """Make a client, for one event loop.

        Args:
            model: what is asked.
            first_pause: seconds before a request is made again for the first time, about.
            optional: what is left out of a request that is refused because of it.
            limit_name: what sets the seconds to wait for an answer.
        """
        self.model, self.several = model, True
        """``several``: whether the server gives several answers to one request."""
        self._openai, options = client_options(model.url, model.timeout, model.key)
        self._client: Any = self._openai.AsyncOpenAI(**options)
        self._first_pause, self._optional = first_pause, optional
        self._limit, self._limit_name = "max_tokens", limit_name
        self._paused_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def answers(self, body: dict[str, Any], count: int = 1) -> list[ServedAnswer]:
        """Up to ``count`` answers, asked for again until the server gives them.

        Args:
            body: the request, ``limit`` standing for the most tokens of an answer, which servers
                call by two names.
            count: more than one where the server gives several.

        Raises:
            RefusedError: it does not take this request.
            RunError: it refuses any, or does not give any.
        """
        import tenacity

        backoff = tenacity.wait_random_exponential(self._first_pause, max=_LONGEST_PAUSE)

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.pause if isinstance(error, _Again) else None
            return backoff(state) if asked is None else asked

        def enough(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            most = error.most if isinstance(error, _Again) else None
            return most is not None and state.attempt_number >= most

        attempts = 0
        retrying = tenacity.AsyncRetrying(
            stop=enough, wait=pause, retry=tenacity.retry_if_exception_type(_Again), reraise=True
        )
        try:
            async for attempt in retrying:
                attempts = attempt.retry_state.attempt_number
                with attempt:
                    await asyncio.sleep(self._paused_until - time.monotonic())
                    return await self._ask(body, count if self.several else 1)
        except _Again as error:
            raise RunError(
                f"The server at {self.model.url!r} gave no answer in {attempts} requests (the last "
                f"time: {error}); look at it, and resume."
            ) from None
        raise AssertionError("unreachable")

    async def _ask(self, body: dict[str, Any], count: int) -> list[ServedAnswer]:
        """Make one request.

        Answers that are all alike may have been drawn from one seed each, so only one is taken.
        """
        openai, start = self._openai, time.perf_counter()
        sent = {k: v for k, v in body.items() if k != "limit"} | {self._limit: body["limit"]}
        if count > 1:
            sent["n"] = count
        try:
            answer = await self._client.chat.completions.create(**sent)
            found = list(_read(answer, count, time.perf_counter() - start))
            alike = len({one.text for one in found}) == 1
            return found[:1] if alike and body.get("temperature") != 0 else found
        except openai.APITimeoutError:
            seconds = f"{self.model.timeout:g} seconds ({self._limit_name})"
            raise _Again(f"none came within {seconds}", _HANGS) from None
        except openai.APIConnectionError as error:
            raise _Again(words(error), _FAILURES) from None
        except openai.APIStatusError as error:
            reason = self._trouble(error) or self._refusal(error, sent, body)
            if reason is None:
                self.several = False
                return []
            raise reason from None
        except (openai.APIError, AttributeError, TypeError, ValueError) as error:
            why = f"what it answered is no chat completion: {words(error)}"
            raise _Again(why, _FAULTS) from None

    def _trouble(self, error: Any) -> Exception | None:
        """What is to be raised where the server is busy or out of order."""
        if error.status_code not in {408, 409, 429} and error.status_code < 500:
            return None
        said, pause = words(error), _asked_pause(error.response.headers)
        if error.code == "insufficient_quota":
            return self._refused(said, "see to the account, and resume")
        if pause is None:
            return _Again(said, _RATE_LIMITS if error.status_code == 429 else _FAILURES)
        if pause > _LONGEST_WAIT:
            return self._refused(f"{said}; come back in {pause:,.0f} seconds", "resume it then")
        self._paused_until = max(self._paused_until, time.monotonic() + pause)
        # not all in the same moment
        return _Again(said, _RATE_LIMITS, pause + random.uniform(0, self._first_pause))

    def _refusal(
        self, error: Any, sent: Mapping[str, Any], body: dict[str, Any]
    ) -> Exception | None:
        """What is to be raised where a request is refused as it is; ``None``: ask for one answer.

        It may be made again with another name of the limit, without its oldest turns, or without
        what it can do without.
        """
        said = words(error)
        if error.status_code not in {400, 413, 422}:
            return self._refused(said, f"see to the server and to {self.model.key}, and resume")
        if _NEWER_LIMIT in said and _NEWER_LIMIT not in sent:
            self._limit = _NEWER_LIMIT
            return _Again(said, most=None, pause=0.0)
        for name in self._optional:
            if name in body and name in said:
                del body[name]
                return _Again(said, most=None, pause=0.0)
        if "context" in said.lower():
            messages = body["messages"]
            roles = [message["role"] for message in messages]
            if "assistant" not in roles:
                return self._refused_one(said, "lower --max-new-tokens, or leave the question out")
            oldest = roles.index("assistant")
            del messages[oldest : oldest + 2]
            return _Again(said, most=None, pause=0.0)
        if "n" in sent:
            return None
        return self._refused_one(said, "leave away or change the option that it names")

    def _refused(self, said: str, advice: str, kind: type[RunError] = RunError) -> RunError:
        return kind(f"The server at {self.model.url!r} refuses ({said}); {advice}.")

    def _refused_one(self, said: str, advice: str) -> RunError:
        return self._refused(said, advice, RefusedError)


def _read(answer: Any, count: int, seconds: float) -> Iterator[ServedAnswer]:
    """The answers of a chat completion.

    Tokens are counted by the server for all of them together; without their ids, each has the share
    that its text has.

    Raises:
        AttributeError, TypeError, ValueError: it is none.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        # some say with status 200 what went wrong elsewhere
        raise ValueError(getattr(answer, "error", None) or "it has no choices")
    choices = choices[:count]
    texts = [_text(choice.message.content) for choice in choices]
    ids = [tuple(getattr(choice, "token_ids", None) or ()) for choice in choices]
    usage = getattr(answer, "usage", None)
    read, written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if written is None:  # a few servers count nothing
        written = sum(map(MessageFormat().turn_tokens, texts))
    counts = [len(one) for one in ids] if all(ids) else _shares(int(written), texts)
    for choice, text, own, tokens in zip(choices, texts, ids, counts, strict=True):
        yield ServedAnswer(
            token_ids=own,
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            seconds=seconds,
            text=text,
            thought=_thought(choice.message),
            prompt_tokens=None if read is None else int(read),
            generated_tokens=tokens,
        )


def _text(content: object) -> str:
    """An answer's text; a model that was cut off while it reasoned has none."""
    if content is not None and not isinstance(content, str):
        raise TypeError(f"its content is {type(content).__name__}")
    return content or ""


def _thought(message: object) -> str | None:
    """What a server sets apart as thought, by either of two names."""
    names = ("reasoning_content", "reasoning")
    said = (getattr(message, name, None) for name in names)
    return next((text.strip() for text in said if isinstance(text, str)), None)


def _shares(total: int, texts: Sequence[str]) -> list[int]:
    """A whole number for each text, by its length; together they are ``total``."""
    lengths = [len(text) + 1 for text in texts]
    ends = [total * sum(lengths[: n + 1]) // sum(lengths) for n in range(len(texts))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by ``Retry-After``: a number, or a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        asked = headers.get("retry-after")
        if asked is None:
            return None
        if asked.replace(".", "", 1).isdigit():
            return float(asked)
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


def sendable(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON may bring and UTF-8 does not hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
