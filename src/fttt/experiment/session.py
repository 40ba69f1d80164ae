"""What a method sees of a run: the trials of one question, its own weights, and its budget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fttt.engine.noise import derive_key
from fttt.experiment.attempt import QuestionAttempt
from fttt.experiment.bench import Bench
from fttt.experiment.ledger import Ledger
from fttt.experiment.work import QuestionWork
from fttt.methods import Adapter, Attempt
from fttt.types import Completion, Question, Turn

__all__ = ["QuestionSession"]


class QuestionSession:
    """One question's view of a run. Implements :class:`fttt.methods.Session`."""

    def __init__(self, question: Question, bench: Bench) -> None:
        self._question, self._bench = question, bench
        self._work = QuestionWork(question, bench)
        self._attempts: list[QuestionAttempt] = []

    @property
    def ledger(self) -> Ledger:
        """What the question has spent, and what it may."""
        return self._work.ledger

    @property
    def budget(self) -> int:
        """The number of trials that the run grants each question."""
        return self.ledger.trials

    async def trials(self) -> AsyncIterator[Attempt]:
        """Trials until the budget is spent, or the question is solved."""
        ledger, together = self.ledger, self._bench.method.together
        while True:
            if not together:
                self.end_trials()
                if ledger.solved:
                    return
            elif ledger.running and not (ledger.limited_by_trials and ledger.grants()):
                await self._work.next_verdict()
                continue
            if not ledger.grants():
                return
            attempt = QuestionAttempt(self._work, ledger.begin(), ends_with_verdict=together)
            self._attempts.append(attempt)
            yield attempt

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[Adapter]:
        """This question's own weights, fresh and seeded, given back at the end."""
        bench = self._bench
        if bench.adapter_spec is None:
            raise TypeError("a method without LoRASettings asked for an adapter")
        seed = derive_key("adapter", bench.seed, self._question.id)
        slot = await bench.engine.open_adapter(bench.adapter_spec, seed)
        try:
            yield slot
        finally:
            slot.close()

    async def generate(
        self,
        *turns: Turn,
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write something that is no answer: it spends tokens but no trial."""
        completion = await self._work.write(
            turns, adapter=adapter, max_new_tokens=max_new_tokens, temperature=temperature
        )
        if self._attempts and not self._attempts[-1].ended:
            self._attempts[-1].usage += completion.usage  # it was written for the latest trial
        return completion

    def extract(self, completion: Completion) -> str | None:
        """The normalised answer in a completion."""
        return self._work.extract(completion)

    def end_trials(self) -> None:
        """Write down the trials that have ended and let their keys and values go."""
        for attempt in self._attempts:
            attempt.end()
        self._attempts.clear()
        self._work.release()

    def close(self) -> None:
        """Let everything go without writing."""
        self._work.close()
