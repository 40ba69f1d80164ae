"""Beam search: questions side by side, a row of the engine's cache for each beam.

A search is decoded as any sequence is, by the engine's own attention and, on a GPU, by a captured
step, which scores and prunes as well; the host only looks now and then which questions are done,
and lets the next ones in. The search of ``transformers``, whose results it equals, copies all keys
and values of all beams in each step.

The rule is that of ``transformers`` with its defaults (``early_stopping=False``, a length penalty
of 1): a beam's score is its log-probability, an ended one's is that divided by its length. A beam
ends by a stop token only where it is among the N best of all continuations; the N best that do not
end are searched further. A question is done at the length limit, or once the best unfinished beam,
as if it ended now, is worse than the worst of N that have ended. Everything stays on the device, so
that a captured step serves any of them.

No key or value is ever copied: a beam writes each token's into its own row and knows of every
earlier token which row holds it. All pages that a search may need are taken when it begins, so that
it is never paused. Likewise a state that layers carry is read from the row of the
beam that was continued, and written to its own.

Axes: Q questions, N beams of each, L = Q N lanes, S tokens of a row, V vocabulary, E stop tokens,
C candidates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import KVCache
from fttt.engine.decoder import Uncaptured, capturable, outputs_not_finite
from fttt.engine.request import BeamRequest, Generation
from fttt.engine.scheduler import Job
from fttt.engine.sequences import run_model
from fttt.errors import RunError

__all__ = ["BeamJob", "BeamSearcher", "Beams"]

FAR_BELOW = -1e9
"""The score of a question's beams but the first before they differ."""


