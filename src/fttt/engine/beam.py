"""Beam search: the scoring and pruning of ``transformers``, in rows of the engine's cache.

A search runs ``generate`` of the model itself, under its own attention and without the
stand-ins, in a thread of its own, so that verdicts and signals are attended to meanwhile. Each beam
takes a row of the engine's cache, which is why its memory is part of the plan; the prompt goes
through the model once, in an ordinary prefill pass, and its keys and values are copied to the
question's beams.

Axes: Q questions of one search, R beams of all of them, N beams of each, T tokens of the longest
prompt, S tokens so far, K key-value heads, D head dimension.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import CacheLayerMixin

from fttt.engine.attention import NAME
from fttt.engine.batch import Segment
from fttt.engine.cache import KVCache
from fttt.engine.jobs import Job
from fttt.engine.request import BeamRequest, Generation
from fttt.engine.stand_ins import StandIns
from fttt.errors import RunError

__all__ = ["BeamJob", "BeamSearcher"]

BeamJob = Job[BeamRequest, tuple[Generation, ...]]


class BeamSearcher:
    """Runs the searches that wait, as many questions at a time as the plan has lanes for."""

    def __init__(
        self, model: Any, cache: KVCache, *, attention: str, stand_ins: StandIns, lanes: int
    ):
        """Take note of the model.

        Args:
            model: of ``transformers``.
            cache: of the engine; a beam is a row.
            attention: the model's own.
            stand_ins: to be put aside.
            lanes: beams of all questions that one search may have.
        """
        self.waiting: deque[BeamJob] = deque()
        self._model = model
        self._cache = cache
        self._attention = attention
        self._stand_ins = stand_ins
        self._lanes = lanes

    @property
    def beams(self) -> int:
        """Rows without which the next search cannot begin; 0 where none waits."""
        return self.waiting[0].request.beams if self.waiting else 0

    async def run(self, rows: int, prefill: Callable[[Sequence[Segment]], object]) -> int:
        """Search for the first that waits and for others like it; return the tokens generated.

        Out of memory is an error of these searches only: their rows are free again.

        Args:
            rows: that may be taken.
            prefill: fills rows with prompts.
        """
        jobs = self._next(rows)
        if not jobs:
            return 0
        taken = sorted(self._cache.take() for _ in range(len(jobs) * jobs[0].request.beams))
        stop = threading.Event()
        try:
            self._fill(jobs, taken, prefill)
            work = asyncio.ensure_future(asyncio.to_thread(self._search, jobs, taken, stop))
            try:
                found = await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()  # the thread needs the model until it has seen this
                await asyncio.wait([work])
                self._answer(jobs, RunError("The engine was closed while a beam search ran."))
                raise
        except torch.OutOfMemoryError:
            self._answer(jobs, self._out_of_memory(jobs))
            return 0
        except Exception as error:
            self._answer(jobs, error)
            raise
        finally:
            for row in taken:
                self._cache.give(row)
        for job, beams in zip(jobs, found, strict=True):
            if not job.answer.done():
                job.answer.set_result(beams)
        return sum(len(beam.token_ids) for beams in found for beam in beams)

    def _next(self, rows: int) -> list[BeamJob]:
        """Take the first request and those that can share its search; leave the others."""
        jobs: list[BeamJob] = []
        others: list[BeamJob] = []
        while self.waiting:
            job = self.waiting.popleft()
            if job.answer.cancelled():
                continue
            beams = (len(jobs) + 1) * job.request.beams
            alike = not jobs or _shape(job.request) == _shape(jobs[0].request)
            fits = not jobs or beams <= min(rows, self._lanes)
            (jobs if alike and fits else others).append(job)
        self.waiting.extend(others)
        return jobs

    def _fill(
        self,
        jobs: Sequence[BeamJob],
        rows: Sequence[int],
        prefill: Callable[[Sequence[Segment]], object],
    ) -> None:
        """Run each prompt but for its last token, and copy it to the beams, padded on the left."""
        prompts = [job.request.prompt_ids[:-1] for job in jobs]
        beams = jobs[0].request.beams
        longest = max(map(len, prompts))
        firsts = rows[::beams]
        segments = [Segment(p, row, 0) for p, row in zip(prompts, firsts, strict=True) if p]
        with torch.no_grad(), _attention_kernels():
            for start in range(0, len(segments), 16):
                prefill(segments[start : start + 16])
        for n, prompt in enumerate(prompts):
            own = torch.tensor(rows[n * beams : (n + 1) * beams], device=self._cache.device)
            at = slice(longest - len(prompt), longest)
            for part in (*self._cache.keys, *self._cache.values):
                part[own, :, at] = part[firsts[n], :, : len(prompt)].clone()

    def _search(
        self, jobs: Sequence[BeamJob], rows: Sequence[int], stop: threading.Event
    ) -> list[tuple[Generation, ...]]:
        """Run ``generate``; the tokens of each question's beams, best first."""
        request = jobs[0].request
        longest = max(len(job.request.prompt_ids) for job in jobs)
        pads = [longest - len(job.request.prompt_ids) for job in jobs]
        fill = request.stop_ids[0] if request.stop_ids else 0
        ids_QT = [[fill] * n + [*job.request.prompt_ids] for n, job in zip(pads, jobs, strict=True)]
        mask_QT = [[0] * n + [1] * (longest - n) for n in pads]
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            num_beams=request.beams,
            num_return_sequences=request.beams,
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(request.stop_ids) or None,
            pad_token_id=fill,
        )
        device = self._cache.device
        with torch.no_grad(), _attention_kernels(), self._own_code():
            out_RS = self._model.generate(
                torch.tensor(ids_QT, device=device),
                attention_mask=torch.tensor(mask_QT, device=device),
                generation_config=config,
                past_key_values=_rows_as_cache(self._cache, rows, longest - 1),
                stopping_criteria=StoppingCriteriaList([_Unwanted(jobs, stop)]),
            )
        tokens = out_RS[:, longest:].tolist()
        return [
            tuple(_beam(job, tokens[n * request.beams + place]) for place in range(request.beams))
            for n, job in enumerate(jobs)
        ]

    @contextmanager
    def _own_code(self) -> Iterator[None]:
        """Give the model its own attention and operations, and the engine its own back."""
        model, stand_ins = self._model, self._stand_ins
        try:
            stand_ins.disable()
            model.set_attn_implementation(self._attention)
            # the defaults of a model's folder (a repetition penalty, say) hold for no other method
            plain = GenerationConfig()  # type: ignore[no-untyped-call]
            with patch.object(model, "generation_config", plain):
                yield
        finally:
            model.set_attn_implementation(NAME)
            stand_ins.enable()

    def _answer(self, jobs: Sequence[BeamJob], error: Exception) -> None:
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(error)

    def _out_of_memory(self, jobs: Sequence[BeamJob]) -> RunError:
        request = jobs[0].request
        return RunError(
            f"{self._cache.device} ran out of memory in a search of {request.beams} beams of up to "
            f"{request.max_new_tokens} tokens; a narrower search would be another method, so lower "
            "--trials or --max-new-tokens and start a new run."
        )


