"""Whether the engine computes what a model's own code does, found out before anything is run.

A few log-probabilities of two random prompts are taken through every way that the engine has for
tokens, and held against the model's own forward pass over whole sequences:

- prefill and decode of the long prompt alone;
- prefill and decode of both and of the long one with a question's own low-rank weights, all in the
  same passes, where a neighbour must change nothing;
- a decode step whose earlier tokens are read through a table of rows, as those of a beam search:
  the last of the step before, where one more row continues another's sequence;
- one pass over whole sequences laid end to end, as learners take it;
- a train pass after cached tokens, with one question's low-rank weights, beside a question without.

A pass over a few tokens takes as long as reading the model's weights, or as launching its kernels,
so what counts is how many passes there are: nine, the model's own among them.

The model's own pass takes its ``eager`` attention, since ``sdpa`` drops what it cannot do (as Gemma
2's softcap).

The tolerance is measured, not set: the model's own pass has a row with rounding errors added to the
output of each layer, and the engine may be a few times as far away as that. Where a token's experts
are chosen, rounding may choose others, and what follows is another computation; so a model with
experts is tried on other prompts too before it is refused: a fault shows in all of them.

Windows and chunks of real models are thousands of tokens long. While the check runs they are cut to
a few tokens, in the model's configuration and in its layers, for both sides, so that the long
prompt reaches past all of them. What is not covered: positions past a few dozen (scaled rotary
frequencies there are held by the tests of each rotary type), and a captured decode step's replay.
What passed is noted under ``checks`` in fttt's cache folder, by the model's fingerprint and the
versions of torch, transformers and this package, and is not tried again.

Axes: M compared positions, V vocabulary, C compared tokens of a position, T tokens of a row of the
model's own pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import torch
import transformers
from torch import Tensor, nn

from fttt.engine.adapters.lora import LoRABank, target_layers
from fttt.engine.batch import Batch, Mode, Segment
from fttt.engine.cache import KVCache
from fttt.engine.families import has_experts, interface
from fttt.engine.ops import current_device
from fttt.engine.request import LoRASpec
from fttt.engine.sequences import pack_sequences, prepared, run_model
from fttt.engine.states import Mixers
from fttt.errors import UsageError
from fttt.models import cache_folder
from fttt.models.quantized import is_plain, stored_tensors

__all__ = ["check_outputs", "find_difference"]

LONG, SHORT, NEW = 23, 5, 2
"""Tokens of the two prompts, and of what follows each of them; the last token of the long one
begins a chunk."""
TRAINED = 20
"""The place in the long text from which a train pass takes it."""
ROWS = 4
"""Of the model's own pass: both texts, and the long one shaken and with low-rank weights."""
SHAKEN, ADAPTED_ROW = 2, 3
WINDOW = 6
"""What larger windows and chunks are cut to."""
WINDOWS = ("sliding_window", "attention_chunk_size", "floor_scale")
"""Attributes of configurations and layers that say from where on a token sees or scales less."""
TIMES = 5.0
"""How many times as far as rounding moves the model's own outputs the engine's may be from them."""
PROMPTS = 8
"""Pairs of prompts that a model with experts is tried on, in the dtypes of two bytes."""
LEAST = {torch.float32: 2e-4, torch.float16: 5e-3, torch.bfloat16: 0.03}
"""A difference of mean log-probabilities that is never held against the engine."""
COMPARED = 16
"""C: the most probable tokens of each position."""
ADAPTED = (
    *("q_proj", "v_proj", "query_key_value", "qkv_proj", "q_b_proj", "kv_b_proj", "Wqkv"),
    *("in_proj", "in_proj_qkv", "in_proj_qkvz"),
)
"""Linear layers that carry the check's adapter, those of them that a model has."""

RIGHT = {"falcon": "sdpa"}
"""Attention that is right where ``eager`` is not: Falcon's adds ALiBi twice."""

_passed: WeakSet[nn.Module] = WeakSet()


def check_outputs(model: Any, name: str) -> None:
    """Refuse a model whose outputs the engine cannot reproduce.

    Args:
        model: of ``transformers``, frozen, in evaluation mode, as it was loaded.
        name: as the user calls it.

    Raises:
        UsageError: what the engine computes is not what the model's own code does.
    """
    if model in _passed:
        return
    note = cache_folder("checks") / f"{_fingerprint(model)}.json"
    if not note.is_file():
        begun = time.perf_counter()
        with current_device(model.device):
            fault = find_difference(model)
        if fault is not None:
            raise UsageError(
                f"The model {name!r} ({type(model).__name__}) is not supported: {fault}; "
                "docs/models.md names the models that are."
            )
        _note(note, {"model": name, "seconds": round(time.perf_counter() - begun, 2)})
    _passed.add(model)


