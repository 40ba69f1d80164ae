"""What is done for one question: written, judged, learned; or taken from what was done before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from fttt.engine.noise import derive_key
from fttt.engine.request import (
    AdapterSlot,
    BeamRequest,
    GenerateRequest,
    Generation,
    Lesson,
    Target,
    TrainRequest,
)
from fttt.errors import FTTTError, RunError
from fttt.experiment.ahead import Ahead
from fttt.experiment.bench import Bench
from fttt.experiment.ledger import Ledger
from fttt.experiment.written import Written, WrittenSequences
from fttt.methods import Adapter, Method
from fttt.store import GenerationEvent
from fttt.types import Completion, Feedback, Question, Trial, Turn, Usage, Verdict
from fttt.verifiers.verifier import extract_answer, verify_completion

__all__ = ["QuestionWork"]


class QuestionWork:
    """One question's way through engine, verifier and journal, every cost of it in the ledger."""

    def __init__(self, question: Question, bench: Bench) -> None:
        self.question = question
        self.bench = bench
        self.ledger = Ledger(bench.budget)
        self._history = bench.journal.history(question.id)
        self._recorded = bench.journal.written(question.id)
        self._sequences = WrittenSequences(bench.engine, bench.adapter_spec)
        self._generations = 0
        self._ahead = Ahead(lambda: bench.engine.idle, self._sequences.generate)
        self._judged = asyncio.Event()

    async def write(
        self,
        turns: tuple[Turn, ...],
        *,
        adapter: Adapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        trial: int | None = None,
    ) -> Completion:
        """Generate, or take from the journal what an earlier process generated here."""
        bench = self.bench
        number, self._generations = self._generations, self._generations + 1
        longest = bench.sampling.max_new_tokens
        new_tokens = min(longest, max_new_tokens) if max_new_tokens else longest
        if turns and type(bench.method).conversation is Method.conversation:
            raise TypeError(
                f"the method {bench.method.name!r} continues a conversation without saying how "
                "long it may grow; give it a conversation() of its own"
            )
        prompt_ids = self._prompt_ids(turns, new_tokens)
        past = self._history.generations.get(number)
        if past is not None:
            self._check_replay(past, prompt_ids, trial)
            kept, completion = None, past.completion
        else:
            first = GenerateRequest(
                prompt_ids=prompt_ids,
                max_new_tokens=new_tokens,
                temperature=bench.sampling.temperature if temperature is None else temperature,
                top_p=bench.sampling.top_p,
                top_k=bench.sampling.top_k or 0,
                min_p=bench.sampling.min_p or 0.0,
                repetition_penalty=bench.sampling.repetition_penalty or 1.0,
                stop_ids=bench.stop_ids,
                adapter=None if adapter is None else cast(AdapterSlot, adapter),
                keep=self._keeps(adapter, trial),
                awaited=trial is not None
                and self._sequences.learns_from(adapted=adapter is not None),
            )

            def request(n: int) -> GenerateRequest:
                key = derive_key("generation", bench.seed, self.question.id, n)
                return replace(first, noise_key=key)

            if bench.method.fresh and number == trial and self.ledger.limited_by_trials:
                generation = await self._ahead.take(number, request, self.ledger.trials - 1)
            else:
                generation = await self._sequences.generate(request(number))
            kept = generation.kept
            completion = self._completion(number, len(prompt_ids), generation)
            bench.journal.generation(GenerationEvent(self.question.id, trial, completion))
        self._sequences.add(number, Written(prompt_ids, completion, kept))
        self.ledger.spend(completion.usage)
        return completion

    def _keeps(self, adapter: Adapter | None, trial: int | None) -> bool:
        """Whether a train step, or another generation of the base model, may follow."""
        if adapter is not None:
            return trial is not None and self._sequences.learns_from(adapted=True)
        return self.ledger.trials > 1 and not self.bench.method.together

    async def search(self, beams: int, trial: int) -> tuple[Completion, ...]:
        """Search, or take from the journal what an earlier process found.

        The journal must hold all beams: those of two searches may differ in rounding.
        """
        bench, first = self.bench, self._generations
        self._generations += beams
        if not bench.method.searches:
            raise TypeError(
                f"the method {bench.method.name!r} searches without saying so; "
                "give the class searches = True"
            )
        new_tokens = bench.sampling.max_new_tokens
        prompt_ids = self._prompt_ids((), new_tokens)
        past = [self._history.generations.get(first + n) for n in range(beams)]
        events = [event for event in past if event is not None]
        if len(events) == beams:
            for n, event in enumerate(events):
                self._check_replay(event, prompt_ids, trial + n)
        else:
            found = await bench.engine.beam(
                BeamRequest(prompt_ids, beams, new_tokens, bench.stop_ids)
            )
            events = [
                GenerationEvent(
                    self.question.id,
                    trial + n,
                    self._completion(first + n, len(prompt_ids), beam, of=beams),
                )
                for n, beam in enumerate(found)
            ]
            for event in events:
                bench.journal.generation(event)
        for event in events:
            completion = event.completion
            self._sequences.add(completion.generation, Written(prompt_ids, completion))
            self.ledger.spend(completion.usage)
        return tuple(event.completion for event in events)

    async def judge(self, completion: Completion) -> tuple[Verdict, Usage]:
        """Verify, or take the verdict from the journal."""
        past = self._history.verdicts.get(completion.generation)
        if past is None:
            start = time.perf_counter()
            try:
                verdict = await verify_completion(
                    self.bench.verifier,
                    self.question,
                    completion.text,
                    cut=completion.finish_reason == "length",
                )
            except FTTTError:
                raise
            except Exception as error:  # a user's own verifier is allowed to be wrong
                detail = f"the verifier raised {type(error).__name__}: {error}"
                verdict = Verdict("incorrect", None, detail)
            past = replace(verdict, seconds=time.perf_counter() - start)
            self.bench.journal.verdict(self.question.id, completion.generation, past)
        usage = Usage(verifier_calls=1, seconds=past.seconds)
        self.ledger.spend(usage)
        return past, usage

    async def learn(
        self, adapter: Adapter, after: Completion, on: Sequence[Feedback]
    ) -> tuple[float, Usage]:
        """Take one step; return the loss before it and what the step cost."""
        sequence = self._sequences[after.generation]
        targets = tuple(self._target(sequence, feedback) for feedback in on)
        trained = await self.bench.engine.train(
            TrainRequest(
                cast(AdapterSlot, adapter),
                (Lesson(self._sequences.context(after.generation), targets),),
            )
        )
        usage = Usage(trained_tokens=trained.trained_tokens, seconds=trained.seconds)
        self.ledger.spend(usage)
        return trained.loss, usage

    def count(self, verdict: Verdict) -> None:
        """Count a trial's verdict and wake whoever waits for room in the budget."""
        self.ledger.judge(verdict)
        self._judged.set()

    async def next_verdict(self) -> None:
        """Wait until one more trial is counted."""
        self._judged.clear()
        await self._judged.wait()

    def extract(self, completion: Completion) -> str | None:
        """The normalised answer in a completion."""
        cut = completion.finish_reason == "length"
        return extract_answer(self.bench.verifier, self.question, completion.text, cut=cut)

    def record(self, trial: Trial) -> None:
        """Write down a trial, unless an earlier process has."""
        if trial.trial not in self._recorded:
            self.bench.journal.trial(trial)
            self.bench.observer.trial_ended(trial)

    def release(self) -> None:
        """Let go of the keys and values that were held for the train steps of trials."""
        self._sequences.release()

    def close(self) -> None:
        """Let everything go."""
        self._ahead.close()
        self._sequences.close()

    def _completion(
        self, number: int, prompt_tokens: int, generation: Generation, of: int = 1
    ) -> Completion:
        """What the engine wrote; ``of`` so many that were written at once, each has a share."""
        return Completion(
            text=self.bench.chat.decode(generation.token_ids),
            token_ids=generation.token_ids,
            finish_reason=generation.finish_reason,
            generation=number,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                generated_tokens=len(generation.token_ids),
                generations=1,
                seconds=generation.seconds / of,
            ),
        )

    def _prompt_ids(self, turns: tuple[Turn, ...], new_tokens: int) -> tuple[int, ...]:
        """The conversation in token ids; its oldest turns are left out until it fits."""
        chat, room = self.bench.chat, self.bench.engine.max_length - new_tokens
        question = self.question
        ids = chat.conversation_ids(question.prompt, turns, question.rendered)
        while len(ids) > room and len(turns) >= 2:
            turns = turns[2:]
            ids = chat.conversation_ids(question.prompt, turns, question.rendered)
        return ids

    def _target(self, sequence: Written, feedback: Feedback) -> Target:
        """The tokens that carry a feedback's loss, in mean cross-entropy times its weight."""
        if feedback.on == "attempt":
            ids = sequence.completion.token_ids
            return Target(
                ids, _mean_weights(0, len(ids), feedback.weight), len(sequence.prompt_ids)
            )
        ids, quiet, before = (), 0, sequence.completion
        after: Completion | None = before
        for number, turn in enumerate(feedback.turns, 1):
            quiet = len(ids)
            if isinstance(turn, Completion):
                ids, after = ids + turn.token_ids, turn
            else:  # what is learned last ends with its own turn, not with the next one's header
                answer = number < len(feedback.turns)
                ids, after = ids + self.bench.chat.turn_ids(turn, after, answer=answer), None
        if feedback.on == "conversation":
            ids = (*sequence.token_ids, *ids)[1:]
            return Target(ids, _mean_weights(0, len(ids), feedback.weight), after=1)
        return Target(ids, _mean_weights(quiet, len(ids), feedback.weight))

    def _check_replay(
        self, past: GenerationEvent, prompt_ids: tuple[int, ...], trial: int | None
    ) -> None:
        found = (past.trial, past.completion.usage.prompt_tokens)
        if found != (trial, len(prompt_ids)):
            raise RunError(
                f"Generation {past.completion.generation} of the question {self.question.id!r} was "
                "made by another version or from other data, so the run cannot go on from it; "
                "start a new run."
            )


def _mean_weights(quiet: int, total: int, weight: float) -> tuple[float, ...]:
    """Zero for the first ``quiet`` tokens; the others share ``weight`` evenly."""
    loud = total - quiet
    return (0.0,) * quiet + (weight / loud,) * loud
