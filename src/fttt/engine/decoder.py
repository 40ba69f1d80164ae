"""One token for every running sequence: plainly on a CPU, as a captured graph on a GPU.

Axes: L lanes (running sequences), V vocabulary, K steps between two looks at the tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fttt.engine import ops
from fttt.engine.adapters.bank import Bank, applied
from fttt.engine.batch import Batch, put, sent
from fttt.engine.cache import KVCache
from fttt.engine.lane import Lane
from fttt.engine.ops.sampling import Shape, uniform
from fttt.engine.sequences import run_model
from fttt.errors import DivergedError
from fttt.models.quantized import quantized_layers

__all__ = [
    "CPUDecoder",
    "CUDADecoder",
    "Collected",
    "Decoder",
    "SeenTokens",
    "Uncaptured",
    "capturable",
    "draw",
    "outputs_not_finite",
]


WANTED = 12
"""Calls that a graph of up to twice the lanes serves before one that fits them better is captured:
what these lose is about what a capture takes."""


class Collected(NamedTuple):
    """Lanes that have taken the tokens of a call."""

    lanes: Sequence[Lane]
    ending: Sequence[Lane]
    """Of these, all that may have ended: at their limit, or by a stop token. They are few, and
    nobody looks at the others, of which there may be a thousand."""
    steps: int
    """Tokens of each."""


class Decoder(Protocol):
    """Runs decode steps."""

    steps: int
    """K: steps of one call, at most."""
    ahead: int
    """Calls that can have begun before the first of them is collected."""

    @property
    def begun(self) -> int:
        """Calls that have begun and are not collected."""

    @property
    def ready(self) -> bool:
        """Whether collecting the oldest of them takes no waiting."""

    def begun_of(self, lane: Lane) -> int:
        """Steps of a lane that have begun and are not collected."""

    def launch(self, lanes: Sequence[Lane]) -> bool:
        """Begin ``steps`` steps of these lanes, or as many as the last of them may draw, behind
        those that have begun.

        Returns:
            Whether they could begin while those before them are not collected.
        """

    def collect(self, lanes: Sequence[Lane]) -> Collected:
        """Wait for the oldest call, and append its tokens to those of these lanes that it has;
        others came later.
        """

    def drop(self) -> None:
        """Forget what has begun: nobody waits for its tokens."""


class SeenTokens:
    """Which tokens running sequences hold, for those that have a repetition penalty.

    A table from one step to the next, so that a step marks what is new and never an answer of 32k
    tokens again.
    """

    def __init__(self, table_LV: Tensor) -> None:
        """Take a table of zeros, as many rows as sequences run at once at most."""
        self.table_LV = table_LV
        self._held: dict[Lane, tuple[int, int, int]] = {}
        """A lane's row, how many of its tokens are marked there, and its cuts until then."""

    def note(self, lanes: Sequence[Lane], ahead: int = 0) -> None:
        """Mark in row n what lane n holds; so many more tokens will be marked on the device."""
        table, held = self.table_LV, self._held
        rows = [held[lane][0] if lane in held else n for n, lane in enumerate(lanes)]
        if rows != list(range(len(lanes))):
            table[: len(lanes)] = table[torch.tensor(rows, device=table.device)]
        self._held = {}
        for n, lane in enumerate(lanes):
            if lane.penalty == 1:
                continue
            _, count, cuts = held.get(lane, (n, 0, -1))
            fresh: Sequence[int] = lane.tokens[count:]
            if cuts != lane.cuts:
                table[n].zero_()
                fresh = (*lane.prompt, *lane.tokens)
            if fresh:
                self.mark(n, fresh)
            self._held[lane] = (n, len(lane.tokens) + ahead, lane.cuts)

    def forget(self, lanes: Iterable[Lane] | None = None) -> None:
        """Mark anew with the next step what these lanes hold, or all: more may be marked by now."""
        for lane in [*self._held] if lanes is None else lanes:
            self._held.pop(lane, None)

    def mark(self, row: int, token_ids: Sequence[int]) -> None:
        """Mark tokens in a row."""
        self.table_LV[row].index_fill_(0, torch.tensor(token_ids).to(self.table_LV.device), True)


