"""Requests on their way, their queues, and when to run which pass.

Requests wait for company for as long as :mod:`fttt.engine.patience` has it. A full pass runs at
once, for it has no room for company: sequences that begin close to each other end so, and attempts
that have been learned from, or scored, leave their rows to others, and their questions ask for
more. A request whose prompt a row holds needs no pass, and waits for none.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from fttt.engine.adapters.bank import slot_index
from fttt.engine.batch import Segment
from fttt.engine.cache import KeptRow, KVCache
from fttt.engine.families import edge_of
from fttt.engine.lane import Lane
from fttt.engine.prompts import Prompt, common_beginning
from fttt.engine.request import (
    BeamRequest,
    GenerateRequest,
    Generation,
    Scored,
    ScoreRequest,
    Trained,
    TrainRequest,
)
from fttt.errors import UsageError
from fttt.models.loader import LoadedModel

__all__ = [
    "GenerateJob",
    "Job",
    "LessonQueue",
    "PrefillPass",
    "PrefillQueue",
    "ScoreJob",
    "ScoreQueue",
    "TrainJob",
    "ahead",
    "check_fits",
    "check_length",
    "close_kept",
    "spends_thought",
    "written",
]

AHEAD = 2
"""Pages that are left to each running sequence where others begin, so that none is paused again at
once."""
LEAST_SHARED = 16
"""Tokens of the shortest beginning that is shared: a second pass takes about as long as these."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class Job(Generic[Request, Answer]):
    """A request and the future that its answer is for."""

    request: Request
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=time.perf_counter)
    lane: Lane | None = None

    @property
    def seconds(self) -> float:
        """From the request until now."""
        return time.perf_counter() - self.since


GenerateJob = Job[GenerateRequest, Generation]
TrainJob = Job[TrainRequest, Trained]
ScoreJob = Job[ScoreRequest, Scored]


def check_fits(request: GenerateRequest | BeamRequest, max_length: int) -> None:
    """Refuse a request that is longer than a row.

    Raises:
        UsageError: it is, or its thought leaves no room for an answer.
    """
    thought = request.thought if isinstance(request, GenerateRequest) else None
    if thought and thought.tokens + len(thought.closing) >= request.max_new_tokens:
        raise UsageError(
            f"A thought of {thought.tokens} tokens, and {len(thought.closing)} to close it leave "
            f"no room for an answer within {request.max_new_tokens}; lower --think-tokens or raise "
            "--max-new-tokens."
        )
    if len(request.prompt_ids) + request.max_new_tokens > max_length:
        raise UsageError(
            f"A prompt of {len(request.prompt_ids)} tokens and {request.max_new_tokens} new ones "
            f"do not fit the {max_length} tokens of a row; lower --max-new-tokens."
        )


def check_length(loaded: LoadedModel, max_length: int, beams: int) -> None:
    """Refuse sequences that the model cannot run.

    Raises:
        UsageError: they are longer than its context, or than a search may follow.
    """
    if max_length > loaded.max_context:
        raise UsageError(
            f"Sequences of {max_length} tokens do not fit the model's context of "
            f"{loaded.max_context}; lower --max-new-tokens or leave out longer questions."
        )
    edge = edge_of(loaded.model)
    if beams and edge is not None and max_length > edge:
        raise UsageError(
            f"A beam search of {max_length} tokens goes past the {edge} after which the rotary "
            "frequencies of this model change; lower --max-new-tokens or take another method."
        )


def close_kept(generation: Generation) -> None:
    """Release the row of an answer whose request was cancelled."""
    if generation.kept is not None:
        generation.kept.close()