@dataclass(frozen=True, eq=False)
class Beams:
    """Beams of some questions. A blank question is done, and its lanes write to the spare row."""

    token_QN: Tensor
    """The token to run next."""
    past_QN: Tensor
    """Filled positions before it, those of the cache's prefix included."""
    row_QN: Tensor
    """The row that a beam writes to."""
    row_of_QNS: Tensor
    """The row that holds each earlier token."""
    source_QN: Tensor
    """The row that the state before the next token is read from, where layers carry one."""
    score_QN: Tensor
    """Log-probability, best first."""
    written_QNS: Tensor
    """The tokens after the prompt."""
    count_Q: Tensor
    """How many of them there are."""
    limit_Q: Tensor
    """How many there may be."""
    done_Q: Tensor
    broken_Q: Tensor
    """Whether the best score was not finite at some step."""
    ended_score_QN: Tensor
    """Log-probability a token of the best that have ended, best first; -inf where none has."""
    ended_QNS: Tensor
    ended_length_QN: Tensor

    @classmethod
    def blank(cls, questions: int, beams: int, cache: KVCache) -> Beams:
        """Room for so many questions."""

        def filled(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.full((questions, *shape), value, dtype=dtype, device=cache.device)

        whole, small = torch.int64, torch.int32
        return cls(
            token_QN=filled(0, whole, beams),
            past_QN=filled(cache.prefix, whole, beams),
            row_QN=filled(cache.rows, whole, beams),
            row_of_QNS=filled(cache.rows, small, beams, cache.capacity),
            source_QN=filled(cache.rows, whole, beams),
            score_QN=filled(0, torch.float32, beams),
            written_QNS=filled(0, small, beams, cache.capacity),
            count_Q=filled(0, whole),
            limit_Q=filled(0, whole),
            done_Q=filled(True, torch.bool),
            broken_Q=filled(False, torch.bool),
            ended_score_QN=filled(float("-inf"), torch.float32, beams),
            ended_QNS=filled(0, small, beams, cache.capacity),
            ended_length_QN=filled(0, whole, beams),
        )

    def first(self, questions: int) -> Beams:
        """The same tensors, as far as these questions go."""
        return Beams(*(getattr(self, part.name)[:questions] for part in fields(self)))

    def put(self, place: int, request: BeamRequest, rows: Sequence[int], cache: KVCache) -> None:
        """Begin a question whose prompt, but for its last token, lies in the first of its rows."""
        self.token_QN[place] = request.prompt_ids[-1]
        self.past_QN[place] = cache.prefix + len(request.prompt_ids) - 1
        self.row_QN[place] = torch.tensor(rows)
        self.row_of_QNS[place] = rows[0]
        self.source_QN[place] = rows[0]
        self.score_QN[place] = FAR_BELOW
        self.score_QN[place, 0] = 0
        self.count_Q[place] = 0
        self.limit_Q[place] = request.max_new_tokens
        self.done_Q[place] = False
        self.broken_Q[place] = False
        self.ended_score_QN[place] = float("-inf")

    def move(self, source: int, target: int, cache: KVCache) -> None:
        """Let a question take the place of one that is done, and leave a blank one behind."""
        if source != target:
            for part in fields(self):
                tensor = getattr(self, part.name)
                tensor[target] = tensor[source]
        self.row_QN[source] = self.source_QN[source] = cache.rows
        self.past_QN[source] = cache.prefix
        self.done_Q[source] = True

    def found(self, place: int) -> list[tuple[int, ...]]:
        """The tokens of a done question's beams, best first."""
        lengths = self.ended_length_QN[place].tolist()
        rows = self.ended_QNS[place, :, : max(lengths)].tolist()
        return [tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)]

    def batch(self, cache: KVCache) -> Batch:
        """The decode step of all lanes."""
        past_L = self.past_QN.flatten()
        return Batch(
            "decode", cache, self.token_QN.flatten(), past_L, self.row_QN.flatten(), past_L,
            torch.full_like(past_L, -1), lengths=(), pasts=(), rows=(), adapted=False,
            row_of_BS=self.row_of_QNS.flatten(0, 1), source_B=self.source_QN.flatten(),
        )  # fmt: skip

    def expand(self, logits_LV: Tensor, stop_E: Tensor) -> None:
        """Continue each beam by one token, prune, and note what has ended."""
        beams, vocab = self.token_QN.shape[1], logits_LV.shape[1]
        score_QNV = logits_LV.float().log_softmax(-1).unflatten(0, (-1, beams))
        score_QNV += self.score_QN[..., None]
        stopped_QC = score_QNV[..., stop_E].flatten(1)
        score_QNV.index_fill_(2, stop_E, float("-inf"))
        going_QN, at_QN = score_QNV.flatten(1).topk(beams)
        parent_QN, token_QN = at_QN // vocab, at_QN % vocab
        # the N best of all are among the N best that do not end and those that stop
        beam_C = (
            torch.arange(beams, device=stop_E.device)[:, None].expand(-1, len(stop_E)).flatten()
        )
        best_QN, choice_QN = torch.cat([going_QN, stopped_QC], 1).topk(beams)
        parent_QC = torch.cat([parent_QN, beam_C.expand_as(stopped_QC)], 1)
        token_QC = torch.cat([token_QN, stop_E.repeat(beams).expand_as(stopped_QC)], 1)
        last_Q = self.count_Q + 1 >= self.limit_Q
        ends_QN = ((choice_QN >= beams) | last_Q[:, None]) & ~self.done_Q[:, None]
        self._end(best_QN, parent_QC.gather(1, choice_QN), token_QC.gather(1, choice_QN), ends_QN)
        count_Q = self.count_Q + 1
        done_Q = last_Q | (going_QN[:, 0] / count_Q <= self.ended_score_QN.amin(1))
        if beams == 1:  # the library's search of one beam is greedy decoding
            done_Q |= ends_QN[:, 0]
        self._continue(going_QN, parent_QN, token_QN)
        # where any score is NaN so is the first of the best
        self.broken_Q.logical_or_(~going_QN[:, 0].isfinite() & ~self.done_Q)
        self.done_Q.logical_or_(done_Q)

    def _end(self, score_QN: Tensor, parent_QN: Tensor, token_QN: Tensor, ends_QN: Tensor) -> None:
        """Keep the best that have ended, those that end now among them."""
        count_Q1 = self.count_Q[:, None] + 1
        now_QN = (score_QN / count_Q1).masked_fill(~ends_QN, float("-inf"))
        score_QC = torch.cat([self.ended_score_QN, now_QN], 1)
        ended_QCS = torch.cat([self.ended_QNS, self._continued(parent_QN, token_QN)], 1)
        length_QC = torch.cat([self.ended_length_QN, count_Q1.expand_as(token_QN)], 1)
        best_QN, choice_QN = score_QC.topk(score_QN.shape[1])
        self.ended_score_QN.copy_(best_QN)
        self.ended_QNS.copy_(_pick(ended_QCS, choice_QN))
        self.ended_length_QN.copy_(length_QC.gather(1, choice_QN))

    def _continue(self, score_QN: Tensor, parent_QN: Tensor, token_QN: Tensor) -> None:
        """Let each beam of a question that is not done continue another one."""
        live_Q = ~self.done_Q
        live_Q1, live_Q11 = live_Q[:, None], live_Q[:, None, None]
        written_QNS = self._continued(parent_QN, token_QN)
        self.written_QNS.copy_(torch.where(live_Q11, written_QNS, self.written_QNS))
        row_QN1 = self.row_QN[..., None].to(self.row_of_QNS.dtype)
        row_of_QNS = _pick(self.row_of_QNS.scatter(2, self.past_QN[..., None], row_QN1), parent_QN)
        self.row_of_QNS.copy_(torch.where(live_Q11, row_of_QNS, self.row_of_QNS))
        source_QN = self.row_QN.gather(1, parent_QN)
        self.source_QN.copy_(torch.where(live_Q1, source_QN, self.source_QN))
        self.token_QN.copy_(torch.where(live_Q1, token_QN, self.token_QN))
        self.score_QN.copy_(torch.where(live_Q1, score_QN, self.score_QN))
        self.past_QN.add_(live_Q1)
        self.count_Q.add_(live_Q)

    def _continued(self, parent_QN: Tensor, token_QN: Tensor) -> Tensor:
        """What the parents have written, and one token each."""
        at_QN1 = self.count_Q[:, None, None].expand(-1, token_QN.shape[1], 1)
        token_QN1 = token_QN[..., None].to(self.written_QNS.dtype)
        return _pick(self.written_QNS, parent_QN).scatter(2, at_QN1, token_QN1)