def draw(logits_LV: Tensor, lanes: Sequence[Lane], seen: SeenTokens | None = None) -> None:
    """Sample each lane's next token from its logits and append it.

    Args:
        logits_LV: of the lanes.
        lanes: which are to have one token more.
        seen: what is known of their tokens from the step before.

    Raises:
        DivergedError: logits are not finite.
    """
    device = logits_LV.device
    _check_finite(logits_LV.amax(-1), lanes)
    floats = torch.tensor([[x.temperature, x.top_p] for x in lanes]).to(device)
    key_L, count_L = torch.tensor([[x.key, len(x.tokens)] for x in lanes]).to(device).T
    shape = None
    if any(lane.shaped for lane in lanes):
        seen = seen or SeenTokens(torch.zeros_like(logits_LV, dtype=torch.bool))
        seen.note(lanes)
        shape = Shape(
            torch.tensor([x.top_k for x in lanes], device=device),
            torch.tensor([x.min_p for x in lanes], device=device),
            torch.tensor([x.penalty for x in lanes], device=device),
            seen.table_LV[: len(lanes)],
        )
    noise_L = uniform(key_L, count_L)
    token_L, score_L = ops.sample(logits_LV, floats[:, 0], floats[:, 1], noise_L, shape)
    for lane, token, score in zip(lanes, token_L.tolist(), score_L.tolist(), strict=True):
        lane.take([token], [score])


def _check_finite(score_L: Tensor, lanes: Sequence[Lane]) -> None:
    """Refuse to draw from logits that are NaN or infinite.

    One such sequence ends the run: its keys and values stay in the row for the next sequence that
    takes it, and a masked key's weight of zero times infinity is NaN.
    """
    finite_L = score_L.isfinite()
    if bool(finite_L.all()):
        return
    lane = lanes[int((~finite_L).nonzero()[0])]
    if lane.slot >= 0:
        raise DivergedError(
            "A question's own weights have diverged: with them the model's outputs became NaN; "
            "lower the learning rate or take --dtype float32."
        )
    raise outputs_not_finite()


def outputs_not_finite() -> DivergedError:
    """The error of a model that writes NaN by its own weights."""
    return DivergedError(
        "The model's outputs became NaN; take --dtype bfloat16 or float32, whose range is larger "
        "than that of float16, and check that the model's files are complete."
    )


class CPUDecoder:
    """One step a call, over the lanes that are given."""

    steps = 1
    ahead = 1

    def __init__(self, model: nn.Module, cache: KVCache, bank: Bank | None) -> None:
        self._model, self._cache, self._bank = model, cache, bank
        self._launched: Sequence[Lane] = ()
        self._seen: SeenTokens | None = None

    @property
    def begun(self) -> int:
        """One call, from its launch on."""
        return int(len(self._launched) > 0)

    @property
    def ready(self) -> bool:
        """Always: the step is done as it is collected."""
        return True

    def begun_of(self, lane: Lane) -> int:
        """One, from its launch on."""
        return int(lane in self._launched)

    def launch(self, lanes: Sequence[Lane]) -> bool:
        """Note that there is a step to do; a CPU has nothing to run beside."""
        self._launched = lanes
        return True

    def collect(self, lanes: Sequence[Lane]) -> Collected:
        """Append one token to each lane."""
        running = set(lanes)
        own = [lane for lane in self._launched if lane in running]
        self._launched = ()
        if own:
            self._step(own)
        return Collected(own, [lane for lane in own if lane.may_end(self.steps)], self.steps)

    def drop(self) -> None:
        """Leave the step undone."""
        self._launched = ()

    def _step(self, lanes: Sequence[Lane]) -> None:
        batch = Batch.pack("decode", [lane.segment for lane in lanes], self._cache)
        with applied(self._bank, batch):
            logits = run_model(self._model, batch, slice(None))
        for lane in lanes:
            lane.length += 1
        if self._seen is None or len(self._seen.table_LV) < len(lanes):
            self._seen = SeenTokens(torch.zeros_like(logits, dtype=torch.bool))
        draw(logits, lanes, self._seen)


