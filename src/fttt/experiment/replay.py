"""What is done for one question: generated, scored, verified, trained; or read from the journal.

``generate``, ``score`` and ``verify`` return what an earlier process has stored; ``train`` runs
again, so that a resumed run has the weights that it had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fttt.config import BudgetSection, SamplingSection
from fttt.engine.ops.sampling import derive_key
from fttt.engine.request import (
    AdapterSlot,
    AdapterSpec,
    BeamRequest,
    Engine,
    GenerateRequest,
    Generation,
    Lesson,
    ScoreRequest,
    Target,
    ThoughtBudget,
    TrainRequest,
)
from fttt.errors import FTTTError, RunError
from fttt.experiment.held_sequences import (
    Conversation,
    HeldSequences,
    Lookahead,
    OwnAdapter,
    TrialCounts,
)
from fttt.experiment.ledger import Ledger
from fttt.experiment.waves import SharedAdapter
from fttt.methods import Method
from fttt.models.chat import ChatFormat, is_user, without_oldest
from fttt.models.messages import MessageFormat, in_ids
from fttt.store import DivergenceEvent, GenerationEvent, Journal, ScoreEvent
from fttt.types import (
    Ablation,
    Completion,
    Example,
    Question,
    Scores,
    Step,
    Teacher,
    Text,
    Trial,
    Turn,
    Usage,
    Verdict,
)
from fttt.verifiers.verifier import Verifier, extract_answer, verify_completion

__all__ = ["Observer", "Replay", "RunContext"]

_DIVERGENCE_TOP_K = 20
"""Likeliest tokens of a place that are compared one by one; all others are taken as one."""


class Observer(Protocol):
    """Somebody who watches a run."""

    def trial_ended(self, trial: Trial, run: int = 0) -> None:
        """A trial ended in this process, of the run of this number among those asked together."""

    def question_ended(self, *, solved: bool, spared: int) -> None:
        """A question's method returned; ``spared`` trials of its budget were not needed."""


@dataclass(frozen=True)
class RunContext:
    """What the questions of one run share."""

    engine: Engine
    chat: ChatFormat | MessageFormat
    stop_ids: tuple[int, ...]
    verifier: Verifier
    journal: Journal
    observer: Observer
    seed: int
    sampling: SamplingSection
    budget: BudgetSection
    method: Method
    adapter_spec: AdapterSpec | None = None
    shared: SharedAdapter | None = None
    """The adapter of all questions, for a method that has one."""
    ablate: Ablation | None = None
    questions: tuple[Question, ...] = ()
    """All that the run asks."""
    number: int = 0
    """Of the run, among those that are asked together."""
    counts: TrialCounts | None = None
    """Its trials so far, in this process, where answers may be written ahead by them.

    That is on a GPU, whose idle lanes cost little. A CPU's do not, and a server may charge for its
    answers, of which those that it is asked for at once share a seed.
    """


MethodAdapter = OwnAdapter | SharedAdapter


