"""An engine that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fttt.engine.request import (
    AdapterSlot,
    AdapterSpec,
    BeamRequest,
    GenerateRequest,
    Generation,
    Kept,
    Scored,
    ScoreRequest,
    Trained,
    TrainRequest,
)
from fttt.testing.tiny_models import tiny_tokenizer
from fttt.types import FinishReason

__all__ = ["FakeEngine", "FakeKept", "FakeSlot", "Script"]


@dataclass(eq=False)
class FakeSlot:
    """An adapter that only counts."""

    spec: AdapterSpec
    seed: int
    updates: int = 0
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class FakeKept:
    """A finished sequence that only knows whether it is still held."""

    token_ids: tuple[int, ...]
    closed: bool = False

    def close(self) -> None:
        self.closed = True


Script = Sequence[str] | Callable[[str, GenerateRequest], str]


@dataclass(eq=False)
class FakeEngine:
    """An engine that writes what a script says and keeps every request.

    ``script`` is a sequence of completions, handed out in the order of the requests, or a function
    of the conversation (decoded with its special tokens) and the request; it should depend on
    nothing else where a run is to be resumed. A completion ends with the end-of-turn token, or is
    cut at ``max_new_tokens`` as a real one would be. The beams of a search are so many completions,
    the best one first; a function is asked for each with the beam's number as ``noise_key``. The
    loss of a train step is ``1 / (1 + updates so far)``. A scored token has the log-probability
    -0.5 and is the likeliest; those that follow its id come after it, each e times less likely than
    the one before.
    """

    script: Script
    max_length: int = 4096
    idle: int = 0
    """Lanes that it says stand idle, for methods whose answers may be written ahead."""
    template: str = "chatml"
    """Of the tiny tokenizer that its texts go through."""
    adapters: int = 256
    """How many it says can be open at once."""
    seconds: float = 0.0
    """How long each request takes, in wall time."""
    generations: list[GenerateRequest] = field(default_factory=list)
    searches: list[BeamRequest] = field(default_factory=list)
    trainings: list[TrainRequest] = field(default_factory=list)
    scorings: list[ScoreRequest] = field(default_factory=list)
    slots: list[FakeSlot] = field(default_factory=list)
    kept: list[FakeKept] = field(default_factory=list)
    generated_tokens: int = 0
    closed: bool = False

    def conversation(self, request: GenerateRequest) -> str:
        """What the model was given, as text with its special tokens."""
        return str(tiny_tokenizer(self.template).decode(request.prompt_ids))

    @property
    def conversations(self) -> list[str]:
        """What the model was given, request by request."""
        return [self.conversation(request) for request in self.generations]

    async def generate(self, request: GenerateRequest) -> Generation:
        """Answer with the script's next completion."""
        order = self.completions
        self.generations.append(request)
        if isinstance(request.reuse, FakeKept) and request.reuse.closed:
            raise RuntimeError("reused something that was given back")
        await asyncio.sleep(self.seconds)
        ids, finish = self._write(request, order)
        kept: FakeKept | None = None
        if request.keep:
            kept = FakeKept(request.prompt_ids + ids)
            self.kept.append(kept)
        return Generation(
            token_ids=ids,
            finish_reason=finish,
            seconds=self.seconds,
            kept=kept,
            logprobs=(-1.0,) * len(ids) if request.logprobs else None,
        )

    async def beam(self, request: BeamRequest) -> tuple[Generation, ...]:
        """Answer with the script's next completions, the best one first."""
        order = self.completions
        self.searches.append(request)
        await asyncio.sleep(self.seconds)
        beams = [
            GenerateRequest(request.prompt_ids, request.max_new_tokens, noise_key=number)
            for number in range(request.beams)
        ]
        written = (self._write(beam, order + n) for n, beam in enumerate(beams))
        return tuple(Generation(ids, finish, self.seconds) for ids, finish in written)

    @property
    def completions(self) -> int:
        """How many were asked for so far, beams included."""
        return len(self.generations) + sum(search.beams for search in self.searches)

    def _write(self, request: GenerateRequest, order: int) -> tuple[tuple[int, ...], FinishReason]:
        """The tokens of one completion and how it ended."""
        if callable(self.script):
            text = self.script(self.conversation(request), request)
        else:
            text = self.script[order]
        tokenizer = tiny_tokenizer(self.template)
        ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
        finish: FinishReason = "stop"
        if request.thought is not None:
            thought, rest = ids[: request.thought.tokens], ids[request.thought.tokens :]
            if closes := request.thought.closes(thought):  # then the script's own answer
                ids = (*thought, *closes, *_behind(rest, request.thought.mark))
        if len(ids) > request.max_new_tokens:
            ids, finish = ids[: request.max_new_tokens], "length"
        self.generated_tokens += len(ids)
        return ids, finish

    async def train(self, request: TrainRequest) -> Trained:
        """Count one update."""
        slot = _slot(request.adapter)
        for lesson in request.lessons:
            _check_open(slot, lesson.context)
        self.trainings.append(request)
        await asyncio.sleep(self.seconds)
        losses = tuple(1.0 / (1 + slot.updates) for _ in request.targets)
        slot.updates += 1
        trained = sum(weight != 0 for target in request.targets for weight in target.weights)
        return Trained(sum(losses), losses, trained, self.seconds)

    async def score(self, request: ScoreRequest) -> Scored:
        """Find every token the likeliest one."""
        _check_open(None if request.adapter is None else _slot(request.adapter), request.context)
        self.scorings.append(request)
        await asyncio.sleep(self.seconds)
        ids, size = request.token_ids, len(tiny_tokenizer())
        top = range(request.top_k)
        return Scored(
            logprobs=(-0.5,) * len(ids),
            top_ids=tuple(tuple((i + k) % size for k in top) for i in ids) if top else (),
            top_logprobs=(tuple(-0.5 - k for k in top),) * len(ids) if top else (),
            seconds=self.seconds,
        )

    async def open_adapter(
        self, spec: AdapterSpec, seed: int, copy_of: AdapterSlot | None = None
    ) -> AdapterSlot:
        """Hand out a new slot."""
        await asyncio.sleep(0)
        source = None if copy_of is None else _slot(copy_of)
        _check_open(source, ())
        self.slots.append(FakeSlot(spec, seed, source.updates if source else 0))
        return self.slots[-1]

    async def close(self) -> None:
        """Remember that the engine was closed."""
        self.closed = True


def _behind(ids: tuple[int, ...], mark: tuple[int, ...]) -> tuple[int, ...]:
    """What follows a mark; all of it where there is none."""
    size = len(mark)
    ends = (n + size for n in range(len(ids)) if ids[n : n + size] == mark)
    return ids[next(ends, 0) :]


def _slot(adapter: AdapterSlot) -> FakeSlot:
    if not isinstance(adapter, FakeSlot):
        raise TypeError(f"a FakeEngine trains its own slots, not {adapter!r}")
    return adapter


def _check_open(slot: FakeSlot | None, context: Kept | tuple[int, ...]) -> None:
    if (slot and slot.closed) or (isinstance(context, FakeKept) and context.closed):
        raise RuntimeError("asked for something that was given back")