def find_difference(model: Any) -> str | None:
    """What differs between the engine's outputs and the model's own, or ``None``."""
    reference = interface(model, RIGHT.get(model.config.model_type, "eager"))
    try:
        with torch.no_grad(), _narrowed(model), ExitStack() as stack:
            for config, name, value in reference:
                stack.enter_context(patch.object(config, name, value))
            tries = PROMPTS if has_experts(model) and model.dtype.itemsize < 4 else 1
            for seed in range(tries):
                fault = _Check(model, seed).run()
                if fault is None:
                    break
            return fault
    except torch.OutOfMemoryError:
        raise
    except UsageError as error:  # attention with an argument that the engine does not know
        said = str(error).rstrip(".")
        return said[:1].lower() + said[1:]
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        return f"its code does not run under the engine ({type(error).__name__}: {first})"


@dataclass(frozen=True)
class _Text:
    """Random token ids, the first of them a prompt."""

    ids: tuple[int, ...]
    prompt: int


class _Check:
    """One model's check."""

    def __init__(self, model: Any, seed: int) -> None:
        """``seed`` is of the prompts."""
        self._model = model
        vocabulary = model.config.get_text_config().vocab_size
        first = vocabulary // 4  # special tokens lie at either end
        generator = torch.Generator().manual_seed(seed)
        total = LONG + SHORT + 2 * NEW
        ids = (first + torch.randint(0, first, (total,), generator=generator)).tolist()
        self._long = _Text(tuple(ids[: LONG + NEW]), LONG)
        self._short = _Text(tuple(ids[LONG + NEW :]), SHORT)
        self._both = (self._long, self._short)
        self._bank = _small_bank(model)

    def run(self) -> str | None:
        """What differs first, if anything."""
        model, bank = self._model, self._bank
        mixers = Mixers(model)
        try:
            *base, moved, adapted = self._own()
            tolerance = TIMES * _distance(moved, base[0])
            tolerance = max(tolerance, LEAST.get(model.dtype, LEAST[torch.bfloat16]))
            with prepared(model):
                cache = KVCache.of(model, rows=4, capacity=64, mixers=mixers)
                for _ in range(cache.rows):
                    cache.take(64)
                for way, compared in self._ways(cache, base, adapted):
                    far = max(_distance(got, wanted) for got, wanted in compared)
                    if not far <= tolerance:
                        return (
                            f"{way} gives log-probabilities {far:.2g} away from those of its own "
                            f"forward pass, where rounding explains {tolerance:.2g}"
                        )
        finally:
            if bank is not None:
                bank.detach()
        return None

    def _ways(
        self, cache: KVCache, base: Sequence[Tensor], adapted: Tensor
    ) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
        """Each way through the engine, and what it gives beside what is right."""
        long, short = self._both
        right, right_short, right_adapted = (
            outputs[text.prompt - 1 :]
            for text, outputs in ((long, base[0]), (short, base[1]), (long, adapted))
        )
        way = "a prompt alone"
        (got,) = self._generated([(long, -1)], cache)
        yield f"prefill of {way}", [(got[:1], right[:1])]
        yield f"decoding after {way}", [(got, right)]
        texts, way = [(short, -1), (long, -1)], "a prompt beside a longer one"
        if self._bank is not None:
            texts.append((long, 0))
            way += " and one with low-rank weights"
        got_short, got, *own, other = self._generated(texts, cache, scattered=True)
        both = [(got_short, right_short), (got, right)]
        yield f"prefill of {way}", [(g[:1], w[:1]) for g, w in both]
        yield f"decoding after {way}", [(g[:NEW], w[:NEW]) for g, w in both]
        yield "decoding through a table of rows", [*both, (other, right[-1:])]
        if own:
            yield "decoding with low-rank weights", [(own[0], right_adapted)]
        batch = pack_sequences(self._model, [text.ids for text in self._both])
        logits = run_model(self._model, batch, slice(None)).split(batch.lengths)
        yield "a pass over two sequences end to end", list(zip(logits, base, strict=True))
        wanted = [adapted[TRAINED:], base[1][2:]]
        trained = self._trained(cache)
        yield "a train pass after cached tokens", list(zip(trained, wanted, strict=True))

    def _own(self) -> list[Tensor]:
        """Logits of the model's own code in one pass, ``[T, V]`` each: both texts', then the long
        one's with rounding errors, and with low-rank weights where a bank is there.

        The short text's row is filled up with tokens that it cannot see.
        """
        long, short = self._long.ids, self._short.ids
        rows = [long, short + long[len(short) :], long, long]
        ids = torch.tensor(rows, device=self._model.device)
        with _shaken(self._model), _low_rank(self._model, self._bank):
            logits = self._model(input_ids=ids, use_cache=False).logits
        return [logits[0], logits[1, : len(short)], logits[SHAKEN], logits[ADAPTED_ROW]]

    def _run(self, mode: Mode, segments: Sequence[Segment], cache: KVCache) -> list[Tensor]:
        """Logits of each segment."""
        return self._logits(Batch.pack(mode, segments, cache))

    def _logits(self, batch: Batch) -> list[Tensor]:
        """Logits of each segment of a pass."""
        with self._bank.applied(batch) if self._bank else nullcontext():
            return list(run_model(self._model, batch, slice(None)).split(batch.lengths))

    def _generated(
        self, texts: Sequence[tuple[_Text, int]], cache: KVCache, *, scattered: bool = False
    ) -> list[Tensor]:
        """Logits after each prompt and each of its next tokens, ``[1 + NEW, V]``.

        Each text is in the row of its number, and has the weights of the slot beside it.
        ``scattered``: the last step reads its rows through a table, and one more row takes it,
        whose earlier tokens lie in the second row; what that gives, ``[1, V]``, comes last.
        """
        prompts = [Segment(t.ids[: t.prompt], n, 0, slot) for n, (t, slot) in enumerate(texts)]
        steps = [[logits[-1:] for logits in self._run("prefill", prompts, cache)]]
        for past in range(NEW):
            tokens = [
                Segment(t.ids[t.prompt + past :][:1], n, t.prompt + past, slot)
                for n, (t, slot) in enumerate(texts)
            ]
            if scattered and past == NEW - 1:
                steps.append(self._scattered(tokens, cache))
            else:
                steps.append(self._run("decode", tokens, cache))
        further = steps[-1][len(texts) :]
        return [torch.cat(logits) for logits in zip(*steps, strict=False)] + further

    def _scattered(self, tokens: list[Segment], cache: KVCache) -> list[Tensor]:
        """Logits of a decode step whose last row continues the second row's sequence."""
        source, token = tokens[1].row, replace(tokens[1], row=cache.rows - 1)
        if cache.states is not None:  # the row's state is that of its source
            cache.states.saw(token.row, token.past)
        batch = Batch.pack("decode", [*tokens, token], cache)
        source_B = batch.row_B.clone()
        source_B[-1] = source
        batch.source_B = source_B
        batch.row_of_BS = source_B[:, None].expand(-1, cache.capacity).int().contiguous()
        return self._logits(batch)

    def _trained(self, cache: KVCache) -> list[Tensor]:
        """Logits of a train pass over both texts from within their prompts on, the long one with
        the weights of its own.

        It takes the earlier tokens that :meth:`_generated` left in the cache.
        """
        slot, row = (-1, 1) if self._bank is None else (0, 2)
        parts = (self._long, row, TRAINED, slot), (self._short, 0, 2, -1)
        if cache.states is not None:  # a row's state stands after all that it has seen
            before = [Segment(t.ids[:past], row, 0, own) for t, row, past, own in parts]
            self._run("prefill", before, cache)
        segments = [Segment(t.ids[past:], row, past, own) for t, row, past, own in parts]
        return self._run("train", segments, cache)


