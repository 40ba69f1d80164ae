"""One thread (the models are tiny, and other tests may run beside these), and what runs is seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from fttt.engine.adapters.bank import Bank, applied
from fttt.engine.batch import Batch, Segment
from fttt.engine.cache import KVCache
from fttt.engine.decoder import Collected, CPUDecoder, CUDADecoder, Decoder
from fttt.engine.lane import Lane
from fttt.engine.memory_plan import MemoryPlan, plan_memory
from fttt.engine.sequences import run_model


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all of them."""


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each segment that is prefilled."""
    seen: list[int] = []
    pack = Batch.pack

    def counted(mode: Any, segments: Any, cache: Any) -> Batch:
        if mode == "prefill":
            seen.extend(len(segment.token_ids) for segment in segments)
        return pack(mode, segments, cache)

    monkeypatch.setattr(Batch, "pack", counted)
    return seen


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets engines have pages of so many tokens, and so many of them, or all that rows may need."""

    def use(page: int | None, pages: int | None = None, rows: int = 0, **others: int) -> None:
        def plan(*args: Any, **settings: Any) -> MemoryPlan:
            made = plan_memory(*args, **settings)
            size, count = page or made.capacity, max(made.rows, rows)
            whole = count * -(-made.capacity // size)
            return replace(made, rows=count, page=size, pages=pages or whole, **others)

        monkeypatch.setattr("fttt.engine.engine.plan_memory", plan)

    return use


class SeveralSteps(CPUDecoder):
    """As a GPU's where no call begins ahead: several steps between two looks at the tokens."""

    steps = 3

    def _step(self, lanes: Sequence[Lane]) -> None:
        for _ in range(self.steps):
            super()._step(lanes)


class StepsAhead(SeveralSteps):
    """As a GPU's: a call begins before the tokens of the one before it are looked at.

    What the device knows of a lane, a copy of it does; steps are done as they are launched, since
    a device works in order.
    """

    ahead = 2

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._calls: deque[dict[Lane, tuple[Lane, int]]] = deque()
        """The copy of each lane, and how many tokens it had before."""
        self.followed = 0

    @property
    def begun(self) -> int:
        return len(self._calls)

    def begun_of(self, lane: Lane) -> int:
        return self.steps * sum(lane in call for call in self._calls)

    def launch(self, lanes: Sequence[Lane]) -> bool:
        if self._calls and any(lane.shaped or lane.forced for lane in lanes):
            return False
        copies = {lane: replace(lane, tokens=[*lane.tokens], scores=[]) for lane in lanes}
        if self._calls:
            before = self._calls[-1]
            assert not any(lane in call for call in self._calls for lane in {*lanes} - {*before})
            copies |= {lane: before[lane][0] for lane in lanes if lane in before}
            self.followed += 1
        self._calls.append({lane: (copy, len(copy.tokens)) for lane, copy in copies.items()})
        self._step(list(copies.values()))
        return True

    def collect(self, lanes: Sequence[Lane]) -> Collected:
        own = [(lane, *held) for lane, held in self._calls.popleft().items() if lane in lanes]
        for lane, copy, before in own:
            drawn = slice(before, before + self.steps)
            scored = copy.scores[len(copy.scores) - len(copy.tokens) + before :][: self.steps]
            lane.length += self.steps
            lane.take(copy.tokens[drawn], scored)
        took = [lane for lane, _, _ in own]
        return Collected(took, [lane for lane in took if lane.may_end(self.steps)], self.steps)

    def drop(self) -> None:
        self._calls.clear()


class _Instant:
    """In place of a stream, an event or a graph of a GPU: what it is given is done."""

    def wait_stream(self, other: object) -> None:
        """Nothing is to come."""

    def record(self) -> None:
        """Nothing is to come."""

    def synchronize(self) -> None:
        """All is done."""

    def query(self) -> bool:
        return True


class OnCPU(CUDADecoder):
    """A GPU's decoder itself, whose tensors lie on a CPU and whose steps are run as they are begun.

    Only the pass through the model is another one: a CPU's attention asks for lengths and rows.
    """

    steps = 3
    ahead: Any = None  # which it decides for itself

    def __init__(self, model: Any, cache: KVCache, bank: Bank | None) -> None:
        super().__init__(model, cache, bank, lanes=40)
        self.followed = 0

    def launch(self, lanes: Sequence[Lane]) -> bool:
        begun = super().launch(lanes)
        self.followed += begun and len(self._calls) > 1
        return begun

    def _run_lanes(self, bucket: int, adapted: bool) -> torch.Tensor:
        own = [
            (n, Segment((token,), row, length - self._cache.prefix, slot))
            for n, (token, length, row, slot, *_) in enumerate(self._whole[:, :bucket].T.tolist())
            if row < self._cache.rows
        ]
        logits_LV = torch.zeros(bucket, self._model.config.vocab_size)
        if own:
            batch = Batch.pack("decode", [segment for _, segment in own], self._cache)
            with applied(self._bank, batch):
                logits_LV[[n for n, _ in own]] = run_model(self._model, batch, slice(None))
        return logits_LV


@pytest.fixture(params=[SeveralSteps, StepsAhead, OnCPU])
def gpu_like(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Decoder]:
    """Decoders that do what a GPU's does between two looks at the tokens, and that one itself."""
    decoder: type[Decoder] = request.param
    if decoder is OnCPU:
        monkeypatch.setattr("fttt.engine.decoder.capturable", lambda model: False)
        for name in ("Stream", "Event", "CUDAGraph", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, _Instant)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return decoder
