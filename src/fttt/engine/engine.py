"""The engine: gathers the requests of many questions into passes over one model.

Prefill, decode and train passes interleave. A finished sequence frees its lane at once for the
next waiting request; its row stays where the request asked to keep it, for a train step or the next
turn of its conversation.

Sequences take pages of the cache as they grow. Where there are none left, kept sequences are
evicted; where none is kept, the sequence that was asked for last is paused: its pages are free, and
it is resumed, before any new one begins, by a prefill pass over all that it has. Its draws are
named by their places, so that they are the same. The oldest is never paused for another, and the
cache has room for the longest sequence, so that all of them end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

from fttt.engine.adapters import bank_of
from fttt.engine.adapters.bank import Learner, Slot, check_gradients, handed_over
from fttt.engine.attention import KERNELS
from fttt.engine.batch import Segment, sent
from fttt.engine.beam import BeamJob, BeamSearcher
from fttt.engine.cache import KVCache
from fttt.engine.decoder import CPUDecoder, CUDADecoder, Decoder, draw
from fttt.engine.families import replacements_for
from fttt.engine.memory_plan import plan_memory, taking_memory
from fttt.engine.ops import current_device
from fttt.engine.patience import Patience
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
from fttt.engine.scheduler import (
    GenerateJob,
    Job,
    LessonQueue,
    PrefillQueue,
    ScoreJob,
    ScoreQueue,
    TrainJob,
    ahead,
    check_fits,
    check_length,
    close_kept,
    spends_thought,
    written,
)
from fttt.engine.selfcheck import check_outputs
from fttt.engine.sequences import Prefiller, Scorer, in_order
from fttt.engine.states import Mixers
from fttt.engine.train_step import check_targets
from fttt.errors import RunError, UsageError
from fttt.models.loader import LoadedModel
from fttt.types import FinishReason

__all__ = ["BatchedEngine"]

CYCLES = 8
"""Of the event loop, at most, while steps run on a GPU: from an answer to its next request a
question takes several. Then the GPU is waited for, which leaves the interpreter to other threads.
"""


class BatchedEngine:
    """The :class:`fttt.engine.request.Engine` of one loaded model.

    Results do not depend on who shares a pass, beyond floating-point rounding.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_length: int,
        batch_size: int | None = None,
        concurrency: int = 1,
        adapter: AdapterSpec | None = None,
        beams: int = 0,
        adapters: int | None = None,
        least_adapters: int = 1,
        memory_share: float | None = None,
    ) -> None:
        """Plan the memory and take it.

        Args:
            loaded: the model; its layers' attention is taken over until the engine is closed.
            max_length: tokens of the longest sequence, prompt and completion.
            batch_size: sequences that run at once; ``None`` takes what fits.
            concurrency: questions that are in progress at once.
            adapter: per-question weights, where methods train.
            beams: the widest beam search, where methods search.
            adapters: how many are wanted open at once; ``None``: one a question.
            least_adapters: how many of them there must be, however small the memory is.
            memory_share: of the device's memory, what may be held; ``None``: all that is free.

        Raises:
            UsageError: the plan does not fit the memory or the model's context, or the engine
                cannot reproduce the model's outputs, or learn through its layers.
            RunError: the memory that was planned with is not there.
        """
        check_length(loaded, max_length, beams)
        self._device = torch.device(loaded.device)
        with current_device(loaded.device), taking_memory(self._device), ExitStack() as undo:
            check_outputs(loaded.model, loaded.name)
            if adapter is not None:
                check_gradients(loaded.model)
            self.plan = plan_memory(
                loaded, max_length=max_length, batch_size=batch_size, concurrency=concurrency,
                adapter=adapter, beams=beams, adapters=adapters, least_adapters=least_adapters,
                share=memory_share,
            )  # fmt: skip
            self.max_length = max_length
            self.reset_counters()
            self._model: Any = loaded.model
            mixers = Mixers(self._model)
            self._replacements = replacements_for(self._model, self._device, mixers)
            self._replacements.enable()
            undo.callback(self._replacements.disable)
            self._cache = KVCache.of(
                self._model, rows=self.plan.rows, capacity=self.plan.capacity,
                page=self.plan.page, pages=self.plan.pages, prefix=loaded.prefix,
                hidden=self.plan.hidden, mixers=mixers,
            )  # fmt: skip
            self._bank = (
                bank_of(adapter)(self._model, adapter, self.plan.slots, self._device)
                if adapter
                else None
            )
            if self._bank is not None:
                undo.callback(self._bank.detach)
            parts = self._model, self._cache, self._bank
            self._decoder: Decoder = CPUDecoder(*parts)
            if self._device.type == "cuda":
                self._decoder = CUDADecoder(*parts, self.plan.batch_size)
            self._waiting = PrefillQueue()
            if self._bank is not None:
                self._waiting.version = self._bank.version
            self._running: list[GenerateJob] = []
            self._apart: list[GenerateJob] = []
            """Running jobs that take their next token in a pass."""
            self._lessons = LessonQueue()
            self._scores = ScoreQueue()
            self._prefiller = Prefiller(*parts, self.plan.prefill_tokens)
            self._scorer = Scorer(*parts, self.plan.prefill_tokens)
            self._searcher = BeamSearcher(self._model, self._cache, self.plan.search_lanes)
            self._learner: Learner | None = None
            if self._bank is not None:
                self._learner = self._bank.learner(self._cache, self.plan, self._prefiller.fill)
            self._patience = {kind: Patience() for kind in ("prefill", "train", "beam", "score")}
            self._loop_task: asyncio.Task[None] | None = None
            self._looked = 0.0
            """When decode steps were last collected, or begun where none were running."""
            self._wake = asyncio.Event()
            self._failure: BaseException | None = None
            undo.pop_all()

    @property
    def adapters(self) -> int:
        """How many adapters can be open at once."""
        return self.plan.slots

    @property
    def idle(self) -> int:
        """Sequences that could run beside those that run or wait."""
        running = len(self._running) + len(self._apart)
        return max(0, self.plan.batch_size - running - len(self._waiting))

    @property
    def pauses(self) -> int:
        """How often a running sequence was paused, since the cache had no page for it."""
        return self._waiting.pauses

    def reset_counters(self) -> None:
        """Start counting tokens, decode steps and busy seconds anew."""
        self.generated_tokens = 0
        self.trained_tokens = 0
        self.scored_tokens = 0
        self.decode_steps = 0
        kinds = ("prefill", "decode", "train", "beam", "score")
        self.busy: dict[str, float] = dict.fromkeys(kinds, 0.0)

    async def generate(self, request: GenerateRequest) -> Generation:
        """Continue one sequence.

        Raises:
            UsageError: it cannot fit a row.
            RunError: the device ran out of memory, the model's outputs became NaN, or the
                engine was closed.
        """
        check_fits(request, self.max_length)
        if request.adapter is not None and self._bank is not None:
            self._bank.index_of(request.adapter)
        self._start()
        job: GenerateJob = Job(request, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        return await handed_over(job.answer, close_kept)

    async def beam(self, request: BeamRequest) -> tuple[Generation, ...]:
        """Search for the best continuations of one prompt; they come best first.

        Raises:
            UsageError: a beam cannot fit a row, or there are more than the engine was planned for.
            RunError: the device ran out of memory, or the engine was closed.
        """
        check_fits(request, self.max_length)
        if not 1 <= request.beams <= self.plan.search_lanes:
            raise UsageError(
                f"This engine searches with 1 to {self.plan.search_lanes} beams, not "
                f"{request.beams}; plan it with beams={request.beams}."
            )
        self._start()
        job: BeamJob = Job(request, asyncio.get_running_loop().create_future())
        self._searcher.waiting.append(job)
        return await job.answer

    async def train(self, request: TrainRequest) -> Trained:
        """Take one step of one adapter.

        Raises:
            UsageError: adapters of this kind cannot learn from such a request.
            RunError: the device ran out of memory, or the engine was closed.
        """
        self._start()
        if self._learner is None or self._bank is None:
            raise RunError("This engine was built without adapters, so it cannot train.")
        self._bank.index_of(request.adapter)
        check_targets(request, self.max_length, self.plan.train_longest)
        self._learner.check(request)
        job: TrainJob = Job(request, asyncio.get_running_loop().create_future())
        self._lessons.append(job)
        return await job.answer

    async def score(self, request: ScoreRequest) -> Scored:
        """Take the log-probabilities of given tokens, and of the likeliest at their places.

        Raises:
            UsageError: the sequence is longer than what the engine was planned for.
            RunError: the device ran out of memory, or the engine was closed.
        """
        self._scorer.check(request)
        self._start()
        job: ScoreJob = Job(request, asyncio.get_running_loop().create_future())
        self._scores.append(job)
        return await job.answer

    async def open_adapter(
        self, spec: AdapterSpec, seed: int, copy_of: AdapterSlot | None = None
    ) -> Slot:
        """Wait for a free slot and make it fresh, or as ``copy_of`` is then.

        What is drawn is drawn from ``seed``.

        Raises:
            RunError: the engine was closed, or was built for other adapters, or ``copy_of`` is
                closed or of another engine.
        """
        self._start()
        if self._bank is None or spec != self._bank.spec:
            raise RunError(f"This engine was not built for adapters of {spec}.")
        return await self._bank.open(seed, copy_of)

    async def close(self) -> None:
        """Stop, fail whatever is still waiting, and give the model its own attention back."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None
        self._fail(RunError("The engine was closed while a request was waiting."))
        self._replacements.disable()
        if self._bank is not None:
            self._bank.detach()

    def _start(self) -> None:
        """Wake the loop for a request to come; a failed engine takes none."""
        if self._failure is not None:
            raise self._failure
        self._wake.set()
        if self._loop_task is None:
            self._loop_task = asyncio.get_running_loop().create_task(self._loop())

    async def _loop(self) -> None:
        while True:
            busy = self._waiting or self._running or self._apart or self._lessons
            if not (busy or self._scores or self._searcher.jobs):
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(0)  # let the other requests of this moment arrive
            for _ in range(CYCLES):
                if self._decoder.ready:
                    break
                await asyncio.sleep(0)
            try:
                with current_device(self._device):
                    self._turn()
            except torch.OutOfMemoryError:
                self._fail(self.plan.exceeded(self._device))
            except RunError as error:
                self._fail(error)
            except Exception as error:
                self._fail(error)
                raise
            await asyncio.sleep(0)

    @torch.no_grad()
    @sdpa_kernel(KERNELS)
    def _turn(self) -> None:
        """Collect decode steps, run a train, score or prefill pass that is due, launch again.

        A GPU has its next steps before the tokens of the last ones are looked at. While most lanes
        are idle, decode steps are dear, and prefill passes follow each other.
        """
        before = self._looked if self._running or self._searcher.active else time.perf_counter()
        self._collect()
        self._running += self._apart  # whose own pass is over
        self._apart = []
        self._begin_held()
        self._note_waiting(time.perf_counter() - before)
        self._lessons.drop_cancelled()
        running = len(self._running) + self._searcher.running
        searches = self._searcher.admissible(*self._room())
        scores, size = len(self._scores), self.plan.prefill_tokens
        lessons, full = self._learner.due(self._lessons) if self._learner else (0, False)
        if full or self._patience["train"].ready(lessons, running):
            self._timed("train", self._train)
        elif self._scores.fills(size) or self._patience["score"].ready(scores, running):
            self._timed("score", self._score)
        elif self._patience["beam"].ready(searches, running):
            self._timed("beam", lambda: self._searcher.admit(searches, self._prefiller.fill))
        elif not self._leaves_rows and self._prefill_due():
            self._timed("prefill", self._prefill)
            while 0 < 2 * len(self._running) < self.plan.batch_size and self._prefill_due():
                self._timed("prefill", self._prefill)
        self._launch()

    def _timed(self, kind: str, run: Callable[[], int]) -> None:
        """Run a pass, which returns its tokens, once the steps that have begun are over."""
        while self._running and self._decoder.begun:
            self._collect()
        self._decoder.drop()  # what is left nobody waits for
        start = time.perf_counter()
        tokens = run()
        seconds = time.perf_counter() - start
        self.busy[kind] += seconds
        self._patience[kind].ran(tokens, seconds)

    @property
    def _leaves_rows(self) -> bool:
        """Whether no sequence begins, so that rows come free for the beams of a search."""
        return bool(self._searcher.waiting) and not self._searcher.active

    def _begin_held(self) -> None:
        """Begin waiting requests whose prompts need not be computed."""
        if not self._leaves_rows:
            lanes = self.plan.batch_size - len(self._running)
            self._running += self._waiting.next_held(
                self._cache, self._running, lanes, *self._room()
            )

    def _admissible(self) -> int:
        """About how many waiting requests have a lane, a row and pages."""
        lanes = self.plan.batch_size - len(self._running)
        return self._waiting.admissible(self._cache, self._running, lanes, *self._room())

    def _room(self) -> tuple[int, int]:
        """Rows and pages that are free or may be evicted; a train step's only where nothing else
        can run.
        """
        busy = self._running or self._lessons or self._searcher.active
        return self._cache.room(awaited=not busy)

    def _prefill_due(self) -> bool:
        """Whether waiting requests begin now: they have waited long enough, or fill a pass."""
        due, running = self._admissible(), len(self._running) + self._searcher.running
        ready = self._patience["prefill"].ready(due, running)
        return ready or self._waiting.fills(due, self.plan.prefill_tokens)

    def _prefill(self) -> int:
        """Start as many waiting requests as one pass takes, and draw their first tokens."""
        self._begin_held()
        count, pages = self._admissible(), self._room()[1] - ahead(self._cache, self._running)
        size = self.plan.prefill_tokens
        due = self._waiting.next_pass(self._cache, count, size, pages, self._running)
        if not due.jobs:
            return 0
        self._apart = due.jobs
        lanes = [job.lane for job in due.jobs if job.lane]
        parts, place = [], list[int]()
        for turn in due.turns(self._cache):
            place += turn
            parts.append(self._prefiller.run([due.segments[n] for n in turn]))
        logits = in_order(parts, place)
        if len(due.segments) < len(lanes):  # samples of one prompt
            owners = [due.segments[n].row for n in due.segment_of]
            pairs = zip(owners, lanes, strict=True)
            self._cache.copy([(row, x.row, x.length) for row, x in pairs if x.row != row])
            logits = logits[sent(due.segment_of, self._device)]
        draw(logits, lanes)
        self._running += self._settle(due.jobs, 1)
        self._apart = []
        return sum(len(segment.token_ids) for segment in due.segments)

    def _launch(self) -> None:
        """Begin decode steps; on a GPU they run while the questions' coroutines do."""
        for job in [j for j in self._running if j.answer.cancelled()]:
            self._running.remove(job)
            assert job.lane is not None
            self._cache.give(job.lane.row)
        if not self._running:
            self._decoder.drop()
        if self._cache.edge is not None:
            self._waiting.extend_all(self._running, self._cache, self._decoder.steps)
            self._step_at_the_edge(self._cache.edge - self._cache.prefix)
        if self._cache.whole:  # then a CPU reads rows where they lie
            self._running.sort(key=lambda job: job.lane.row if job.lane else 0)
        most = 1 if self._searcher.active else self._decoder.ahead
        while self._decoder.begun < most and self._begin_steps():
            pass
        since = time.perf_counter()
        self._searcher.launch()
        self.busy["beam"] += time.perf_counter() - since

    def _begin_steps(self) -> bool:
        """Begin decode steps of the running sequences; whether there were any to begin.

        Those that end within steps that have begun have no part in them, as far as that is known.
        """
        steps = self._decoder.steps
        begun = self._decoder.begun * steps
        self._waiting.extend_all(self._running, self._cache, begun + steps)
        lanes = [job.lane for job in self._running if job.lane]
        if begun:
            both = zip(self._running, lanes, strict=True)
            near = [(job, x) for job, x in both if len(x.tokens) + begun + steps >= x.limit]
            if any(spends_thought(job, begun + steps) for job, _ in near):
                return False
            past = {x for _, x in near if len(x.tokens) + self._decoder.begun_of(x) >= x.limit}
            lanes = [lane for lane in lanes if lane not in past] if past else lanes
        if not lanes:
            return False
        if not begun:
            self._looked = time.perf_counter()
        return self._decoder.launch(lanes)

    def _step_at_the_edge(self, edge: int) -> None:
        """Give sequences that reach the edge of their rotary frequencies a token in their own pass.

        The one that is longer than ``edge`` for the first time is run as a whole.
        """
        near: list[GenerateJob] = []
        segments: list[Segment] = []
        for job in list(self._running):
            lane = job.lane
            assert lane is not None
            if not lane.length <= edge < lane.length + self._decoder.steps:
                continue
            past = 0 if lane.length == edge else lane.length
            if past == 0 and not self._cache.renew(lane.row, lane.length + 1):
                self._waiting.pause(job, self._running, self._cache)
                continue
            lane.room = 0  # which it may have less of now
            near.append(job)
            segments.append(Segment(written(job)[past:], lane.row, past, lane.slot))
            lane.length += 1
        if not near:
            return
        logits = torch.cat([self._prefiller.run([segment]) for segment in segments])
        draw(logits, [job.lane for job in near if job.lane])
        self._running = [job for job in self._running if job not in near]
        self._apart = self._settle(near, 1)

    def _collect(self) -> None:
        """Take the tokens of the oldest steps, and answer the sequences that ended."""
        if not (self._running or self._searcher.active):
            return
        before = self._looked
        if self._running:
            took = self._decoder.collect([job.lane for job in self._running if job.lane])
            self._looked = time.perf_counter()
            self.busy["decode"] += self._looked - before
            self.decode_steps += took.steps
            self.generated_tokens += took.steps * (len(took.lanes) - len(took.ending))
            ending = set(took.ending)
            jobs = [job for job in self._running if job.lane in ending]
            ended = {*jobs} - {*self._settle(jobs, took.steps)}
            self._running = [job for job in self._running if job not in ended]
        if self._searcher.active:
            since = time.perf_counter()
            self.generated_tokens += self._searcher.collect()
            self.busy["beam"] += time.perf_counter() - since

    def _note_waiting(self, seconds: float) -> None:
        """Note that what waits for a pass has stood by for so long."""
        self._patience["train"].waited(len(self._lessons), seconds)
        self._patience["score"].waited(len(self._scores), seconds)
        self._patience["prefill"].waited(self._admissible(), seconds)
        self._patience["beam"].waited(self._searcher.admissible(*self._room()), seconds)

    def _settle(self, jobs: Sequence[GenerateJob], fresh: int) -> list[GenerateJob]:
        """Answer the jobs that ended among their last ``fresh`` tokens; return the others."""
        still: list[GenerateJob] = []
        for job in jobs:
            assert job.lane is not None
            lane, request, most = job.lane, job.request, job.request.max_new_tokens
            drawn, stops = lane.tokens, lane.stop_ids
            first = len(drawn) - fresh
            end = next((i + 1 for i in range(first, len(drawn)) if drawn[i] in stops), None)
            spent = lane.limit < min(len(drawn) + 1, most)
            if spent and request.thought is not None and (end is None or end > lane.limit):
                lane.cut(lane.limit)
                end, lane.limit = None, most
                lane.forced = request.thought.closes(drawn)
            if end is None and len(drawn) < most:
                self.generated_tokens += len(drawn) - first
                still.append(job)
                continue
            stopped, end = end is not None and end <= most, min(end or most, most)
            self.generated_tokens += end - first
            self._finish(job, end, stopped=stopped)
        return still

    def _finish(self, job: GenerateJob, end: int, *, stopped: bool) -> None:
        lane, request = job.lane, job.request
        assert lane is not None
        ids = tuple(lane.tokens[:end])
        kept = None
        if job.answer.cancelled() or not request.keep:
            self._cache.prompts.release(lane.row)
        else:
            whole, adapted = request.prompt_ids + ids, lane.slot >= 0
            learner = self._learner if request.awaited else None
            awaited = learner is not None and learner.reads(adapted=adapted)
            now = self._waiting.version(lane.slot)
            version = now if now == lane.version else None
            kept = self._cache.keep(
                lane.row, whole, adapted=adapted, awaited=awaited, version=version
            )
        if job.answer.cancelled():
            return
        scores = tuple(lane.scores[:end]) if request.logprobs else None
        reason: FinishReason = "stop" if stopped else "length"
        job.answer.set_result(Generation(ids, reason, job.seconds, kept, scores))

    def _train(self) -> int:
        """Update as many questions' adapters as one pass takes."""
        tokens = 0
        for job, per_target in self._learner.run(self._lessons) if self._learner else ():
            tokens += sum(len(target.token_ids) for target in job.request.targets)
            trained = sum(w != 0 for t in job.request.targets for w in t.weights)
            self.trained_tokens += trained
            if not job.answer.cancelled():
                job.answer.set_result(Trained(sum(per_target), per_target, trained, job.seconds))
        return tokens

    def _score(self) -> int:
        """Score as many sequences as one pass takes."""
        jobs = self._scores.next_pass(self.plan.prefill_tokens)
        self._scores.extendleft(reversed(jobs))  # an error answers all that wait
        answers = self._scorer.run([job.request for job in jobs])
        for job, (logprobs, top_ids, top_logprobs) in zip(jobs, answers, strict=True):
            self._scores.remove(job)
            self.scored_tokens += len(logprobs)
            if not job.answer.cancelled():
                job.answer.set_result(Scored(logprobs, top_ids, top_logprobs, job.seconds))
        return sum(job.request.tokens for job in jobs)

    def _fail(self, error: BaseException) -> None:
        """Answer every request with an error; later requests get it too."""
        self._failure = error
        all_held = (self._waiting, self._running, self._apart, self._lessons, self._scores)
        jobs: list[Job[Any, Any]] = [job for held in all_held for job in held]
        for job in [*jobs, *self._searcher.jobs]:
            if not job.answer.done():
                job.answer.set_exception(error)
        for held in all_held:
            held.clear()
        self._searcher.clear()
        if self._bank is not None:
            self._bank.fail(error)