def _distance(got: Tensor, wanted: Tensor) -> float:
    """The mean difference of log-probabilities over each position's most probable tokens."""
    if got.shape != wanted.shape:
        return float("inf")
    got_MV, wanted_MV = (x.float().log_softmax(-1) for x in (got, wanted))
    top_MC = wanted_MV.topk(min(COMPARED, wanted_MV.shape[-1])).indices
    apart_MC = (got_MV.gather(1, top_MC) - wanted_MV.gather(1, top_MC)).abs()
    far = float(apart_MC.mean())
    return far if far == far else float("inf")


def _small_bank(model: Any) -> LoRABank | None:
    """One question's own weights, whose effect can be seen; ``None`` where no layer takes them."""
    linear = {
        name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    targets = tuple(name for name in ADAPTED if name in linear)
    if not targets:
        return None
    bank = LoRABank(model, LoRASpec(targets=targets, dropout=0.0), 1, model.device)
    bank.fill(0, seed=0)
    generator = torch.Generator().manual_seed(0)
    for (_, b_OR), layer in zip(
        bank.factors(0), target_layers(model, bank.spec).values(), strict=True
    ):
        size = 0.1 * _gain(layer, generator, model)
        b_OR.copy_(size * torch.randn(b_OR.shape, generator=generator))
    return bank


def _gain(layer: nn.Linear, generator: torch.Generator, model: Any) -> float:
    """The deviation of a layer's outputs, of inputs whose deviation is 1."""
    if is_plain(layer):
        return float(layer.weight.float().std() * layer.in_features**0.5)
    x_RI = torch.randn(8, layer.in_features, generator=generator)  # its weights may be packed
    out_RO: Tensor = layer(x_RI.to(model.device, model.dtype))
    return float(out_RO.float().std())


@contextmanager
def _low_rank(model: Any, bank: LoRABank | None) -> Iterator[None]:
    """The same weights in the model's own code, as a linear layer's definition has them, for the
    tokens of one row.
    """

    def hook(a_RI: Tensor, b_OR: Tensor, scale: float) -> Callable[..., Tensor]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x_TI = inputs[0].reshape(ROWS, -1, inputs[0].shape[-1])[ADAPTED_ROW]
            added = output.clone()
            row_TO = added.view(ROWS, -1, output.shape[-1])[ADAPTED_ROW]
            row_TO += ((x_TI.float() @ a_RI.T) @ b_OR.T * scale).to(output.dtype)
            return added

        return add

    if bank is None:
        yield
        return
    with ExitStack() as stack:
        for layer, (a_RI, b_OR) in zip(
            target_layers(model, bank.spec).values(), bank.factors(0), strict=True
        ):
            made = hook(a_RI, b_OR, bank.scale)
            stack.callback(layer.register_forward_hook(made).remove)
        yield


@contextmanager
def _shaken(model: Any) -> Iterator[None]:
    """Change one row of each layer's output by about a rounding error of its dtype, up or down."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = max(stacks, key=len, default=())
    generator = torch.Generator().manual_seed(0)

    def shake(_: nn.Module, __: Any, output: Any) -> Any:
        x = (output if isinstance(output, Tensor) else output[0]).clone()
        row = x[SHAKEN]
        sign = torch.randint(0, 2, row.shape, generator=generator).to(x.device, x.dtype) * 2 - 1
        row *= 1 + sign * torch.finfo(x.dtype).eps
        return x if isinstance(output, Tensor) else (x, *output[1:])

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(shake).remove)
        yield


@contextmanager
def _narrowed(model: Any) -> Iterator[None]:
    """Cut windows and chunks to a few tokens, wherever the model holds them."""
    holders: dict[int, Any] = {id(m): m for m in model.modules()}
    for module in (model, *list(holders.values())):
        config = getattr(module, "config", None)
        if config is not None:
            for own in (config, config.get_text_config()):
                holders[id(own)] = own
    with ExitStack() as stack:
        for holder in holders.values():
            for name in WINDOWS:
                value = getattr(holder, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > LONG - WINDOW:
                    stack.enter_context(patch.object(holder, name, WINDOW))
        yield


def _fingerprint(model: Any) -> str:
    """A digest of a model's shape and some of its weights, of the device and of all code."""
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    device = torch.device(model.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    names = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
    held = [x.detach() for p in model.parameters() for x in stored_tensors(p)]
    some = [x.flatten()[:: max(1, x.numel() // 3)][:3] for x in held]
    values = torch.cat([x.float() for x in some]).tolist()
    versions = (torch.__version__, transformers.__version__, _own_code())
    whole = (type(model).__name__, config, where, names, values, versions)
    return hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()


@cache
def _own_code() -> str:
    """A digest of the engine's sources, so that what another version found is not trusted."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _note(file: Path, facts: dict[str, Any]) -> None:
    """Write what passed; a folder that cannot be written only means that it is tried again."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({**facts, **versions}) + "\n", encoding="utf-8")
        scratch.replace(file)
    except OSError:
        pass