def _shape(request: BeamRequest) -> tuple[object, ...]:
    """What requests of one search have in common."""
    return request.beams, request.max_new_tokens, request.stop_ids


def _beam(job: BeamJob, tokens: Sequence[int]) -> Generation:
    """A beam up to its stop token; what follows is padding."""
    request = job.request
    end = next((n + 1 for n, token in enumerate(tokens) if token in request.stop_ids), None)
    stopped = end is not None
    return Generation(tuple(tokens[:end]), "stop" if stopped else "length", job.seconds)


def _attention_kernels() -> Any:
    """All but cuDNN's, which plans anew for every shape."""
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


class _Unwanted(StoppingCriteria):
    """Ends a search that nobody waits for any more."""

    def __init__(self, jobs: Sequence[BeamJob], stop: threading.Event) -> None:
        self._jobs, self._stop = jobs, stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        unwanted = self._stop.is_set() or all(job.answer.cancelled() for job in self._jobs)
        return torch.full((input_ids.shape[0],), unwanted, device=input_ids.device)


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's rows of the engine's cache, as ``transformers`` sees them."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor | slice, filled: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = (keys, values)
        self._rows = rows
        self._prompt = self._filled = filled
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store ``[R, K, new, D]``; return all ``[R, K, S, D]``."""
        start, self._filled = self._filled, self._filled + key_states.shape[2]
        for part, new in zip(self._parts, (key_states, value_states), strict=True):
            part[self._rows, :, start : self._filled] = new
        keys, values = (part[self._rows, :, : self._filled] for part in self._parts)
        return keys, values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let each beam go on from another; all beams of a question share its prompt."""
        for part in self._parts:
            own = part[self._rows, :, self._prompt : self._filled]
            part[self._rows, :, self._prompt : self._filled] = own[beam_idx]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys to look at, and where they begin."""
        return self._filled + query_length, 0

    def get_seq_length(self) -> int:
        """S."""
        return self._filled

    def get_max_length(self) -> int:
        """Tokens that a row holds."""
        return int(self._parts[0].shape[2])


def _rows_as_cache(cache: KVCache, rows: Sequence[int], filled: int) -> Cache:
    """Rows of the engine's cache; read where they lie if no other lies between them."""
    chosen: Tensor | slice = torch.tensor(rows, device=cache.device)
    if rows[-1] - rows[0] == len(rows) - 1:
        chosen = slice(rows[0], rows[-1] + 1)
    pairs = zip(cache.keys, cache.values, strict=True)
    return Cache(layers=[_Layer(keys, values, chosen, filled) for keys, values in pairs])
