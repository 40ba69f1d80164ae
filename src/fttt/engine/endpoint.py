"""A server as an engine: it answers, and no weight is here.

What is asked for in one go with the same messages is one request for ``n`` answers, where the
server has that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
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
from fttt.errors import UsageError
from fttt.models.chat_client import ChatClient, ServedAnswer, sendable
from fttt.models.served import ServedModel

__all__ = ["EndpointEngine"]

_MOST_IN_ONE = 128
"""Answers that one request may ask for, which is what the largest hosted API allows."""


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
        self._client = ChatClient(model, first_pause=first_pause)
        self.concurrency = self._free = concurrency
        self._queue: dict[GenerateRequest, deque[_Waiting]] = {}
        """What waits for a free place, by what one request may ask for."""
        self._running: dict[asyncio.Task[None], list[_Waiting]] = {}

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
            most = min(self._free, _MOST_IN_ONE) if self._client.several else 1
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
            found = await self._client.answers(self._body(asked[0].request), len(asked))
        except BaseException as error:
            for one in asked:
                if isinstance(error, asyncio.CancelledError):
                    one.answer.cancel()
                elif not one.answer.done():
                    one.answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for one, answer in zip(asked, found, strict=False):
                self.generated_tokens += answer.generated_tokens
                if not one.answer.done():
                    one.answer.set_result(_generation(answer))
            if left := asked[len(found) :]:
                self._client.several = False
                later = self._queue.pop(alike, ())
                self._queue = {alike: deque([*left, *later]), **self._queue}
        finally:
            self._free += len(asked)
            self._running.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
            self._fill()

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
                {"role": m.role, "content": sendable(m.content)} for m in request.messages
            ],
            "limit": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.noise_key % 2**31,
            "extra_body": {name: value for name, value in own.items() if value},
        }
        return body if request.top_p == 1 else {**body, "top_p": request.top_p}

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


def _generation(answer: ServedAnswer) -> Generation:
    return Generation(
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        seconds=answer.seconds,
        text=answer.text,
        thought=answer.thought,
        prompt_tokens=answer.prompt_tokens,
        generated_tokens=answer.generated_tokens,
    )
