"""Train passes of short targets, captured as graphs of a GPU and replayed.

Such a pass, as that of FTTT's feedback, is bound by launching kernels: forward, backward and the
attention between them are thousands. A graph launches them at once, but only for the shape that it
was captured with. So segments are padded: behind their ends with tokens that carry no loss and are
seen by nobody, and in number with segments of a row that is empty. How much is read of a row is no
part of the shape: the device knows it. Few shapes then serve, and each question's loss and gradient
stay its own.

Axes: N packed tokens, B segments, each of a slot of its own, P adapter parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fttt.engine.batch import Batch, Ragged, Segment, put
from fttt.engine.cache import KVCache
from fttt.engine.decoder import capturable
from fttt.engine.families import has_experts
from fttt.engine.request import Target
from fttt.engine.states import Mixers
from fttt.engine.train_step import LossTerms, pass_loss

if TYPE_CHECKING:
    from fttt.engine.adapters.lora import LoRABank

__all__ = ["Capture", "CapturedPasses", "GraphCapture", "Replay", "can_capture", "round_up"]

AFTER = 4
"""Passes of a shape that run uncaptured, before it is worth a capture, which gains half a pass each
time and costs two: so it never loses more than twice the best possible."""
TOKENS = 4096
"""Of the largest pass that is captured: a larger one keeps the GPU busy while it is launched."""
HELD = 0.5
"""Of the bytes that a token is planned with, which serve any architecture, what it about takes."""
SHAPES = 8
"""That are held at once; their memory is one pool, as large as the largest needs."""

Replay = Callable[[], None]
Capture = Callable[[Replay], Replay | None]
"""``None``: the step cannot be captured."""


class PassShape(NamedTuple):
    """Of a pass: segments, and tokens of each."""

    segments: int
    tokens: int

    def serves(self, other: PassShape) -> bool:
        """Whether a pass of another shape can run in this one, at no more than twice the work."""
        return (
            all(own >= needed for own, needed in zip(self, other, strict=True))
            and self.segments * self.tokens <= 2 * other.segments * other.tokens
        )


def can_capture(model: Any) -> bool:
    """Whether a model's train passes can be captured, on the GPU where it is.

    Layers that carry a state, and experts, ask the host in the middle of a pass. What else does is
    found when a step is first captured (:class:`HostCalls`).
    """
    on_gpu = model.device.type == "cuda" and capturable(model)
    return on_gpu and not has_experts(model) and not Mixers(model)


HOST = frozenset({"_local_scalar_dense", "lift_fresh", "masked_select", "nonzero"})
"""Operations in which the host takes part wherever their tensors are."""


class HostCalls(TorchDispatchMode):
    """Notes which operations of a step a graph cannot have, since the host takes part in them.

    A model's own code may make a tensor of a list, say, or read one.
    """

    def __init__(self, *, gpu: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        homes = {x.device.type for x in tensors if x.dim()}
        by_mask = name in {"index", "index_put", "index_put_"} and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        if name in HOST or by_mask or (self._gpu and "cpu" in homes):
            self.names.add(name)
        return out


class GraphCapture:
    """Captures steps as graphs that share one pool of memory, since they run one after another."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool: Any = None

    def __call__(self, step: Replay) -> Replay | None:
        """Run a step once, which compiles what is compiled on first use, and capture it."""
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), HostCalls() as calls:
            step()
        torch.cuda.current_stream().wait_stream(stream)
        if calls.names:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            step()
        self._pool = self._pool or graph.pool()
        return graph.replay


