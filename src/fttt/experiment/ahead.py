"""Answers that are written before their trials begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from fttt.engine.request import GenerateRequest, Generation

__all__ = ["Ahead"]


class Ahead:
    """A question's next answers, begun early while the engine has lanes that stand idle.

    That is for methods whose every trial asks the same anew: what is drawn is named by its number,
    so an answer is the same whenever it is written, and one that is not needed in the end is as if
    it had never been begun. As many are under way as trials have failed so far, so that at most
    twice what was needed is ever written, and a hard question takes its trials in a few rounds.
    """

    def __init__(
        self,
        idle: Callable[[], int],
        generate: Callable[[GenerateRequest], Coroutine[None, None, Generation]],
    ) -> None:
        """Take note of the engine: its idle lanes, and what writes an answer."""
        self._idle = idle
        self._generate = generate
        self._begun: dict[int, asyncio.Task[Generation]] = {}

    async def take(
        self, number: int, request: Callable[[int], GenerateRequest], last: int
    ) -> Generation:
        """The answer of a number, and a beginning with those after it, up to ``last``."""
        lanes = self._idle()
        for n in range(number, max(number, min(last, 2 * number)) + 1):
            if n in self._begun:
                continue
            if n > number and lanes < 1:
                break
            lanes -= 1
            self._begun[n] = asyncio.create_task(self._generate(request(n)))
        return await self._begun.pop(number)

    def close(self) -> None:
        """Stop what nobody will ask for."""
        for task in self._begun.values():
            if task.done() and not task.cancelled():
                task.exception()  # of an engine that failed; whoever waited for it has been told
            task.cancel()
        self._begun.clear()
