"""What a method sees of a run: the trials of one question, adapters, and a budget.

And what an ablation shows it in place of an attempt and its verdict. That is the same again on
resume: it depends on the seed, the question and the attempt's number, and what had to be generated
and judged for it is in the journal.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from fttt.engine.adapters.bank import handed_over
from fttt.engine.ops.sampling import derive_key
from fttt.errors import RunError
from fttt.experiment.held_sequences import OwnAdapter
from fttt.experiment.ledger import Ledger
from fttt.experiment.replay import Replay, RunContext
from fttt.experiment.waves import SharedAdapter
from fttt.methods import Adapter, Attempt, Group
from fttt.types import (
    Completion,
    Example,
    Judged,
    Outcome,
    Question,
    Scores,
    Step,
    Text,
    Trial,
    Turn,
    Usage,
    Verdict,
)
from fttt.verifiers.verifier import feedback_on

__all__ = [
    "AdapterRoom",
    "QuestionAttempt",
    "QuestionGroup",
    "QuestionSession",
    "partner",
    "random_verdict",
]

CONSTANT_ANSWER = "I do not know."
"""What every attempt says under ``constant``."""
_BITS = 32
_NOTHING = Usage()


class QuestionAttempt:
    """One trial in progress. Implements :class:`fttt.methods.Attempt`."""

    def __init__(self, replay: Replay, index: int, *, ends_with_verdict: bool) -> None:
        self._replay = replay
        self._index = index
        self._ends_with_verdict = ends_with_verdict
        self._judged: Judged | None = None
        self._loss: float | None = None
        self._divergence: float | None = None
        self._reset = False
        self.usage = _NOTHING
        self.ended = False

    @property
    def index(self) -> int:
        """The trial's number, from 0."""
        return self._index

    @property
    def last(self) -> bool:
        """Whether the budget grants no trial after this one, once this one is judged."""
        return not self._replay.ledger.grants()

    async def generate(
        self,
        *turns: Turn,
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write an answer to the question followed by ``turns``."""
        completion = await self._replay.generate(
            turns, before, adapter=_ours(adapter), temperature=temperature, trial=self._index
        )
        self.usage += completion.usage
        return completion

    async def search(self, beams: int) -> tuple[Completion, ...]:
        """Write ``beams`` answers by one beam search, the best one first."""
        found = await self._replay.search(beams, self._index)
        for completion in found:
            self.usage += completion.usage
        return found

    async def verify(self, completion: Completion) -> Verdict:
        """Judge the trial's answer; its record is written with this verdict."""
        if self._judged is not None:
            raise RuntimeError(
                f"the method judged a second answer in trial {self._index}; a trial is one answer "
                "that is judged, so ask the session for the next one"
            )
        verdict, usage = await self._replay.verify(completion)
        self.usage += usage
        self._judged = Judged(completion, verdict)
        self._replay.count(verdict)
        if self._ends_with_verdict:
            self.end()
        return verdict

    async def train(
        self,
        adapter: Adapter,
        examples: Sequence[Example],
        *,
        divergence: bool = False,
        bound: float | None = None,
    ) -> Step:
        """Take one optimizer step on the sum of the examples' losses."""
        own = _ours(adapter)
        assert own is not None
        step, usage = await self._replay.train(own, examples, divergence=divergence, bound=bound)
        self._loss, self._divergence, self._reset = step.loss, step.divergence, step.reset
        self.usage += usage
        return step

    def end(self) -> None:
        """Write the trial down, once."""
        if self.ended:
            return
        if self._judged is None:
            raise RuntimeError(f"the method ended trial {self._index} without a verdict")
        self.ended = True
        completion, verdict = self._judged.completion, self._judged.verdict
        extracted = verdict.extracted
        if self._replay.run.method.decided_by == "vote":
            extracted = self._replay.extract(completion)  # the normal form, which is voted on
        self._replay.record(
            Trial(
                question_id=self._replay.question.id,
                trial=self._index,
                generation=completion.generation,
                completion=completion.text,
                token_ids=completion.token_ids,
                finish_reason=completion.finish_reason,
                extracted=extracted,
                verdict=verdict.outcome,
                detail=verdict.detail,
                loss=self._loss,
                usage=self.usage.rounded(),
                score=verdict.score,
                tests_passed=verdict.tests_passed,
                tests_total=verdict.tests_total,
                divergence=self._divergence,
                reset=self._reset,
                failed=verdict.failed,
                thought=completion.thought,
                thought_tokens=completion.thought_tokens,
            )
        )


class QuestionGroup:
    """Trials that are handed out together. Implements :class:`fttt.methods.Group`."""

    def __init__(self, replay: Replay, trials: Sequence[QuestionAttempt], *, climbs: bool) -> None:
        self._replay = replay
        self._trials = list(trials)
        self._climbs = climbs

    @property
    def trials(self) -> tuple[Attempt, ...]:
        """The trials, without those that were not judged."""
        return tuple(self._trials)

    @property
    def last(self) -> bool:
        """Whether the budget grants no trial after these."""
        return not self._replay.ledger.grants()

    async def attempt(
        self,
        *turns: Turn,
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        temperature: float | None = None,
    ) -> tuple[Judged, ...]:
        """Write an answer for each trial at once, and judge them in their order."""
        written = await asyncio.gather(
            *(
                trial.generate(*turns, before=before, adapter=adapter, temperature=temperature)
                for trial in self._trials
            )
        )
        if self._climbs:
            pairs = zip(self._trials, written, strict=True)
            verdicts = await asyncio.gather(*(trial.verify(answer) for trial, answer in pairs))
            return tuple(map(Judged, written, verdicts))
        judged: list[Judged] = []
        for trial, answer in zip(self._trials, written, strict=True):
            judged.append(Judged(answer, await trial.verify(answer)))
            if judged[-1].verdict.correct:
                break
        for trial in self._trials[len(judged) :]:  # what they cost is the question's all the same
            self._trials[len(judged) - 1].usage += trial.usage
            self._replay.ledger.withdraw()
        del self._trials[len(judged) :]
        return tuple(judged)

    async def train(
        self,
        adapter: Adapter,
        examples: Sequence[Example],
        *,
        divergence: bool = False,
        bound: float | None = None,
    ) -> Step:
        """Take one step; it is the last trial's."""
        return await self._trials[-1].train(adapter, examples, divergence=divergence, bound=bound)

    def end(self) -> None:
        """Write the trials down."""
        for trial in self._trials:
            trial.end()


class AdapterRoom:
    """Places for adapters in one engine, handed to questions in the order of their asking.

    A question takes all the places that it will need at once, so that two questions never wait for
    each other's second place.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._free = places
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    async def take(self, count: int) -> None:
        """Wait for ``count`` places.

        Raises:
            RunError: there are never as many.
        """
        if count > self.places:
            raise RunError(
                f"The method opens {count} adapters at once and the engine has room for "
                f"{self.places}; lower --batch-size or --max-new-tokens."
            )
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, future))
        try:
            await handed_over(future, self.give)
        except asyncio.CancelledError:
            self._hand_out()  # to those behind
            raise

    def give(self, count: int) -> None:
        """Give ``count`` places back."""
        self._free += count
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            count, future = self._waiting[0]
            if not future.done():
                if count > self._free:
                    return
                self._free -= count
                future.set_result(count)
            self._waiting.popleft()


class QuestionSession:
    """One question's view of a run. Implements :class:`fttt.methods.Session`."""

    def __init__(self, question: Question, run: RunContext, room: AdapterRoom) -> None:
        self._question, self._run, self._room = question, run, room
        self._replay = Replay(question, run)
        self._open: list[QuestionAttempt | QuestionGroup] = []
        self._latest: QuestionAttempt | None = None
        self._rounds = 0
        self._adapters = 0

    @property
    def ledger(self) -> Ledger:
        """What the question has spent, and what it may."""
        return self._replay.ledger

    @property
    def budget(self) -> int:
        """The number of trials that the run grants each question."""
        return self.ledger.trials

    async def trials(self) -> AsyncIterator[Attempt]:
        """Trials until the budget is spent, or the question is solved."""
        ledger, together = self.ledger, self._run.method.together
        while True:
            if not together:
                self.end_trials()
                if ledger.solved:
                    return
            elif ledger.running and not (ledger.limited_by_trials and ledger.grants()):
                await self._replay.next_verdict()
                continue
            if not ledger.grants():
                return
            if not self._open:
                self._next_round()
            attempt = self._begin(ends_with_verdict=together)
            self._open.append(attempt)
            yield attempt

    async def groups(self, size: int, *, climb: bool = False) -> AsyncIterator[Group]:
        """Trials in groups of ``size`` until the budget is spent, or the question is solved."""
        ledger = self.ledger
        while True:
            self.end_trials()
            if ledger.solved and not climb:
                return
            members: list[QuestionAttempt] = []
            self._next_round()
            while len(members) < size and ledger.grants():
                members.append(self._begin(ends_with_verdict=False))
            if not members:
                return
            group = QuestionGroup(self._replay, members, climbs=climb)
            self._open.append(group)
            yield group

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[Adapter]:
        """Weights of this question's own, fresh and seeded, or those of all questions."""
        run, method = self._run, self._run.method
        if run.adapter_spec is None:
            raise TypeError("a method without LoRASettings asked for an adapter")
        if run.shared is not None:
            yield run.shared
            return
        if self._adapters == method.adapters:
            raise TypeError(
                f"the method {method.name!r} opened a further adapter beside {self._adapters}; "
                f"give the class adapters = {self._adapters + 1}"
            )
        if self._adapters == 0:
            await self._room.take(method.adapters)
        self._adapters += 1
        number = () if self._adapters == 1 else (self._adapters,)
        try:
            seed = derive_key("adapter", run.seed, self._question.id, *number)
            own = OwnAdapter(await run.engine.open_adapter(run.adapter_spec, seed), seed)
            try:
                yield own
            finally:
                own.slot.close()
        finally:
            self._adapters -= 1
            if self._adapters == 0:
                self._room.give(method.adapters)

    async def generate(
        self,
        *turns: Turn,
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Completion:
        """Write something that is no answer: it spends tokens but no trial."""
        completion = await self._replay.generate(
            turns,
            before,
            adapter=_ours(adapter),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        self._charge(completion.usage)
        return completion

    async def score(
        self,
        target: Turn,
        *,
        after: tuple[Turn, ...] = (),
        before: tuple[Text, ...] = (),
        adapter: Adapter | None = None,
        top_k: int = 0,
    ) -> Scores:
        """Log-probabilities of a target's tokens in a conversation."""
        example = Example(target, after, before)
        scores = await self._replay.score(example, _ours(adapter), top_k)
        self._charge(scores.usage)
        return scores

    async def evidence(self, completion: Completion, verdict: Verdict) -> Judged:
        """What is to be learned from a judged attempt: the two, or what the ablation puts there."""
        run = self._run
        if run.ablate is None:
            return Judged(completion, verdict)
        if run.ablate == "constant":
            return constant_attempt(run.chat.given(self._question.prompt, CONSTANT_ANSWER))
        if run.ablate == "random-verdict":
            key = derive_key("verdict", run.seed, self._question.id, completion.generation)
            return random_verdict(completion, verdict, key)
        other = partner(self._question, run.questions, derive_key("shuffle", run.seed))
        foreign = await self._replay.generate((), of=other)
        said, usage = await self._replay.verify(foreign, of=other)
        self._charge(foreign.usage + usage)
        return shuffled(foreign, said)

    def extract(self, completion: Completion) -> str | None:
        """The normalised answer in a completion."""
        return self._replay.extract(completion)

    def end_trials(self) -> None:
        """Write down the trials that have ended, and give their cache rows back."""
        for trial in self._open:
            trial.end()
        if self._open and self._run.shared is not None:
            self._run.shared.ended(self._question.id, self._replay.round)
        self._open.clear()
        self._replay.release()

    def leave(self) -> None:
        """End the question: its method has returned."""
        self.end_trials()
        if self._run.shared is not None:
            self._run.shared.left(self._question.id)

    def close(self) -> None:
        """Give everything back."""
        self._replay.close()

    def _next_round(self) -> None:
        self._replay.round, self._rounds = self._rounds, self._rounds + 1

    def _begin(self, *, ends_with_verdict: bool) -> QuestionAttempt:
        index = self.ledger.begin()
        self._latest = QuestionAttempt(self._replay, index, ends_with_verdict=ends_with_verdict)
        return self._latest

    def _charge(self, usage: Usage) -> None:
        """Count what the latest trial has needed beside its answer."""
        if self._latest is not None and not self._latest.ended:
            self._latest.usage += usage


def _ours(adapter: Adapter | None) -> OwnAdapter | SharedAdapter | None:
    assert adapter is None or isinstance(adapter, OwnAdapter | SharedAdapter)
    return adapter


def constant_attempt(answer: Completion) -> Judged:
    """The same wrong answer each time."""
    return Judged(answer, Verdict("incorrect", feedback=feedback_on("incorrect", None)))


def random_verdict(completion: Completion, verdict: Verdict, key: int) -> Judged:
    """The attempt and the verdict of a coin; a score becomes a uniform one from 0 to 1."""
    outcome: Outcome = "correct" if key & 1 else "incorrect"
    score = None if verdict.score is None else (key >> 1) % 2**_BITS / 2**_BITS
    said = replace(
        verdict,
        outcome=outcome,
        score=score,
        feedback=feedback_on(outcome, verdict.extracted),
        detail="",
        tests_passed=None,
        tests_total=None,
        failed=False,
    )
    return Judged(completion, said)


def partner(question: Question, questions: Sequence[Question], key: int) -> Question:
    """Another question of the run, a different one for each."""
    own = next(n for n, one in enumerate(questions) if one.id == question.id)
    return questions[(own + 1 + key % (len(questions) - 1)) % len(questions)]


def shuffled(foreign: Completion, verdict: Verdict) -> Judged:
    """An attempt at another question; where it is right there, it is still wrong here."""
    if verdict.correct:
        said = feedback_on("incorrect", verdict.extracted)
        verdict = replace(verdict, outcome="incorrect", feedback=said)
    return Judged(foreign, verdict)