class CapturedPasses:
    """The captured passes of one bank."""

    def __init__(
        self,
        bank: LoRABank,
        cache: KVCache,
        token: float,
        room: int,
        capture: Callable[[], Capture] = GraphCapture,
    ) -> None:
        """Hold no more than planned.

        Args:
            token: bytes that a token of a pass takes.
            room: bytes that all captured passes may hold.
        """
        self._bank, self._cache = bank, cache
        self._token, self._room = token, room
        self._make = capture
        self._capture: Capture | None = None
        self._off = False
        self._seen: Counter[PassShape] = Counter()
        self._passes: dict[PassShape, _CapturedPass] = {}

    def run(
        self, segments: Sequence[Segment], targets: Sequence[Target], numbers: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """The losses of targets ``[B]`` and their gradient ``[B, P]``, or ``None``: run it plainly.

        ``numbers`` are those of the targets among all of their question's.
        """
        longest = max(len(segment.token_ids) for segment in segments)
        needed = PassShape(len(segments), longest)
        if self._off or not self._simple(segments, targets):
            return None
        serving = [shape for shape in self._passes if shape.serves(needed)]
        if serving:
            own = self._passes[min(serving)]
        else:
            rounded = PassShape(round_up(len(segments), 2), round_up(longest, 4))
            self._seen[rounded] += 1
            if self._seen[rounded] <= AFTER or not self._affords(rounded):
                return None
            while len(self._passes) >= SHAPES:
                del self._passes[next(iter(self._passes))]
            self._capture = self._capture or self._make()
            own = _CapturedPass(self._bank, self._cache, rounded, self._capture)
            self._off = own.replay is None
            if self._off:
                return None
            self._passes[rounded] = own
        keys_B = self._bank.dropout_keys([segment.slot for segment in segments], numbers)
        return own.run(segments, targets, keys_B)

    def _simple(self, segments: Sequence[Segment], targets: Sequence[Target]) -> bool:
        """Whether each segment has a slot of its own, and a loss of labels only."""
        slots = {segment.slot for segment in segments}
        labels = all(target.teacher is None and target.form == "nll" for target in targets)
        return labels and len(slots) == len(segments)

    def _affords(self, shape: PassShape) -> bool:
        """Whether a shape's pass is small enough to be captured, and its memory to be held."""
        tokens = shape.segments * shape.tokens
        held = HELD * tokens * self._token
        held += 16 * shape.segments * self._bank.parameters  # weights, gradients, and copies
        return tokens <= TOKENS and held <= self._room


def round_up(number: int, sizes: int) -> int:
    """The next larger of so many numbers between each power of two and the next."""
    step = max(1, (1 << max(0, (number - 1).bit_length() - 1)) // sizes)
    return -(-number // step) * step


class _CapturedPass:
    """A pass of one shape, and the tensors that it reads and writes."""

    def __init__(
        self,
        bank: LoRABank,
        cache: KVCache,
        shape: PassShape,
        capture: Capture,
    ) -> None:
        self._bank, self._cache, self._shape = bank, cache, shape
        device, count, tokens = cache.device, shape.segments, shape.segments * shape.tokens
        self._ragged = Ragged((shape.tokens,) * count, device)
        # made here and held by it, since they come from the host
        self._owner_N, _ = self._ragged.owner_N, self._ragged.span_2B
        self._at_N = torch.arange(tokens, device=device)
        self._by_token = torch.zeros(4, tokens, dtype=torch.int64, device=device)
        self._loss_weight_N = torch.zeros(tokens, device=device)
        self._by_segment = torch.zeros(3, count, dtype=torch.int64, device=device)
        self._key_B: Tensor | None = None
        if bank.spec.dropout:
            self._key_B = torch.zeros(count, dtype=torch.int64, device=device)
        self._weights_BP = torch.zeros(count, bank.parameters, device=device)
        self._gradient_BP = torch.zeros_like(self._weights_BP)
        self._loss_B = torch.zeros(count, device=device)
        self._note((), ())
        self.replay = capture(self._step)

    def run(
        self, segments: Sequence[Segment], targets: Sequence[Target], keys_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses and gradient of no more segments than the shape has."""
        self._cache.sync()
        self._note(segments, targets)
        if self._key_B is not None and keys_B is not None:
            self._key_B[: len(segments)] = keys_B
        slot_B = self._by_segment[2]
        torch.index_select(self._bank.weights_SP, 0, slot_B, out=self._weights_BP)
        assert self.replay is not None
        self.replay()
        count = len(segments)
        return self._loss_B[:count].clone(), self._gradient_BP[:count].clone()

    def _note(self, segments: Sequence[Segment], targets: Sequence[Target]) -> None:
        """Tell the device what the pass is about; where segments are missing, empty ones run."""
        length, prefix, rows = self._shape.tokens, self._cache.prefix, self._cache.rows
        spare = self._shape.segments - len(segments)
        ids: list[int] = []
        at: list[int] = []
        whole: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        for segment, target in zip(segments, targets, strict=True):
            own, past = len(segment.token_ids), prefix + segment.past
            more = length - own
            ids += [*segment.token_ids, *[0] * more]
            # what pads is at the last token's place, since models may know no later one
            places = [*range(past, past + own), *[past + own - 1] * more]
            at += places
            end = prefix + segment.whole if segment.whole else past + own
            whole += [max(end, place + 1) for place in places]
            labels += [*target.token_ids, *[0] * more]
            weights += [*target.weights, *[0.0] * more]
        nothing = [0] * (spare * length)
        at_nothing = [prefix] * len(nothing)
        by_token = [ids + nothing, at + at_nothing, whole + at_nothing, labels + nothing]
        by_segment = [
            [rows if x.row < 0 else x.row for x in segments] + [rows] * spare,
            [prefix + x.past for x in segments] + [prefix] * spare,
            [x.slot for x in segments] + [0] * spare,
        ]
        put(self._by_token, by_token)
        put(self._by_segment, by_segment)
        put(self._loss_weight_N, weights + [0.0] * len(nothing))

    def _step(self) -> None:
        """Forward and backward, from and to the pass's own tensors, without asking the host."""
        count, length = self._shape
        ids_N, at_N, whole_N, label_N = self._by_token
        row_B, past_B, slot_B = self._by_segment
        cache = self._cache
        batch = Batch(  # how much each row holds, the device alone knows
            "train", cache, ids_N, at_N, row_B, past_B, slot_B,
            lengths=(length,) * count, pasts=(cache.capacity,) * count, rows=(cache.rows,) * count,
            adapted=True, slots=tuple(range(count)), recompute=False,
        )  # fmt: skip
        batch.ragged, batch.whole_N = self._ragged, whole_N
        weights_BP = self._weights_BP.detach().requires_grad_()
        terms = LossTerms(self._at_N, self._owner_N, label_N[:, None], self._loss_weight_N[:, None])
        with torch.enable_grad(), self._bank.applied(batch, weights_BP, self._key_B):
            total, loss_B = pass_loss(self._bank.model, batch, terms)
            (gradient_BP,) = torch.autograd.grad(total, weights_BP)
        self._gradient_BP.copy_(gradient_BP)
        self._loss_B.copy_(loss_B)
