"""A server as an engine: it answers, and no weight is here.

What is asked for in one go with the same messages is one request for ``n`` answers, where the
server has that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

from fttt.engine.request import (
    AdapterSlot,
    AdapterSpec,
    BeamRequest,
    GenerateRequest,
    Generation,
    Scored,
    ScoreRequest,
    Trained,
    TrainRequest,
)
from fttt.errors import RunError, UsageError
from fttt.models.messages import MessageFormat
from fttt.models.served import KEY, ServedModel, client_options, words

__all__ = ["EndpointEngine"]

_FAILURES, _HANGS, _FAULTS, _RATE_LIMITS = 8, 2, 3, 30
"""Requests for one answer before it is given up: with the server out of order, without an answer in
time, with answers that are none, and where it asks to come back later."""
_LONGEST_PAUSE, _LONGEST_WAIT = 30.0, 600.0
"""Seconds between two requests, of our own choice and as the server may ask for."""
_MOST_IN_ONE = 128
"""Answers that one request may ask for, which is what the largest hosted API allows."""
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


@dataclass(eq=False)
class _Waiting:
    """An answer that somebody waits for."""

    request: GenerateRequest
    answer: asyncio.Future[Generation]


class EndpointEngine:
    """Asks a server for answers. Implements :class:`fttt.engine.Engine`, but for weights.

    A refused or broken connection, a time-out, an answer that is none and a server that is out of
    order or asks to come back later are tried again with growing pauses; what it asks to wait, all
    requests wait.
    """

    adapters = 0
    """There are no weights to adapt."""

    def __init__(
        self,
        model: ServedModel,
        *,
        max_length: int,
        concurrency: int,
        first_pause: float = 0.5,
    ) -> None:
        """Make a client.

        Args:
            model: what is asked.
            max_length: tokens of the longest conversation.
            concurrency: answers that are written at once.
            first_pause: seconds before a request is made again for the first time, about.
        """
        self.model, self.max_length, self.generated_tokens = model, max_length, 0
        self._openai, options = client_options(model.url, model.timeout)
        self._client: Any = self._openai.AsyncOpenAI(**options)
        self._first_pause = first_pause
        self._free = concurrency
        self._queue: dict[GenerateRequest, deque[_Waiting]] = {}
        """What waits for a free place, by what one request may ask for."""
        self._running: dict[asyncio.Task[None], list[_Waiting]] = {}
        self._several = True
        """Whether the server gives several answers to one request."""
        self._limit = "max_tokens"
        self._paused_until = 0.0

    @property
    def idle(self) -> int:
        """Answers that could be written beside those that are, or wait."""
        return max(0, self._free - sum(map(len, self._queue.values())))

    async def generate(self, request: GenerateRequest) -> Generation:
        """Ask for one answer."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, loop.create_future())
        alike = replace(request, noise_key=0, keep=False, awaited=True, reuse=None)
        self._queue.setdefault(alike, deque()).append(waiting)
        loop.call_soon(self._fill)  # after those that are asked for in the same go
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            for task, asked in self._running.items():
                if waiting in asked and all(one.answer.done() for one in asked):
                    task.cancel()  # the server need not finish what nobody waits for
            raise

    def _fill(self) -> None:
        """Begin as many requests as there is room for, in the order of their asking."""
        while self._queue and self._free:
            alike, waiting = next(iter(self._queue.items()))
            asked: list[_Waiting] = []
            most = min(self._free, _MOST_IN_ONE) if self._several else 1
            while waiting and len(asked) < most:
                one = waiting.popleft()
                if not one.answer.done():
                    asked.append(one)
            if not waiting:
                del self._queue[alike]
            if asked:
                self._free -= len(asked)
                self._running[asyncio.ensure_future(self._serve(alike, asked))] = asked

    async def _serve(self, alike: GenerateRequest, asked: list[_Waiting]) -> None:
        """Get the answers of one request; those that it does not give are asked for again."""
        try:
            found = await self._answers(asked[0].request, len(asked))
        except BaseException as error:
            for one in asked:
                if isinstance(error, asyncio.CancelledError):
                    one.answer.cancel()
                elif not one.answer.done():
                    one.answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for one, generation in zip(asked, found, strict=False):
                self.generated_tokens += generation.generated_tokens or 0
                if not one.answer.done():
                    one.answer.set_result(generation)
            if left := asked[len(found) :]:
                self._several = False
                later = self._queue.pop(alike, ())
                self._queue = {alike: deque([*left, *later]), **self._queue}
        finally:
            self._free += len(asked)
            self._running.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
            self._fill()

    async def _answers(self, request: GenerateRequest, count: int) -> list[Generation]:
        """Up to ``count`` answers, asked for again until the server gives them.

        Raises:
            RunError: it refuses, or does not give any.
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

        body, attempts = self._body(request), 0
        retrying = tenacity.AsyncRetrying(
            stop=enough, wait=pause, retry=tenacity.retry_if_exception_type(_Again), reraise=True
        )
        try:
            async for attempt in retrying:
                attempts = attempt.retry_state.attempt_number
                with attempt:
                    await asyncio.sleep(self._paused_until - time.monotonic())
                    return await self._ask(body, count if self._several else 1)
        except _Again as error:
            raise RunError(
                f"The server at {self.model.url!r} gave no answer in {attempts} requests (the last "
                f"time: {error}); look at it, and resume."
            ) from None
        raise AssertionError("unreachable")

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        """The request, but for the number of answers and the name of their limit."""
        penalty = request.repetition_penalty
        own = {  # not of the public interface, but of most open servers
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": None if penalty == 1 else penalty,
            "chat_template_kwargs": dict(request.template_args),
            "return_token_ids": self.model.card.get("owned_by") == "vllm",
        }
        body = {
            "model": self.model.served_name,
            "messages": [
                {"role": m.role, "content": _sendable(m.content)} for m in request.messages
            ],
            "limit": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.noise_key % 2**31,
            "extra_body": {name: value for name, value in own.items() if value},
        }
        return body if request.top_p == 1 else {**body, "top_p": request.top_p}

    async def _ask(self, body: dict[str, Any], count: int) -> list[Generation]:
        """Make one request; ``limit`` in ``body`` stands for the most tokens of an answer.

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
            return found[:1] if alike and body["temperature"] > 0 else found
        except openai.APITimeoutError:
            seconds = f"{self.model.timeout:g} seconds (--request-timeout)"
            raise _Again(f"none came within {seconds}", _HANGS) from None
        except openai.APIConnectionError as error:
            raise _Again(words(error), _FAILURES) from None
        except openai.APIStatusError as error:
            reason = self._trouble(error) or self._refusal(error, sent, body["messages"])
            if reason is None:
                self._several = False
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
        self, error: Any, sent: Mapping[str, Any], messages: list[dict[str, str]]
    ) -> Exception | None:
        """What is to be raised where a request is refused as it is; ``None``: ask for one answer.

        It may be made again with another name of the limit, or without its oldest turns.
        """
        said = words(error)
        if error.status_code not in {400, 413, 422}:
            return self._refused(said, f"see to the server and to {KEY}, and resume")
        if _NEWER_LIMIT in said and _NEWER_LIMIT not in sent:
            self._limit = _NEWER_LIMIT
            return _Again(said, most=None, pause=0.0)
        if "context" in said.lower():
            roles = [message["role"] for message in messages]
            if "assistant" not in roles:
                return self._refused(said, "lower --max-new-tokens, or leave the question out")
            oldest = roles.index("assistant")
            del messages[oldest : oldest + 2]
            return _Again(said, most=None, pause=0.0)
        if "n" in sent:
            return None
        return self._refused(said, "leave away or change the option that it names")

    def _refused(self, said: str, advice: str) -> RunError:
        return RunError(f"The server at {self.model.url!r} refuses ({said}); {advice}.")

    async def beam(self, request: BeamRequest) -> tuple[Generation, ...]:
        """Refuse."""
        raise _without_weights()

    async def train(self, request: TrainRequest) -> Trained:
        """Refuse."""
        raise _without_weights()

    async def score(self, request: ScoreRequest) -> Scored:
        """Refuse."""
        raise _without_weights()

    async def open_adapter(
        self, spec: AdapterSpec, seed: int, copy_of: AdapterSlot | None = None
    ) -> AdapterSlot:
        """Refuse."""
        raise _without_weights()

    async def close(self) -> None:
        """Stop what is being asked, and close the connections."""
        waiting, self._queue = self._queue, {}
        for one in (one for queue in waiting.values() for one in queue):
            one.answer.cancel()
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()


def _without_weights() -> UsageError:
    return UsageError(
        "A served model gives answers only, and the method asks for a search, scores or steps; run "
        "it on the model's weights, without --endpoint."
    )


def _read(answer: Any, count: int, seconds: float) -> Iterator[Generation]:
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
        yield Generation(
            token_ids=own,
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            seconds=seconds,
            text=text,
            thought=_thought(choice.message),
            prompt_tokens=None if read is None else int(read),
            generated_tokens=tokens,
        )


def _sendable(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON may bring and UTF-8 does not hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
