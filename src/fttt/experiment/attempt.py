"""One trial of a question, from its first token to its record."""

from __future__ import annotations

from collections.abc import Sequence

from fttt.experiment.work import QuestionWork
from fttt.methods import Adapter
from fttt.types import Completion, Feedback, Trial, Turn, Usage, Verdict

__all__ = ["QuestionAttempt"]


class QuestionAttempt:
    """One trial in progress. Implements :class:`fttt.methods.Attempt`."""

    def __init__(self, work: QuestionWork, index: int, *, ends_with_verdict: bool) -> None:
        self._work = work
        self._index = index
        self._ends_with_verdict = ends_with_verdict
        self._result: tuple[Completion, Verdict] | None = None
        self._loss: float | None = None
        self.usage = Usage()
        self.ended = False

    @property
    def index(self) -> int:
        """The trial's number, from 0."""
        return self._index

    @property
    def last(self) -> bool:
        """Whether the budget grants no trial after this one, once this one is judged."""
        return not self._work.ledger.grants()

    async def generate(
        self,
        *turns: Turn,
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write an answer to the question followed by ``turns``."""
        completion = await self._work.write(
            turns, adapter=adapter, temperature=temperature, trial=self._index
        )
        self.usage += completion.usage
        return completion

    async def search(self, beams: int) -> tuple[Completion, ...]:
        """Write ``beams`` answers by one beam search, the best one first."""
        found = await self._work.search(beams, self._index)
        for completion in found:
            self.usage += completion.usage
        return found

    async def verify(self, completion: Completion) -> Verdict:
        """Judge the trial's answer; its record is written with this verdict."""
        if self._result is not None:
            raise RuntimeError(
                f"the method judged a second answer in trial {self._index}; a trial is one answer "
                "that is judged, so ask the session for the next one"
            )
        verdict, usage = await self._work.judge(completion)
        self.usage += usage
        self._result = (completion, verdict)
        self._work.count(verdict)
        if self._ends_with_verdict:
            self.end()
        return verdict

    async def train(
        self, adapter: Adapter, *, after: Completion, on: Feedback | Sequence[Feedback]
    ) -> float:
        """Take one step on what was said after an attempt; return the loss before it."""
        said = (on,) if isinstance(on, Feedback) else tuple(on)
        self._loss, usage = await self._work.learn(adapter, after, said)
        self.usage += usage
        return self._loss

    def end(self) -> None:
        """Write the trial down, once."""
        if self.ended:
            return
        if self._result is None:
            raise RuntimeError(f"the method ended trial {self._index} without a verdict")
        self.ended = True
        completion, verdict = self._result
        extracted = verdict.extracted
        if self._work.bench.method.decided_by == "vote":
            extracted = self._work.extract(completion)  # the normal form, which is voted on
        self._work.record(
            Trial(
                question_id=self._work.question.id,
                trial=self._index,
                generation=completion.generation,
                completion=completion.text,
                token_ids=completion.token_ids,
                finish_reason=completion.finish_reason,
                extracted=extracted,
                verdict=verdict.outcome,
                detail=verdict.detail,
                loss=self._loss,
                usage=self.usage,
                score=verdict.score,
                tests_passed=verdict.tests_passed,
                tests_total=verdict.tests_total,
            )
        )
