"""One adapter of all questions of a run, whose optimizer steps are taken in waves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from fttt.engine.request import (
    AdapterSlot,
    AdapterSpec,
    Engine,
    Lesson,
    Target,
    TrainRequest,
)

__all__ = ["SharedAdapter"]


class SharedAdapter:
    """Weights that all questions write under and learn into.

    Wave ``k`` is one optimizer step on what the questions handed in of their round ``k`` (a trial,
    or a group of trials), once each of them has ended that round or has left, in the order of the
    run's questions; each question counts the same. Round ``k`` is written under the weights of wave
    ``k - 2``, so that no question waits for the slowest of its own round, or of wave ``k - 1``
    where none may be ``ahead``. Who is faster changes nothing, and a resumed run takes the same
    steps again.

    Each step is taken in a copy of the weights, since the last ones are still written under; two
    copies are held at once.
    """

    COPIES = 2

    def __init__(
        self,
        engine: Engine,
        spec: AdapterSpec,
        seed: int,
        questions: Sequence[str],
        ahead: int = 1,
    ) -> None:
        """Hold no weights yet.

        Args:
            questions: ids of the run's questions, in their order.
            ahead: rounds that a question may begin before the wave of the round before is
                learned, 0 or 1.
        """
        self._ahead = ahead
        self._engine, self._spec, self._seed = engine, spec, seed
        self._order = {identity: number for number, identity in enumerate(questions)}
        self._next = dict.fromkeys(questions, 0)
        """Of each question that has not left: the round that it is in."""
        self._handed: dict[int, dict[int, list[Lesson]]] = {}
        self._versions: list[asyncio.Future[AdapterSlot]] = []
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def weights(self, number: int) -> AdapterSlot:
        """The slot that a round is written under, once its step has been taken."""
        if self._task is None:
            self._task = asyncio.create_task(self._steps())
        return await asyncio.shield(self._version(max(0, number - self._ahead)))

    def hand_in(self, question: str, number: int, lessons: Sequence[Lesson]) -> None:
        """Add what a question has to learn from in a round."""
        wave = self._handed.setdefault(number, {})
        wave.setdefault(self._order[question], []).extend(lessons)

    def ended(self, question: str, number: int) -> None:
        """Note that a question has ended a round."""
        self._next[question] = number + 1
        self._moved.set()

    def left(self, question: str) -> None:
        """Note that a question has no further round."""
        self._next.pop(question, None)
        self._moved.set()

    async def close(self) -> None:
        """Stop, and give the slots back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for version in self._versions:
            if version.done() and not version.cancelled() and version.exception() is None:
                version.result().close()
            version.cancel()

    def _version(self, number: int) -> asyncio.Future[AdapterSlot]:
        """The slot after ``number`` waves."""
        while len(self._versions) <= number:
            self._versions.append(asyncio.get_running_loop().create_future())
        return self._versions[number]

    async def _steps(self) -> None:
        """Take the steps, one after the other, as their waves become complete."""
        slots: list[AdapterSlot] = []
        try:
            slots.append(await self._engine.open_adapter(self._spec, self._seed))
            self._version(0).set_result(slots[0])
            while True:
                wave = len(slots) - 1
                while self._next and min(self._next.values()) <= wave:
                    self._moved.clear()
                    await self._moved.wait()
                if not self._next:
                    return
                slots.append(await self._step(wave, slots))
                self._version(wave + 1).set_result(slots[-1])
        except Exception as error:
            for version in self._versions:
                if not version.done():
                    version.set_exception(error)
            raise

    async def _step(self, wave: int, slots: Sequence[AdapterSlot]) -> AdapterSlot:
        """The slot after a wave; the one before the last is no longer written under."""
        if wave > 0 and slots[wave - 1] is not slots[wave]:
            slots[wave - 1].close()
        handed = self._handed.pop(wave, {})
        if not handed:
            return slots[wave]
        slot = await self._engine.open_adapter(self._spec, self._seed, copy_of=slots[wave])
        lessons = [
            replace(lesson, targets=tuple(_scaled(t, 1 / len(handed)) for t in lesson.targets))
            for question in sorted(handed)
            for lesson in handed[question]
        ]
        await self._engine.train(TrainRequest(slot, tuple(lessons)))
        return slot


def _scaled(target: Target, share: float) -> Target:
    return replace(target, weights=tuple(weight * share for weight in target.weights))