def lane_for(request: GenerateRequest) -> Lane:
    """A request's place among the running sequences, without a row."""
    key = request.noise_key & (2**64 - 1)
    most = request.max_new_tokens
    return Lane(
        row=-1,
        slot=slot_index(request.adapter),
        temperature=request.temperature,
        top_p=request.top_p,
        key=key - 2**64 if key >= 2**63 else key,
        length=len(request.prompt_ids),
        logprobs=request.logprobs,
        stop_ids=frozenset(request.stop_ids),
        limit=most if request.thought is None else min(most, request.thought.tokens),
        top_k=request.top_k,
        min_p=request.min_p,
        penalty=request.repetition_penalty,
        prompt=request.prompt_ids if request.repetition_penalty != 1 else (),
        prompt_end=request.prompt_ids[-1],
    )


@dataclass(frozen=True, slots=True)
class PrefillPass:
    """Requests that begin, or are resumed, together.

    Those of one prompt and the same adapter, or none, share a segment. Segments that begin within
    their rows run after all others, since the beginning may be that of another one.
    """

    jobs: list[GenerateJob] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    segment_of: list[int] = field(default_factory=list)
    """Of each request."""
    forks: list[tuple[int, int, int]] = field(default_factory=list)
    """What to copy before those run that begin within their rows, as :meth:`KVCache.copy` takes
    it."""

    def turns(self, cache: KVCache) -> Iterator[list[int]]:
        """Numbers of the segments that run together; what the later ones read is there by then."""
        fresh = [n for n, segment in enumerate(self.segments) if not segment.past]
        if fresh:
            yield fresh
        if self.forks:
            cache.copy(self.forks)
        if len(fresh) < len(self.segments):
            yield [n for n, segment in enumerate(self.segments) if segment.past]


class Beginnings:
    """Sequences that hold their prompts, in the order of those, to find what begins alike.

    The longest common beginning is that with a neighbour in the order.
    """

    def __init__(self) -> None:
        self._jobs: list[GenerateJob] = []

    def retain(self, jobs: Sequence[GenerateJob]) -> None:
        """Let these be all that there are."""
        wanted, known = set(jobs), set(self._jobs)
        self._jobs = [job for job in self._jobs if job in wanted]
        for job in jobs:
            if job not in known:
                self.add(job)

    def add(self, job: GenerateJob) -> None:
        """Note a sequence that has a row."""
        insort(self._jobs, job, key=_beginning)

    def longest(self, slot: int, ids: tuple[int, ...]) -> tuple[int, int]:
        """The row that shares most of the first tokens under a slot's weights, and how many.

        The last of ``ids`` is left, since it has to be run.
        """
        best = (-1, 0)
        at = bisect_left(self._jobs, (slot, ids), key=_beginning)
        for job in self._jobs[max(0, at - 1) : at + 1]:
            lane = job.lane
            assert lane is not None
            held = common_beginning(ids[:-1], job.request.prompt_ids) if lane.slot == slot else 0
            if held > best[1]:
                best = (lane.row, held)
        return best


def _beginning(job: GenerateJob) -> tuple[int, tuple[int, ...]]:
    assert job.lane is not None
    return job.lane.slot, job.request.prompt_ids


