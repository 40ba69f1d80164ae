"""What a question has written, what the engine's cache holds of it, and what is written ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Protocol

from fttt.engine.request import (
    AdapterSlot,
    AdapterSpec,
    Engine,
    GenerateRequest,
    Generation,
    Kept,
    LoRASpec,
)
from fttt.types import Verdict

__all__ = [
    "Conversation",
    "HeldSequence",
    "HeldSequences",
    "Lookahead",
    "OwnAdapter",
    "TrialCounts",
]


@dataclass(eq=False)
class OwnAdapter:
    """An adapter of one question, as its method holds it."""

    slot: AdapterSlot
    seed: int
    """What its fresh weights are drawn from."""
    steps: int = 0
    """Changes of the weights so far: keys and values are those of the weights after as many."""


@dataclass
class TrialCounts:
    """Trials of all questions of a run so far, which tell how many a question may need."""

    failed: int = 0
    solved: int = 0

    def judge(self, verdict: Verdict) -> None:
        """Count a trial."""
        self.solved += verdict.correct
        self.failed += not verdict.correct

    def failed_each(self, own: int) -> int:
        """Failures for each question that is solved, without ``own`` ones of the question asked."""
        return max(0, self.failed - own) // (self.solved + 1)


class Generate(Protocol):
    """Writes an answer, as :meth:`HeldSequences.generate` does."""

    def __call__(
        self, request: GenerateRequest, *, alone: bool = True
    ) -> Coroutine[None, None, Generation]: ...


class Lookahead:
    """A question's next answers, begun early while the engine has idle lanes.

    That is for methods whose every trial asks the same anew: a draw is named by its number, so an
    answer is the same whenever it is written, and one that is not needed in the end leaves no
    trace. As many are under way as the question is expected to need: as many as its own trials have
    failed so far, and as many as fail for each other question of the run that is solved. So at
    least about half of what is written is needed, and a hard question's trials take a few rounds.
    """

    def __init__(self, idle: Callable[[], int], generate: Generate, counts: TrialCounts) -> None:
        """Take the engine's count of idle lanes, what writes an answer, and the run's trials."""
        self._idle, self._generate, self._counts = idle, generate, counts
        self._begun: dict[int, asyncio.Task[Generation]] = {}

    def __contains__(self, number: int) -> bool:
        """Whether the answer of a number is written ahead."""
        return number in self._begun

    async def take(
        self, number: int, request: Callable[[int], GenerateRequest], last: int
    ) -> Generation:
        """The answer of a number; those after it, up to ``last``, are begun."""
        reach = max(number, min(last, 2 * number + self._counts.failed_each(own=number)))
        wanted = [n for n in range(number, reach + 1) if n not in self._begun]
        idle = max(0, self._idle())
        fresh = wanted[: max(idle, 1)] if number not in self._begun else wanted[:idle]
        for n in fresh:
            writing = self._generate(request(n), alone=len(fresh) == 1)
            self._begun[n] = asyncio.create_task(writing)
        return await self._begun.pop(number)

    def close(self) -> None:
        """Stop the answers that nobody will ask for."""
        for task in self._begun.values():
            if task.done() and not task.cancelled():
                task.exception()  # of an engine that failed; whoever waited for it has been told
            task.cancel()
        self._begun.clear()


@dataclass(frozen=True)
class HeldSequence:
    """Cache rows that a train step may read, and the weights that they were written under."""

    kept: Kept
    adapter: OwnAdapter | None
    steps: int
    """Of the adapter, when it was written."""

    def serves(self, adapter: OwnAdapter | None) -> bool:
        """Whether an adapter wrote it with the weights that it has now."""
        return adapter is not None and adapter is self.adapter and adapter.steps == self.steps


class HeldSequences:
    """What the engine's cache holds of a question's sequences.

    A sequence of the question's own adapter is held for the train step on it, until its trial ends.
    Of the base model's sequences only the last is held, since the next one may begin as it does;
    where a train step may read any sequence, it reads that one too.
    """

    def __init__(self, engine: Engine, spec: AdapterSpec | None) -> None:
        """``spec`` is the question's adapters', which says what a train step reads."""
        self._engine, self._spec = engine, spec
        self._held: list[HeldSequence] = []
        self._last: Kept | None = None  # of the base model

    def hold(self, kept: Kept, adapter: OwnAdapter | None) -> None:
        """Hold the rows of a sequence that an adapter, as it is now, has written."""
        self._held.append(HeldSequence(kept, adapter, adapter.steps if adapter else 0))

    def learns_from(self, *, adapted: bool) -> bool:
        """Whether train steps read what the adapter wrote, or what the base model did."""
        return self._spec is not None and self._spec.learns_from(adapted=adapted)

    async def generate(self, request: GenerateRequest, *, alone: bool = True) -> Generation:
        """Generate; the base model's last sequence is held, and may begin as this one does.

        Where others that ask the same are begun beside it, all of them share a pass over their
        prompt instead: what reads a held sequence needs a pass of its own.
        """
        if request.adapter is not None:
            return await self._engine.generate(request)
        last: Kept | None = None
        if alone:
            last, self._last = self._last, None
        try:
            again = request if last is None else replace(request, reuse=last)
            generation = await self._engine.generate(again)
        finally:
            if last is not None:
                last.close()
        self._release_last()
        self._last = generation.kept
        return generation

    def find(self, whole: tuple[int, ...], upto: int, adapter: OwnAdapter | None) -> Kept | None:
        """Cache rows that hold the first ``upto`` tokens of a conversation for an adapter's step.

        A learned adapter's are those that it wrote with the weights that it has. A predicted change
        reads what any sequence has given below the edited layers.
        """
        learned = isinstance(self._spec, LoRASpec)
        found = [held.kept for held in self._held if not learned or held.serves(adapter)]
        if self._last is not None and self.learns_from(adapted=False):
            found.append(self._last)
        for kept in found:
            if len(kept.token_ids) >= upto and kept.token_ids[:upto] == whole[:upto]:
                return kept
        return None

    def release(self) -> None:
        """Give back the rows that were held for the train steps of a trial."""
        for held in self._held:
            held.kept.close()
        self._held.clear()

    def close(self) -> None:
        """Give everything back."""
        self.release()
        self._release_last()

    def _release_last(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A target's tokens and all that stands before them."""

    before_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    fixed: int
    """Tokens whose keys and values are constants of a step: up to the last answer before the
    target, the question at least."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.before_ids + self.target_ids
