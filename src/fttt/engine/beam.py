"""Beam search: questions side by side, a row of the engine's cache for each beam.

A search is decoded as any sequence is, by the engine's own attention and, on a GPU, by a captured
step, which scores and prunes as well (:mod:`fttt.engine.beams`); the host only looks now and then
which questions are done, and lets the next ones in. The search of ``transformers``, whose results
it equals, copies all keys and values of all beams in each step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fttt.engine.batch import Segment
from fttt.engine.beams import Beams
from fttt.engine.cache import KVCache
from fttt.engine.decoder import Uncaptured, capturable
from fttt.engine.jobs import Job
from fttt.engine.request import BeamRequest, Generation
from fttt.engine.sequences import run_model
from fttt.errors import RunError

__all__ = ["BeamJob", "BeamSearcher"]

BeamJob = Job[BeamRequest, tuple[Generation, ...]]
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Questions of a captured step."""


@dataclass(frozen=True, slots=True)
class Search:
    """A question that is searched, and its rows."""

    job: BeamJob
    rows: list[int]


class BeamSearcher:
    """The searches that wait and those that go on.

    All that go on have one width and the same stop tokens; the first that waits for others begins
    when they have ended.
    """

    def __init__(self, model: Any, cache: KVCache, lanes: int):
        """Take note of the model.

        Args:
            model: of ``transformers``, under the engine's attention.
            cache: of the engine; a beam is a row.
            lanes: beams of all questions that may go on at once.
        """
        self.waiting: deque[BeamJob] = deque()
        self.going_on: list[Search] = []
        self._model = model
        self._cache = cache
        self._lanes = lanes
        self._cuda = cache.device.type == "cuda"
        self._steps = 8 if self._cuda else 1
        self._shape: tuple[int, tuple[int, ...]] = (0, ())
        self._places = 0
        self._beams = Beams.blank(0, 0, cache)
        self._stop_E = torch.zeros(0, dtype=torch.int64, device=cache.device)
        self._graphs: dict[int, Any] = {}
        self._launched = False

    @property
    def jobs(self) -> list[BeamJob]:
        """All that are owed an answer."""
        return [*self.waiting, *(search.job for search in self.going_on)]

    @property
    def running(self) -> int:
        """Lanes of the searches that go on."""
        return len(self.going_on) * self._shape[0]

    def admissible(self, rows: int) -> int:
        """Lanes of the waiting searches that could begin now, were so many rows to be had."""
        if not self.waiting:
            return 0
        shape = _shape(self.waiting[0].request)
        if self.going_on and shape != self._shape:
            return 0
        alike = 0
        while alike < len(self.waiting) and _shape(self.waiting[alike].request) == shape:
            alike += 1
        lanes = min(self._lanes - self.running, rows)
        return min(alike, lanes // shape[0]) * shape[0]

    def admit(self, lanes: int, fill: Callable[[Sequence[Segment]], None]) -> None:
        """Begin the first searches, as many as fill these lanes; ``fill`` fills their rows."""
        beams, _ = shape = _shape(self.waiting[0].request)
        if shape != self._shape:
            self._begin(shape)
        fresh: list[Search] = []
        for _ in range(lanes // beams):
            job = self.waiting.popleft()
            if not job.answer.cancelled():
                fresh.append(Search(job, [self._cache.take() for _ in range(beams)]))
        first = len(self.going_on)
        self.going_on += fresh
        try:
            prompts = [(search.job.request.prompt_ids[:-1], search.rows[0]) for search in fresh]
            segments = [Segment(ids, row, 0) for ids, row in prompts if ids]
            if self._cache.states is not None:
                for _, row in prompts:
                    self._cache.states.clear(row)
            fill(segments)
            for place, search in enumerate(fresh, first):
                self._beams.put(place, search.job.request, search.rows, self._cache)
        except torch.OutOfMemoryError:
            self._give_up()

    def launch(self) -> None:
        """Begin some steps of all that go on."""
        if not self.going_on:
            return
        try:
            if self._cuda:
                graph = self._graph(next(b for b in self._buckets() if b >= len(self.going_on)))
                for _ in range(self._steps):
                    graph.replay()
            else:
                self._step(self._beams.first(len(self.going_on)))
        except torch.OutOfMemoryError:
            self._give_up()
        self._launched = bool(self.going_on)

    def collect(self) -> int:
        """Wait for the steps, and answer the searches that are done; return their tokens."""
        if not self._launched:
            return 0
        self._launched = False
        tokens = 0
        done = self._beams.done_Q[: len(self.going_on)].tolist()
        for place in reversed(range(len(self.going_on))):
            job = self.going_on[place].job
            if job.answer.cancelled():
                self._end(place)
            elif done[place]:
                found = self._beams.found(place)
                tokens += sum(map(len, found))
                job.answer.set_result(tuple(_generation(job, ids) for ids in found))
                self._end(place)
        return tokens

    def clear(self) -> None:
        """Forget all of them, and their rows, since the engine ends."""
        self.waiting.clear()
        self.going_on.clear()

    def _begin(self, shape: tuple[int, tuple[int, ...]]) -> None:
        """Make room for searches of another width or other stop tokens."""
        beams, stops = self._shape = shape
        self._graphs.clear()
        self._places = self._lanes // beams
        self._beams = Beams.blank(self._places, beams, self._cache)
        self._stop_E = torch.tensor(stops, dtype=torch.int64, device=self._cache.device)

    def _buckets(self) -> list[int]:
        return [b for b in BUCKETS if b < self._places] + [self._places]

    def _step(self, beams: Beams) -> None:
        beams.expand(run_model(self._model, beams.batch(self._cache), slice(None)), self._stop_E)

    def _graph(self, questions: int) -> Any:
        """The captured step of so many questions."""
        if questions not in self._graphs:
            blank = Beams.blank(questions, self._shape[0], self._cache)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles what is compiled on first use
                self._step(blank)
            torch.cuda.current_stream().wait_stream(stream)
            if not capturable(self._model):
                step = partial(self._step, self._beams.first(questions))
                self._graphs[questions] = Uncaptured(step)
                return self._graphs[questions]
            graph = torch.cuda.CUDAGraph()
            pool = next((g.pool() for g in self._graphs.values()), None)
            with torch.cuda.graph(graph, pool=pool):
                self._step(self._beams.first(questions))
            self._graphs[questions] = graph
        return self._graphs[questions]

    def _end(self, place: int) -> None:
        """Give a search's rows back and let the last one take its place."""
        for row in self.going_on[place].rows:
            self._cache.give(row)
        self._beams.move(len(self.going_on) - 1, place, self._cache)
        self.going_on[place] = self.going_on[-1]
        self.going_on.pop()

    def _give_up(self) -> None:
        """Out of memory is an error of these searches, and not the engine's."""
        for place in reversed(range(len(self.going_on))):
            job = self.going_on[place].job
            if not job.answer.done():
                job.answer.set_exception(self._out_of_memory(job.request))
            self._end(place)

    def _out_of_memory(self, request: BeamRequest) -> RunError:
        return RunError(
            f"{self._cache.device} ran out of memory in a search of {request.beams} beams of up to "
            f"{request.max_new_tokens} tokens; a narrower search would be another method, so lower "
            "--trials or --max-new-tokens and start a new run."
        )


def _shape(request: BeamRequest) -> tuple[int, tuple[int, ...]]:
    """What the requests that go on at once have in common."""
    return request.beams, request.stop_ids


def _generation(job: BeamJob, ids: tuple[int, ...]) -> Generation:
    stopped = ids[-1] in job.request.stop_ids
    return Generation(ids, "stop" if stopped else "length", job.seconds)