def _pick(x_QCS: Tensor, choice_QN: Tensor) -> Tensor:
    """Rows of each question by their numbers."""
    return x_QCS.gather(1, choice_QN[..., None].expand(-1, -1, x_QCS.shape[2]))


BeamJob = Job[BeamRequest, tuple[Generation, ...]]
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Questions of a captured step."""


@dataclass(frozen=True, slots=True)
class Search:
    """An active search and its rows."""

    job: BeamJob
    rows: list[int]


class BeamSearcher:
    """Runs beam searches beside the engine's other sequences.

    All active ones have one width and the same stop tokens; the first that waits for others begins
    when they have ended.
    """

    def __init__(self, model: Any, cache: KVCache, lanes: int):
        """Take note of the model.

        Args:
            model: of ``transformers``, under the engine's attention.
            cache: of the engine; a beam is a row.
            lanes: beams of all questions that may be searched at once.
        """
        self.waiting: deque[BeamJob] = deque()
        self.active: list[Search] = []
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
        """Jobs without an answer yet."""
        return [*self.waiting, *(search.job for search in self.active)]

    @property
    def running(self) -> int:
        """Lanes of the active searches."""
        return len(self.active) * self._shape[0]

    def admissible(self, rows: int, pages: int) -> int:
        """Lanes of the waiting searches that could begin now, with so many rows and pages."""
        if not self.waiting:
            return 0
        shape = _shape(self.waiting[0].request)
        if self.active and shape != self._shape:
            return 0
        alike = 0
        while alike < len(self.waiting) and _shape(self.waiting[alike].request) == shape:
            alike += 1
        lanes = min(self._lanes - self.running, rows)
        count = 0
        for job in islice(self.waiting, min(alike, lanes // shape[0])):
            pages -= shape[0] * self._cache.count(_longest(job.request))
            if pages < 0:
                break
            count += 1
        return count * shape[0]

    def admit(self, lanes: int, fill: Callable[[Sequence[Segment]], None]) -> int:
        """Begin the first searches, as many as fill these lanes; ``fill`` fills their rows.

        Returns:
            The tokens of their prompts.
        """
        beams, _ = shape = _shape(self.waiting[0].request)
        if shape != self._shape:
            self._begin(shape)
        fresh: list[Search] = []
        for _ in range(lanes // beams):
            job = self.waiting.popleft()
            if not job.answer.cancelled():
                fresh.append(Search(job, self._rows(job.request)))
        first = len(self.active)
        self.active += fresh
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
        return sum(len(search.job.request.prompt_ids) for search in fresh)

    def _rows(self, request: BeamRequest) -> list[int]:
        """A row for each beam; the prompt's pages are the first one's."""
        held, longest = len(request.prompt_ids) - 1, _longest(request)
        rows: list[int] = []
        for _ in range(request.beams):
            take = partial(self._cache.fork, rows[0], held) if rows else self._cache.take
            row = take(longest)
            assert row is not None
            rows.append(row)
        return rows

    def launch(self) -> None:
        """Begin some steps of all active searches."""
        if not self.active:
            return
        self._cache.sync()
        try:
            if self._cuda:
                graph = self._graph(next(b for b in self._buckets() if b >= len(self.active)))
                for _ in range(self._steps):
                    graph.replay()
            else:
                self._step(self._beams.first(len(self.active)))
        except torch.OutOfMemoryError:
            self._give_up()
        self._launched = bool(self.active)

    def collect(self) -> int:
        """Wait for the steps, and answer the searches that are done; return their tokens.

        Raises:
            DivergedError: scores are not finite.
        """
        if not self._launched:
            return 0
        self._launched = False
        tokens = 0
        ended = torch.stack([self._beams.done_Q, self._beams.broken_Q])[:, : len(self.active)]
        done, broken = ended.tolist()
        if any(broken):
            raise outputs_not_finite()
        for place in reversed(range(len(self.active))):
            job = self.active[place].job
            if job.answer.cancelled():
                self._end(place)
            elif done[place]:
                found = self._beams.found(place)
                tokens += sum(map(len, found))
                job.answer.set_result(tuple(_generation(job, ids) for ids in found))
                self._end(place)
        return tokens

    def clear(self) -> None:
        """Drop all searches when the engine closes."""
        self.waiting.clear()
        self.active.clear()

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
            with torch.cuda.graph(graph, pool=pool, stream=stream):  # a stream of this GPU
                self._step(self._beams.first(questions))
            self._graphs[questions] = graph
        return self._graphs[questions]

    def _end(self, place: int) -> None:
        """Give a search's rows back and let the last one take its place."""
        for row in self.active[place].rows:
            self._cache.give(row)
        self._beams.move(len(self.active) - 1, place, self._cache)
        self.active[place] = self.active[-1]
        self.active.pop()

    def _give_up(self) -> None:
        """Fail these searches alone where memory runs out."""
        for place in reversed(range(len(self.active))):
            job = self.active[place].job
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
    """What the requests that are searched at once have in common."""
    return request.beams, request.stop_ids


def _longest(request: BeamRequest) -> int:
    """Tokens of a beam that does not end early."""
    return len(request.prompt_ids) + request.max_new_tokens


def _generation(job: BeamJob, ids: tuple[int, ...]) -> Generation:
    stopped = ids[-1] in job.request.stop_ids
    return Generation(ids, "stop" if stopped else "length", job.seconds)