@dataclass(frozen=True, slots=True)
class _BegunSteps:
    """Steps that have begun: whose they are, and where their tokens come to lie."""

    columns: dict[Lane, int]
    place: int
    steps: int


class _Kind(NamedTuple):
    """Of a captured step."""

    lanes: int
    adapted: bool
    """Whether some have adapters."""
    asks: bool
    """Whether some have settings beside temperature and nucleus."""


class CUDADecoder:
    """Replays a captured step for a bucket of lanes that fits.

    All of a step's state lives on the device and advances there, so replays follow each other
    without the host: ``steps`` of them make a call, and a call begins behind the one before it,
    whose tokens nobody has seen yet. A sequence that ends in between draws a few tokens that are
    dropped. What these write to the cache lies behind the sequence's end, in pages that were its
    own when the call began: whoever gets them later writes to them later, since the device works in
    order.
    """

    steps = 4

    def __init__(self, model: nn.Module, cache: KVCache, bank: Bank | None, lanes: int) -> None:
        self._model: Any = model
        self._cache, self._bank = cache, bank
        # A state knows no order of places, and a row may have to be run again at an edge.
        self.ahead = 1 if cache.states is not None or cache.edge is not None else 2
        device = cache.device
        self._whole = torch.zeros(6, lanes + 1, dtype=torch.int64, device=device)
        self._real = torch.zeros(2, lanes + 1, device=device)
        self._whole[:, lanes] = torch.tensor([0, cache.prefix, cache.rows, -1, 0, 0])
        self._real[1, lanes] = 1.0  # the last lane is nobody's
        self._tick = torch.zeros(1, dtype=torch.int64, device=device)
        places = self.ahead * self.steps
        self._tokens = torch.zeros(places, lanes, dtype=torch.int64, device=device)
        self._scores = torch.zeros(places, lanes, device=device)
        self._forced = torch.full((places, lanes), -1, device=device)
        self._forces = False
        self._stops: set[int] = set()
        """Stop tokens of all lanes so far: one that ends another lane is looked at in vain."""
        self._calls: deque[_BegunSteps] = deque()
        self._fetched = [
            (
                torch.zeros(self.steps, lanes, dtype=torch.int64).pin_memory(),
                torch.zeros(self.steps, lanes).pin_memory(),
                torch.cuda.Event(),
            )
            for _ in range(self.ahead)
        ]
        """Tokens and scores of a call, on the host, and when they are there."""
        self._graphs: dict[_Kind, Any] = {}
        self._wanted: Counter[_Kind] = Counter()
        self._shape: Shape | None = None  # made when a lane first asks for it
        self._seen: SeenTokens | None = None
        self._pool: Any = None
        self._stream = torch.cuda.Stream()  # one, since cuBLAS keeps a workspace for each
        self._buckets = _buckets(lanes)
        self._ends = torch.zeros(1, lanes, dtype=torch.int64, device=device)

    @property
    def begun(self) -> int:
        """Calls that have begun and are not collected."""
        return len(self._calls)

    @property
    def ready(self) -> bool:
        """Whether the tokens of the oldest of them are on the host."""
        return not self._calls or bool(self._fetched[self._calls[0].place][2].query())

    def begun_of(self, lane: Lane) -> int:
        """Steps of a lane that have begun and are not collected."""
        return sum(call.steps for call in self._calls if lane in call.columns)

    def launch(self, lanes: Sequence[Lane]) -> bool:
        """Begin replays, where the device knows all that they need or is told it now."""
        wanted = self._kind(lanes)
        kind = self._serving(wanted)
        steps, place = self._needed(lanes), 0
        if self._calls:
            # what the calls before were told to force may be of a sequence that is paused by now
            told = self._forces or wanted.asks or any(lane.forced for lane in lanes)
            if told or kind not in self._graphs:
                return False
            place = (self._calls[-1].place + 1) % self.ahead
        self._wanted[wanted] += 1
        self._cache.sync()
        if not self._calls:
            if self._cache.states is not None:
                self._note_ends(lanes)
            self._graph(*kind)
            spare = kind.lanes - len(lanes)
            self._note_forced(lanes, spare)
            if kind.asks:
                self._note_shape(lanes, spare, steps)
        columns = self._place(lanes, kind.lanes)
        self._tick.fill_(place * self.steps)
        graph = self._graphs[kind]
        for _ in range(steps):
            graph.replay()
        tokens, scores, there = self._fetched[place]
        own = slice(place * self.steps, (place + 1) * self.steps)
        tokens.copy_(self._tokens[own], non_blocking=True)
        scores.copy_(self._scores[own], non_blocking=True)
        there.record()
        self._calls.append(_BegunSteps(columns, place, steps))
        return True

    def _needed(self, lanes: Sequence[Lane]) -> int:
        """Steps until the last of these lanes has all that it may draw, no more than a call's."""
        most = 1
        for lane in lanes:
            most = max(most, lane.limit - len(lane.tokens) - self.begun_of(lane))
            if most >= self.steps:
                return self.steps
        return most

    def collect(self, lanes: Sequence[Lane]) -> Collected:
        """Wait for the oldest call's replays and append their tokens."""
        call = self._calls.popleft()
        count, running = len(call.columns), set(lanes)
        if self._seen is not None:  # of a sequence that was paused meanwhile, what nobody takes
            self._seen.forget(lane for lane in call.columns if lane not in running)
        tokens, scores, there = self._fetched[call.place]
        there.synchronize()
        own = [lane for lane in call.columns if lane in running]
        tokens, scores = tokens[: call.steps, :count], scores[: call.steps, :count]
        if not bool(scores.sum().isfinite()):  # all of them are looked at much faster
            _check_finite(scores[:, [call.columns[lane] for lane in own]].sum(0), own)
        asked = any(lane.logprobs for lane in own)
        logprobs = scores.T.tolist() if asked else ()
        drawn_KL = tokens.numpy()
        stopped_L = np.zeros(count, bool)
        for stop in self._stops:
            stopped_L |= (drawn_KL == stop).any(0)
        drawn = zip(*drawn_KL.tolist(), strict=True)  # a list a lane would be garbage
        ending: list[Lane] = []
        for lane, fresh, stopped in zip(call.columns, drawn, stopped_L.tolist(), strict=True):
            if lane not in running:
                continue
            lane.length += call.steps
            if asked or lane.forced:
                lane.take(fresh, logprobs[call.columns[lane]] if asked else ())
            else:
                lane.tokens += fresh
            if stopped or len(lane.tokens) >= lane.limit:
                ending.append(lane)
        return Collected(own, ending, call.steps)

    def drop(self) -> None:
        """Forget what has begun; what comes behind it finds it done."""
        if self._seen is not None:
            self._seen.forget(lane for call in self._calls for lane in call.columns)
        self._calls.clear()

    def _kind(self, lanes: Sequence[Lane]) -> _Kind:
        """The graph that fits lanes best."""
        bucket = self._buckets[bisect_left(self._buckets, len(lanes))]
        adapted = self._bank is not None and any(lane.slot >= 0 for lane in lanes)
        return _Kind(bucket, adapted, any(lane.shaped for lane in lanes))

    def _serving(self, wanted: _Kind) -> _Kind:
        """The graph to run where one is wanted: a larger one, until it has been wanted often.

        Where none is there, it is one of a power of two, which serves others too.
        """
        if wanted in self._graphs or self._wanted[wanted] > WANTED:
            return wanted
        larger = [wanted._replace(lanes=b) for b in self._buckets if 1 <= b / wanted.lanes <= 2]
        there = [kind for kind in larger if kind in self._graphs]
        even = [kind for kind in larger if kind.lanes.bit_count() == 1]
        return (there or even or larger[-1:])[0]

    def _place(self, lanes: Sequence[Lane], bucket: int) -> dict[Lane, int]:
        """Let each lane's numbers lie where the next call looks for them, and tell new ones'."""
        before = self._calls[-1].columns if self._calls else {}
        columns = dict(zip(lanes, range(len(lanes)), strict=True))
        if columns == before:
            return columns
        device, nobody = self._whole.device, self._whole.shape[1] - 1
        from_L = np.full(bucket, nobody)
        from_L[: len(lanes)] = [*map(before.get, lanes, repeat(nobody))]
        at_L = sent(from_L, device)
        for held in (self._whole, self._real):
            held[:, :bucket] = held.index_select(1, at_L)
        at_F = (from_L[: len(lanes)] == nobody).nonzero()[0]
        fresh = [lanes[n] for n in at_F.tolist()]
        if fresh:
            self._stops.update(*[lane.stop_ids for lane in fresh])
            at = sent(at_F, device)
            for held, numbers in zip((self._whole, self._real), self._numbers(fresh), strict=True):
                held.index_copy_(1, at, numbers)
        return columns

    def _numbers(self, lanes: Sequence[Lane]) -> tuple[Tensor, Tensor]:
        """What a step needs to know of lanes, on the device."""
        prefix = self._cache.prefix
        whole = [
            (x.next_token, prefix + x.length, x.row, x.slot, x.key, len(x.tokens)) for x in lanes
        ]
        real = [(x.temperature, x.top_p) for x in lanes]
        # NumPy reads lists faster than PyTorch does
        parts = np.array(whole, np.int64).T.copy(), np.array(real, np.float32).T.copy()
        return sent(parts[0], self._whole.device), sent(parts[1], self._whole.device)

    def _note_ends(self, lanes: Sequence[Lane]) -> None:
        """Tell the device how each lane ends: tokens drawn after that must not enter its state.

        Keys and values behind the end are never read, but a state is one for all tokens.
        """
        most = max(len(lane.stop_ids) for lane in lanes)
        if most >= self._ends.shape[0]:
            shape = (most + 1, self._ends.shape[1])
            self._ends = self._ends.new_zeros(shape)
            self._graphs.clear()  # they hold the smaller one
            self._pool = None
        spare = self._ends.shape[0] - 1
        ends = [[x.limit, *x.stop_ids, *[-1] * (spare - len(x.stop_ids))] for x in lanes]
        put(self._ends[:, : len(lanes)], torch.tensor(ends).T)

    def _note_forced(self, lanes: Sequence[Lane], spare: int) -> None:
        """Tell the device which tokens each lane takes whatever it would draw."""
        forces = any(lane.forced for lane in lanes)
        if not (forces or self._forces):
            return
        rows = [[*x.forced, *[-1] * self.steps][: self.steps] for x in lanes]
        rows += [[-1] * self.steps] * spare
        self._forced.fill_(-1)
        put(self._forced[: self.steps, : len(rows)], torch.tensor(rows).T.contiguous())
        self._forces = forces

    def _note_shape(self, lanes: Sequence[Lane], spare: int, steps: int) -> None:
        """Tell the device each lane's settings and the tokens that it holds before these steps."""
        shape = self._shape
        assert shape is not None
        assert self._seen is not None
        size = len(lanes) + spare
        shape.top_k_R[:size] = torch.tensor([x.top_k for x in lanes] + [0] * spare)
        shape.min_p_R[:size] = torch.tensor([x.min_p for x in lanes] + [0.0] * spare)
        shape.penalty_R[:size] = torch.tensor([x.penalty for x in lanes] + [1.0] * spare)
        self._seen.note(lanes, ahead=steps)  # each of which the captured step marks itself

    def _graph(self, bucket: int, adapted: bool, asks: bool) -> Any:
        key = _Kind(bucket, adapted, asks)
        if asks and self._shape is None:
            lanes, device = self._tokens.shape[1], self._whole.device
            vocab = int(self._model.get_output_embeddings().weight.shape[0])
            self._shape = Shape(
                torch.zeros(lanes, dtype=torch.int64, device=device),
                torch.zeros(lanes, device=device),
                torch.ones(lanes, device=device),
                torch.zeros(lanes, vocab, dtype=torch.bool, device=device),
            )
            self._seen = SeenTokens(self._shape.seen_RV)
        if key not in self._graphs:
            self._whole[:, :bucket] = 0
            self._whole[1, :bucket] = self._cache.prefix
            self._whole[2, :bucket] = self._cache.rows
            self._whole[3, :bucket] = -1
            stream = self._stream
            stream.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(stream):  # compiles what is compiled on first use
                self._tick.zero_()
                self._step(bucket, adapted, asks)
            if self._seen is not None:
                self._seen.forget()
            torch.cuda.current_stream().wait_stream(stream)
            if not capturable(self._model):
                self._graphs[key] = Uncaptured(partial(self._step, bucket, adapted, asks))
                return self._graphs[key]
            # By default a stream of the first GPU that ever captured, whichever this one is.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                self._step(bucket, adapted, asks)
            self._pool = self._pool or graph.pool()
            self._graphs[key] = graph
        return self._graphs[key]

    def _run_lanes(self, bucket: int, adapted: bool) -> Tensor:
        """The logits after each lane's last token, ``[L, V]``."""
        token_L, length_L, row_L, slot_L, _, _ = self._whole[:, :bucket]
        batch = Batch(
            "decode", self._cache, token_L, length_L, row_L, length_L, slot_L,
            lengths=(), pasts=(), rows=(), adapted=adapted,
        )  # fmt: skip
        with applied(self._bank, batch):
            return run_model(self._model, batch, slice(None))

    def _step(self, bucket: int, adapted: bool, asks: bool) -> None:
        logits_LV = self._run_lanes(bucket, adapted)
        token_L, length_L, row_L, _, key_L, count_L = self._whole[:, :bucket]
        temperature_L, top_p_L = self._real[:, :bucket]
        shape = self._shape.rows(bucket) if asks and self._shape else None
        noise_L = uniform(key_L, count_L)
        drawn_L, score_L = ops.sample(logits_LV, temperature_L, top_p_L, noise_L, shape)
        tick = self._tick.expand(1, bucket)
        forced_L = self._forced[:, :bucket].gather(0, tick)[0]
        drawn_L = torch.where(forced_L < 0, drawn_L, forced_L)
        if shape is not None:
            shape.seen_RV.scatter_(1, drawn_L[:, None], True)
        self._tokens[:, :bucket].scatter_(0, tick, drawn_L[None])
        self._scores[:, :bucket].scatter_(0, tick, score_L[None])
        token_L.copy_(drawn_L)
        length_L.add_(1).clamp_(max=self._cache.capacity - 1)
        count_L.add_(1)
        if self._cache.states is not None:
            limit_L, stop_EL = self._ends[0, :bucket], self._ends[1:, :bucket]
            ended_L = (drawn_L == stop_EL).any(0) | (count_L >= limit_L)
            row_L.masked_fill_(ended_L, self._cache.rows)
        self._tick.add_(1)


@dataclass(frozen=True)
class Uncaptured:
    """Runs a step without capturing it, in place of a graph."""

    replay: Callable[[], None]


def capturable(model: Any) -> bool:
    """Whether a model's steps can be captured on its GPU.

    Gemma 3n makes a tensor on the host in each pass, and what the libraries of quantised layers do
    there is theirs. The product of tokens grouped by expert reads
    the groups' sizes there, but in bfloat16 on a GPU of Hopper's kind or later.
    """
    if model.config.get_text_config().model_type == "gemma3n_text":
        return False
    if next(quantized_layers(model), None) is not None:
        return False
    if not any(hasattr(type(module), "_apply_gate") for module in model.modules()):
        return True
    weight = next(model.parameters())
    recent = torch.cuda.get_device_capability(weight.device)[0] in {9, 10}
    return weight.dtype == torch.bfloat16 and recent


def _buckets(lanes: int) -> list[int]:
    """Lane counts worth a graph of their own, the last one ``lanes``."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512]
    sizes += range(640, 4097, 128)
    return [s for s in sizes if s < lanes] + [lanes]