class Replay:
    """One question's way through engine, verifier and journal, every cost of it in the ledger."""

    def __init__(self, question: Question, run: RunContext) -> None:
        self.question = question
        self.run = run
        self.ledger = Ledger(run.budget)
        self.round = 0
        """Number of the trial, or group of trials, in progress."""
        self._asked: tuple[int, ...] | None = None
        """The question in token ids, where nothing stands around it."""
        self._history = run.journal.history(question.id)
        self._recorded = run.journal.written(question.id)
        self._sequences = HeldSequences(run.engine, run.adapter_spec)
        self._generations = 0
        self._scorings = 0
        self._divergences = 0
        self._ahead = Lookahead(
            lambda: run.engine.idle, self._sequences.generate, run.counts or TrialCounts()
        )
        self._judged = asyncio.Event()

    async def generate(
        self,
        turns: tuple[Turn, ...],
        before: tuple[Text, ...] = (),
        *,
        adapter: MethodAdapter | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        trial: int | None = None,
        of: Question | None = None,
    ) -> Completion:
        """Generate, or take from the journal what an earlier process generated here.

        ``of`` is the question that is asked, where that is another one.
        """
        run = self.run
        number, self._generations = self._generations, self._generations + 1
        longest = run.sampling.max_new_tokens
        new_tokens = min(longest, max_new_tokens) if max_new_tokens else longest
        if (turns or before) and type(run.method).conversation is Method.conversation:
            raise TypeError(
                f"the method {run.method.name!r} continues a conversation without saying how "
                "long it may grow; give it a conversation() of its own"
            )
        prompt_ids, messages = self._prompt(turns, before, run.engine.max_length - new_tokens, of)
        own = adapter if isinstance(adapter, OwnAdapter) else None
        latest = max(0, self.ledger.handed_out - 1) if trial is None else trial

        def temperature_at(n: int) -> float:
            own = run.sampling.temperature_at(n, run.budget.trials)
            return own if temperature is None else temperature

        past = self._history.generations.get(number)
        if past is not None:
            self._check_replay(past, prompt_ids, trial)
            completion = past.completion
        else:
            if number not in self._ahead:  # what is written ahead follows from no fact
                await self._kept()
            slot = await self._slot(adapter)
            keep, thought = self._keeps(adapter, trial), self._thought_budget(new_tokens)
            awaited = trial is not None and self._sequences.learns_from(adapted=adapter is not None)

            def request(n: int, trial: int) -> GenerateRequest:
                return GenerateRequest(
                    prompt_ids=prompt_ids,
                    messages=messages,
                    template_args=run.chat.arguments,
                    max_new_tokens=new_tokens,
                    temperature=temperature_at(trial),
                    top_p=run.sampling.top_p,
                    top_k=run.sampling.top_k or 0,
                    min_p=run.sampling.min_p or 0.0,
                    repetition_penalty=run.sampling.repetition_penalty or 1.0,
                    noise_key=derive_key("generation", run.seed, self.question.id, n),
                    stop_ids=run.stop_ids,
                    adapter=slot,
                    keep=keep,
                    thought=thought,
                    awaited=awaited,
                )

            if run.method.fresh and number == trial and self.ledger.limited_by_trials:
                last = self.ledger.trials - 1
                generation = await self._ahead.take(number, lambda n: request(n, n), last)
            else:
                generation = await self._sequences.generate(request(number, latest))
            if generation.kept is not None and own is not None:
                self._sequences.hold(generation.kept, own)
            completion = self._completion(number, len(prompt_ids), generation)
            run.journal.generation(GenerationEvent(self.question.id, trial, completion))
        self.ledger.spend(completion.usage)
        return completion

    async def search(self, beams: int, trial: int) -> tuple[Completion, ...]:
        """Search, or take from the journal what an earlier process found.

        The journal must hold all beams: those of two searches may differ in rounding.
        """
        run, first = self.run, self._generations
        self._generations += beams
        if not run.method.searches:
            raise TypeError(
                f"the method {run.method.name!r} searches without saying so; "
                "give the class searches = True"
            )
        new_tokens = run.sampling.max_new_tokens
        prompt_ids = self._prompt_ids((), (), run.engine.max_length - new_tokens)
        past = [self._history.generations.get(first + n) for n in range(beams)]
        events = [event for event in past if event is not None]
        if len(events) == beams:
            for n, event in enumerate(events):
                self._check_replay(event, prompt_ids, trial + n)
        else:
            await self._kept()
            found = await run.engine.beam(BeamRequest(prompt_ids, beams, new_tokens, run.stop_ids))
            events = [
                GenerationEvent(
                    self.question.id,
                    trial + n,
                    self._completion(first + n, len(prompt_ids), beam, of=beams),
                )
                for n, beam in enumerate(found)
            ]
            for event in events:
                run.journal.generation(event)
        for event in events:
            self.ledger.spend(event.completion.usage)
        return tuple(event.completion for event in events)

    async def score(
        self, example: Example, adapter: MethodAdapter | None = None, top_k: int = 0
    ) -> Scores:
        """Score an example's target, or take its scores from the journal."""
        number, self._scorings = self._scorings, self._scorings + 1
        scores = self._history.scores.get(number)
        if scores is None:
            scores = await self._scores(example, adapter, top_k)
            self.run.journal.score(ScoreEvent(self.question.id, number, scores))
        self.ledger.spend(scores.usage)
        return scores

    async def verify(
        self, completion: Completion, of: Question | None = None
    ) -> tuple[Verdict, Usage]:
        """Verify, as an answer to another question ``of``, or take the verdict from the journal."""
        past = self._history.verdicts.get(completion.generation)
        if past is None:
            start = time.perf_counter()
            try:
                verdict = await verify_completion(
                    self.run.verifier,
                    of or self.question,
                    completion.text,
                    cut=completion.finish_reason == "length",
                    thought=completion.thought,
                )
            except FTTTError:
                raise
            except Exception as error:  # a user's own verifier is allowed to be wrong
                detail = f"the verifier raised {type(error).__name__}: {error}"
                verdict = Verdict("incorrect", None, detail, failed=True)
            verdict = verdict.reaching(self.run.budget.until)
            past = replace(verdict, seconds=time.perf_counter() - start)
            self.run.journal.verdict(self.question.id, completion.generation, past)
        usage = Usage(verifier_calls=1, verifier_tokens=past.tokens, seconds=past.seconds)
        self.ledger.spend(usage)
        return past, usage

    async def train(
        self,
        adapter: MethodAdapter,
        examples: Sequence[Example],
        *,
        divergence: bool = False,
        bound: float | None = None,
    ) -> tuple[Step, Usage]:
        """Take one optimizer step on the sum of the examples' losses, or hand them in for one."""
        if bound is not None and isinstance(adapter, SharedAdapter):
            raise TypeError("an adapter of all questions has no bound that one of them could pass")
        examples = [example for example in examples if _counts(example)]
        if not examples:
            return Step(None), Usage()
        lessons = tuple(self._lesson(example, adapter) for example in examples)
        if isinstance(adapter, SharedAdapter):
            adapter.hand_in(self.question.id, self.round, lessons)
            tokens = sum(w != 0 for x in lessons for t in x.targets for w in t.weights)
            step, usage = Step(None, tokens), Usage(trained_tokens=tokens)
        else:
            await self._kept()
            trained = await self.run.engine.train(TrainRequest(adapter.slot, lessons))
            adapter.steps += 1
            step = Step(trained.loss, trained.trained_tokens)
            usage = Usage(trained_tokens=trained.trained_tokens, seconds=trained.seconds)
        self.ledger.spend(usage)
        if divergence or bound is not None:
            far, cost = await self._divergence(examples, adapter)
            self.ledger.spend(cost)
            step, usage = replace(step, divergence=far), usage + cost
            if bound is not None and not far <= bound:
                assert isinstance(adapter, OwnAdapter)
                await self._reset(adapter)
                step = replace(step, reset=True)
        return step, usage

    async def _reset(self, adapter: OwnAdapter) -> None:
        """Give an adapter fresh weights and a fresh optimizer."""
        assert self.run.adapter_spec is not None
        adapter.slot.close()
        adapter.slot = await self.run.engine.open_adapter(self.run.adapter_spec, adapter.seed)
        adapter.steps += 1

    def count(self, verdict: Verdict) -> None:
        """Count a trial's verdict and wake whoever waits for room in the budget."""
        self.ledger.judge(verdict)
        if self.run.counts is not None:
            self.run.counts.judge(verdict)
        self._judged.set()

    async def next_verdict(self) -> None:
        """Wait until one more trial is counted."""
        self._judged.clear()
        await self._judged.wait()

    def extract(self, completion: Completion) -> str | None:
        """The normalised answer in a completion."""
        return extract_answer(
            self.run.verifier,
            self.question,
            completion.text,
            cut=completion.finish_reason == "length",
            thought=completion.thought,
        )

    def record(self, trial: Trial) -> None:
        """Write a trial down, unless an earlier process has."""
        if trial.trial not in self._recorded:
            self.run.journal.trial(trial)
            self.run.observer.trial_ended(trial, self.run.number)

    def release(self) -> None:
        """Give back the cache rows that were held for the train steps of trials."""
        self._sequences.release()

    def close(self) -> None:
        """Give everything back."""
        self._ahead.close()
        self._sequences.close()

    async def _kept(self) -> None:
        """Wait until what the next step follows from is on disk."""
        await self.run.journal.kept(self.question.id)

    async def _slot(self, adapter: MethodAdapter | None) -> AdapterSlot | None:
        if isinstance(adapter, SharedAdapter):
            return await adapter.weights(self.round)
        return None if adapter is None else adapter.slot

    def _keeps(self, adapter: MethodAdapter | None, trial: int | None) -> bool:
        """Whether a train step, or another generation of the base model, may follow."""
        if isinstance(adapter, SharedAdapter):
            return False  # the step is taken under other weights
        if adapter is not None:
            return trial is not None and self._sequences.learns_from(adapted=True)
        method = self.run.method
        # what trials that ask the same have in common is the prompt, which the engine holds itself
        return self.ledger.trials > 1 and not (method.together or method.fresh)

    def _thought_budget(self, new_tokens: int) -> ThoughtBudget | None:
        """The run's budget of thinking; of a shorter text, a critique, say, half at most."""
        tokens = self.run.sampling.think_tokens
        if tokens is None:
            return None
        opening, mark, closing = in_ids(self.run.chat).thought_ids()
        if new_tokens < self.run.sampling.max_new_tokens:
            tokens = min(tokens, new_tokens // 2, new_tokens - len(closing) - 1)
            if tokens < 1:
                return None  # too short for either
        return ThoughtBudget(tokens, opening, mark, closing)

    def _completion(
        self, number: int, prompt_tokens: int, generation: Generation, of: int = 1
    ) -> Completion:
        """What the engine wrote; ``of`` so many that were written at once, each has a share."""
        ids, text, thought = generation.token_ids, generation.text, generation.thought
        usage = Usage(
            prompt_tokens=generation.prompt_tokens or prompt_tokens,
            generated_tokens=generation.generated_tokens or len(ids),
            generations=1,
            seconds=generation.seconds / of,
        )
        if text is not None:
            return Completion(text, ids, generation.finish_reason, number, usage, thought=thought)
        return in_ids(self.run.chat).completion(ids, generation.finish_reason, number, usage)

    def _prompt(
        self, turns: tuple[Turn, ...], before: tuple[Text, ...], room: int, of: Question | None
    ) -> tuple[tuple[int, ...], tuple[Text, ...]]:
        """The conversation in token ids, or in messages where a server has the template."""
        chat, question = self.run.chat, of or self.question
        if isinstance(chat, ChatFormat):
            return self._prompt_ids(turns, before, room, of=of), ()
        return (), chat.conversation(question.prompt, turns, before, room)

    def _prompt_ids(
        self,
        turns: tuple[Turn, ...],
        before: tuple[Text, ...],
        room: int,
        *,
        header: bool = True,
        of: Question | None = None,
    ) -> tuple[int, ...]:
        """The conversation in token ids; its oldest turns are left out until it fits."""
        chat, question = in_ids(self.run.chat), of or self.question
        bare = not turns and not before and of is None
        if bare and self._asked is not None:
            return self._asked

        def ids() -> tuple[int, ...]:
            return chat.conversation_ids(
                question.prompt, turns, question.rendered, before=before, header=header
            )

        found = ids()
        while len(found) > room and (fewer := without_oldest(turns)) is not None:
            turns = fewer
            found = ids()
        if bare:
            self._asked = found
        return found

    def _conversation(self, example: Example) -> Conversation:
        """An example in token ids."""
        chat, target, after = in_ids(self.run.chat), example.target, example.after
        room, prompt = self.run.engine.max_length, self.question.prompt
        answers = [n for n, turn in enumerate(after) if not is_user(turn)]
        last = answers[-1] + 1 if answers else 0
        answered = 0 < last == len(after)
        if isinstance(target, Text) and (target.role == "system" or is_user(target) != answered):
            raise ValueError(
                "the target of an example is an answer after the question or a user text, or a "
                f"user text after an answer; this one is a {target.role} text after {after!r}"
            )
        before_ids = self._prompt_ids(after, example.before, room, header=not answered)
        if isinstance(target, Completion):
            target_ids = target.token_ids
        elif target.role == "assistant":
            target_ids = chat.answer_ids(prompt, target.content)
        else:
            end = after[-1]
            answer = end if isinstance(end, Completion) else chat.given(prompt, end.content)
            target_ids = chat.turn_ids(target.content, answer, answer=False)
        fixed = len(before_ids)
        if 0 < last < len(after):  # what the user says after the last answer has a gradient
            fixed = len(self._prompt_ids(after[:last], example.before, room, header=False))
        return Conversation(before_ids, target_ids, fixed)

    def _lesson(self, example: Example, adapter: MethodAdapter) -> Lesson:
        """What the engine is asked to learn from an example."""
        found = self._conversation(example)
        whole, fixed = found.token_ids, found.fixed
        if example.whole:
            target = Target(whole[1:], _mean_weights(example.weight, len(whole) - 1), after=1)
        else:
            quiet = len(found.before_ids) - fixed
            target = Target(
                whole[fixed:],
                (0.0,) * quiet + _mean_weights(example.weight, len(found.target_ids)),
                after=fixed,
                teacher=_padded(example.teacher, quiet),
                form=example.form,
            )
        own = adapter if isinstance(adapter, OwnAdapter) else None
        kept = self._sequences.find(whole, fixed, own) if own is not None else None
        if not example.whole and fixed == len(whole[:fixed] if kept is None else kept.token_ids):
            target = replace(target, after=None)
        return Lesson(whole[:fixed] if kept is None else kept, (target,))

    async def _scores(self, example: Example, adapter: MethodAdapter | None, top_k: int) -> Scores:
        found = self._conversation(example)
        own = adapter if isinstance(adapter, OwnAdapter) else None
        kept = self._sequences.find(found.token_ids, found.fixed, own) if own else None
        await self._kept()
        scored = await self.run.engine.score(
            ScoreRequest(
                context=found.before_ids if kept is None else kept,
                token_ids=found.target_ids if kept is None else found.token_ids[found.fixed :],
                adapter=await self._slot(adapter),
                top_k=top_k,
                after=None if kept is None else found.fixed,
            )
        )
        tokens = len(found.target_ids)
        return Scores(
            token_ids=found.target_ids,
            logprobs=scored.logprobs[-tokens:],
            top_ids=scored.top_ids[-tokens:],
            top_logprobs=scored.top_logprobs[-tokens:],
            usage=Usage(scored_tokens=tokens, seconds=scored.seconds),
        )

    async def _divergence(
        self, examples: Sequence[Example], adapter: MethodAdapter
    ) -> tuple[float, Usage]:
        """Mean KL divergence of the adapter's predictions from the base model's at the targets.

        Taken from the journal where an earlier process measured it, so that what a method concludes
        from it is the same again.
        """
        number, self._divergences = self._divergences, self._divergences + 1
        past = self._history.divergences.get(number)
        if past is not None:
            return past.divergence, past.usage
        targets: dict[Example, list[Example]] = {}  # what several examples share is measured once
        for example in examples:
            target = Example(example.target, example.after, example.before)
            targets.setdefault(target, []).append(example)
        both = await asyncio.gather(
            *(
                self._scores(target, which, _DIVERGENCE_TOP_K)
                for target in targets
                for which in (adapter, None)
            )
        )
        places = [
            now.divergence(base, place)
            for own, now, base in zip(targets.values(), both[::2], both[1::2], strict=True)
            for place in range(len(now.token_ids))
            if any(not isinstance(x.weight, tuple) or x.weight[place] for x in own)
        ]
        event = DivergenceEvent(
            self.question.id,
            number,
            sum(places) / max(1, len(places)),
            sum((scores.usage for scores in both), Usage()),
        )
        self.run.journal.divergence(event)
        return event.divergence, event.usage

    def _check_replay(
        self, past: GenerationEvent, prompt_ids: tuple[int, ...], trial: int | None
    ) -> None:
        tokens = past.completion.usage.prompt_tokens
        # of a conversation in messages, only the server knows how many tokens it has
        if (past.trial, tokens) != (trial, len(prompt_ids) or tokens):
            raise RunError(
                f"Generation {past.completion.generation} of the question {self.question.id!r} was "
                "made by another version or from other data, so the run cannot be resumed from it; "
                "start a new run."
            )


def _counts(example: Example) -> bool:
    """Whether anything of an example carries a loss."""
    return any(example.weight) if isinstance(example.weight, tuple) else bool(example.weight)


def _mean_weights(weight: float | tuple[float, ...], tokens: int) -> tuple[float, ...]:
    """Each token's part of a mean over the target's tokens, times its weight."""
    each = weight if isinstance(weight, tuple) else (weight,) * tokens
    return tuple(one / tokens for one in each)


def _padded(teacher: Teacher | None, quiet: int) -> Teacher | None:
    """The teacher of a target behind ``quiet`` tokens that carry no loss."""
    if teacher is None or not quiet:
        return teacher
    none: tuple[tuple[()], ...] = ((),) * quiet
    return Teacher(none + teacher.token_ids, none + teacher.weights, (0.0,) * quiet + teacher.tail)