class PrefillQueue(deque[GenerateJob]):
    """Requests to generate, in the order of their arrival; paused ones come first."""

    pauses = 0
    """How often a running sequence was paused."""

    def __init__(self, jobs: Iterable[GenerateJob] = ()) -> None:
        super().__init__(jobs)
        self.version: Callable[[int], int] = lambda slot: 0
        """Numbers the present weights of a slot, as a bank does."""
        self._beginnings = Beginnings()

    def pause(self, job: GenerateJob, running: list[GenerateJob], cache: KVCache) -> None:
        """Free a running sequence's pages; it is the first to be resumed."""
        assert job.lane is not None
        cache.give(job.lane.row)
        job.lane.row, job.lane.room = -1, 0
        running.remove(job)
        self.appendleft(job)
        self.pauses += 1

    def extend_all(self, running: list[GenerateJob], cache: KVCache, steps: int) -> None:
        """Give running sequences pages for their next steps, those first that were asked for first;
        pause the last where there are too few.
        """
        short: list[tuple[GenerateJob, Lane, int]] = []
        for job in [job for job in running if job.lane and job.lane.length + steps > job.lane.room]:
            lane = job.lane
            assert lane is not None
            reach = min(lane.length + steps, _longest(job))
            lane.room = cache.count(reach) * cache.page - cache.prefix
            if cache.count(reach) > len(cache.pages_of(lane.row)):
                short.append((job, lane, reach))
        for _, lane, reach in sorted(short, key=lambda one: one[0].since):
            while lane.row >= 0 and not cache.extend(lane.row, reach):
                self.pause(max(running, key=lambda job: job.since), running, cache)

    def admissible(
        self, cache: KVCache, running: Sequence[GenerateJob], lanes: int, rows: int, pages: int
    ) -> int:
        """About how many requests have a lane, a row and pages: the first one has, if any.

        Cancelled ones before it are dropped, since a larger one may stand behind them.
        """
        while self and self[0].answer.cancelled():
            self.popleft()
        count = min(len(self), lanes, rows)
        if count <= 0:
            return 0
        first = cache.count(len(written(self[0])) + 1)
        if count * first > pages - AHEAD * len(running):
            count = min(count, max(0, pages - ahead(cache, running)) // first)
        return count

    def fills(self, count: int, tokens: int) -> bool:
        """Whether the first ``count`` requests have as many tokens as a pass takes.

        A prompt that is asked for several times in a row counts once.
        """
        total = 0
        before: tuple[int, ...] = ()
        for job in islice(self, count):
            prompt = job.request.prompt_ids
            total += 0 if prompt == before else len(prompt)
            before = prompt
            if total >= tokens:
                return True
        return False

    def next_held(
        self, cache: KVCache, running: Sequence[GenerateJob], lanes: int, rows: int, pages: int
    ) -> list[GenerateJob]:
        """Begin requests whose prompts rows hold: they need no pass and draw in the next step.

        What requests before them wait for is left to those, so that none is overtaken for ever.
        """
        taken: list[GenerateJob] = []
        others: list[GenerateJob] = []
        most = min(len(self), lanes, rows)
        if most > 0:
            pages -= _left_ahead(cache, running, pages, most * cache.count(cache.capacity))
        while self and len(taken) + len(others) < min(lanes, rows):
            job = self.popleft()
            request, tokens = job.request, len(written(job))
            if job.answer.cancelled():
                continue
            prompt = self._prompt(request)
            needed = None if job.lane else cache.prompts.pages_for(prompt, tokens + 1)
            pages -= cache.count(tokens + 1) if needed is None else needed
            if pages < 0:
                self.appendleft(job)
                break
            row = None if needed is None else cache.prompts.begin(prompt, tokens + 1)
            if row is None:
                others.append(job)
                continue
            lane = job.lane = lane_for(request)
            lane.row, lane.length, lane.version = row, tokens - 1, prompt.version
            taken.append(job)
        self.extendleft(reversed(others))
        return taken

    def _prompt(self, request: GenerateRequest) -> Prompt:
        """A request's prompt under the weights as they are."""
        slot = slot_index(request.adapter)
        return Prompt(slot, self.version(slot), request.prompt_ids)

    def next_pass(
        self,
        cache: KVCache,
        count: int,
        tokens: int,
        pages: int,
        running: Iterable[GenerateJob] = (),
    ) -> PrefillPass:
        """Take up to ``count`` requests until ``tokens`` or ``pages`` are reached, one at least.

        What a prompt has in common with that of a ``running`` sequence whose weights are those that
        it was written under, or with one taken before it, is not computed again.
        """
        taken = PrefillPass()
        segment_of: dict[tuple[int, tuple[int, ...]], int] = {}
        shares, total = _shares(cache), 0
        same = (x for x in running if x.lane and x.lane.version == self.version(x.lane.slot))
        self._beginnings.retain(list(same) if shares else ())
        while self and len(taken.jobs) < count:
            job = self.popleft()
            request = job.request
            if job.answer.cancelled():
                continue
            ids, slot = written(job), slot_index(request.adapter)
            past = 0 if job.lane else _held_tokens(request)
            twin = segment_of.get((slot, ids))
            source: tuple[int, int] | None = None
            if twin is not None:
                source = taken.segments[twin].row, len(ids)
            elif not past:
                row, held = self._beginnings.longest(slot, ids)
                if held >= LEAST_SHARED:
                    source, past = (row, held), held
            needed = cache.count(len(ids) + 1)
            if source is not None:
                needed -= (cache.prefix + source[1]) // cache.page
            total += len(ids) if twin is None else 0
            if taken.jobs and (total > tokens or needed > pages):
                self.appendleft(job)
                break
            pages -= needed
            lane = job.lane = job.lane or lane_for(request)
            lane.row, lane.length = _row(request, cache, past, len(ids), source), len(ids)
            lane.version = self.version(slot)
            cache.prompts.note(lane.row, self._prompt(request))
            taken.jobs.append(job)
            taken.segment_of.append(len(taken.segments) if twin is None else twin)
            if twin is not None:
                continue
            segment_of[slot, ids] = len(taken.segments)
            begun = _begun(request, len(ids), cache)
            taken.segments.append(Segment(ids[past:], lane.row, past, slot, begun))
            if source is not None:
                taken.forks.append((source[0], lane.row, source[1]))
            elif not past and shares:
                self._beginnings.add(job)
        return taken


def _left_ahead(cache: KVCache, running: Sequence[GenerateJob], pages: int, wanted: int) -> int:
    """:func:`ahead`, or no less where so many pages are there beside: they are counted faster."""
    bound = AHEAD * len(running)
    return bound if wanted + bound <= pages else ahead(cache, running)


def ahead(cache: KVCache, running: Sequence[GenerateJob]) -> int:
    """Pages that running sequences take next, as far as they will need them."""
    if cache.whole:
        return 0
    return sum(
        min(AHEAD, cache.count(_longest(job)) - len(cache.pages_of(job.lane.row)))
        for job in running
        if job.lane
    )


def spends_thought(job: GenerateJob, steps: int) -> bool:
    """Whether a sequence may use up its thought's budget within so many more tokens.

    What follows then is not drawn.
    """
    lane = job.lane
    assert lane is not None
    return lane.limit < min(job.request.max_new_tokens, len(lane.tokens) + steps + 1)


def _longest(job: GenerateJob) -> int:
    """Tokens of a sequence that does not end early."""
    return len(job.request.prompt_ids) + job.request.max_new_tokens


def written(job: GenerateJob) -> tuple[int, ...]:
    """A request's prompt, and what it has drawn where it was paused."""
    drawn = job.lane.tokens if job.lane else ()
    return (*job.request.prompt_ids, *drawn)


def _begun(request: GenerateRequest, tokens: int, cache: KVCache) -> int:
    """Tokens that were run at once before a sequence had so many: those of the prompt, or all of
    them since it went past the edge of its rotary frequencies.
    """
    begun = len(request.prompt_ids)
    return begun if cache.serves(begun, tokens) else tokens


def _held_tokens(request: GenerateRequest) -> int:
    """How many of the prompt's first tokens are read from the row that it may reuse.

    An adapter's keys and values are not the base model's, nor its own after a train step. Less than
    half of a prompt is not worth attention that reads the row.
    """
    kept, prompt = request.reuse, request.prompt_ids
    if not isinstance(kept, KeptRow) or kept.row is None:
        return 0
    if kept.adapted or request.adapter is not None:
        return 0
    same = kept.shared(prompt) if kept.serves(len(prompt)) else 0
    return same if 2 * same >= len(prompt) else 0


def _shares(cache: KVCache) -> bool:
    """Whether prompts take what they begin with from other rows.

    On a CPU all attention is masked, and reading a row costs nothing more. On a GPU a fused kernel
    serves prompts that read nothing.
    """
    return cache.divisible and cache.device.type == "cpu"


def _row(
    request: GenerateRequest,
    cache: KVCache,
    past: int,
    tokens: int,
    source: tuple[int, int] | None,
) -> int:
    """A row for a request of so many tokens and the next one.

    It shares the pages of a ``source``, as far as that row has the same tokens. Where ``past``
    tokens of a kept row are reused, it shares that one's, or is that one where nothing else is
    free.
    """
    kept, row = request.reuse, None
    if source is not None:
        row = cache.fork(*source, tokens + 1)
    elif past and isinstance(kept, KeptRow) and kept.row is not None:
        if cache.free and cache.free_pages >= cache.count(tokens + 1):
            row = cache.fork(kept.row, past, tokens + 1)
            assert row is not None
            cache.copy([(kept.row, row, past)])
        else:
            row = cache.claim(kept)
            assert row is not None
            has_room = cache.cut(row, past) and cache.extend(row, tokens + 1)
            assert has_room
    else:
        row = cache.take(tokens + 1)
    assert row is not None
    return row


class LessonQueue(deque[TrainJob]):
    """Train requests in the order of their arrival."""

    def drop_cancelled(self) -> None:
        """Drop cancelled requests, whose slots may belong to other questions by now."""
        for job in [job for job in self if job.answer.cancelled()]:
            self.remove(job)

    def fills(self, cache: KVCache, tokens: int, questions: int) -> bool:
        """Whether no request that comes now could be of the next pass."""
        return self._fitting(cache, tokens, questions)[1]

    def next_pass(self, cache: KVCache, tokens: int, questions: int) -> list[TrainJob]:
        """Take up to ``questions`` requests of different adapters, one at least.

        No more are taken once ``tokens``, the rows or the pages are reached.
        """
        count, _ = self._fitting(cache, tokens, questions)
        return [self.popleft() for _ in range(count)]

    def _fitting(self, cache: KVCache, tokens: int, questions: int) -> tuple[int, bool]:
        """How many requests the next pass takes, and whether it is full.

        It is where it has its tokens or questions, or leaves out one that waits. One whose rows and
        pages are all that there are is not: an attempt that ends brings its own.
        """
        adapters: set[object] = set()
        rows, pages = cache.room(awaited=True)
        total = count = 0
        for job in self:
            request = job.request
            rows -= len(request.lessons)
            pages -= sum(cache.count(len(lesson.context_ids)) for lesson in request.lessons)
            if count and (min(rows, pages) < 0 or request.adapter in adapters):
                return count, True
            adapters.add(request.adapter)
            total += sum(len(target.token_ids) for target in request.targets)
            count += 1
            if total >= tokens or count >= questions:
                return count, True
        return count, False


class ScoreQueue(deque[ScoreJob]):
    """Sequences to score, in the order of their arrival."""

    def fills(self, tokens: int) -> bool:
        """Whether no request that comes now could be of the next pass."""
        return self._fitting(tokens)[1]

    def next_pass(self, tokens: int) -> list[ScoreJob]:
        """Take requests until ``tokens`` are reached, one at least."""
        count, _ = self._fitting(tokens)
        taken = [self.popleft() for _ in range(count)]
        return [job for job in taken if not job.answer.cancelled()]

    def _fitting(self, tokens: int) -> tuple[int, bool]:
        """How many requests, cancelled ones among them, the next pass takes; whether it is full."""
        total = 0
        for count, job in enumerate(self):
            if job.answer.cancelled():
                continue
            if total and total + job.request.tokens > tokens:
                return count, True
            total += job.request.tokens
        return len(self), total >= tokens
