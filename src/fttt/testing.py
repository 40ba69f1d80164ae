"""Fakes for tests, ours and a user's: a scripted engine, tiny random models, a tiny task.

Nothing here needs a download. The tokenizer is a real one, byte by byte, with a chat template, so
that conversations are formatted exactly as for a real model.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from fttt.engine.request import (
    AdapterSlot,
    AdapterSpec,
    BeamRequest,
    GenerateRequest,
    Generation,
    Trained,
    TrainRequest,
)
from fttt.methods.base import Method
from fttt.models.chat import ChatFormat
from fttt.models.loader import LoadedModel
from fttt.tasks.base import TaskOptions
from fttt.types import FinishReason, Question, Trial, Usage, Verdict
from fttt.verifiers.base import Verifier

__all__ = [
    "FakeEngine",
    "FakeKept",
    "FakeSlot",
    "Scene",
    "TinyTask",
    "TinyVerifier",
    "fake_model",
    "play",
    "save_tiny_model",
    "tiny_model",
    "tiny_tokenizer",
]

_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LOCAL: dict[str, Any] = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"head_dim": 8, "sliding_window": None}),
    "qwen": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _LOCAL),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _LOCAL),
}


@cache
def tiny_tokenizer() -> Any:
    """A ``transformers`` tokenizer of 259 tokens: 256 bytes and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*_SPECIAL, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIAL))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_model(
    family: str = "llama",
    *,
    vocab_size: int = 272,
    layers: int = 2,
    max_context: int = 2048,
    seed: int = 0,
) -> LoadedModel:
    """A random model of a family's shape, in float32 on the CPU, ready in milliseconds.

    Args:
        family: ``llama``, ``mistral``, ``qwen`` (2), ``qwen3``, ``gemma`` (1), ``gemma2`` or
            ``gemma3``.
        vocab_size: rows of the embedding, at least the tokenizer's 259.
        max_context: positions.
        seed: of the weights.
    """
    import torch

    tokenizer = tiny_tokenizer()
    if vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size must be at least {len(tokenizer)}, not {vocab_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _architecture(family, vocab_size, layers, max_context)
    model.eval().requires_grad_(False)
    return LoadedModel(
        name=f"tiny-{family}",
        model=model,
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer),
        stop_ids=(tokenizer.convert_tokens_to_ids("<|im_end|>"),),
        max_context=max_context,
        dtype="float32",
        device="cpu",
    )


def _architecture(family: str, vocab_size: int, layers: int, max_context: int) -> Any:
    if family not in _FAMILIES:
        raise ValueError(f"No family {family!r}; there are {', '.join(_FAMILIES)}.")
    transformers: Any = import_module("transformers")
    config_name, model_name, more = _FAMILIES[family]
    config = getattr(transformers, config_name)(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_context,
        initializer_range=0.3,  # far from ties, so that greedy choices survive rounding
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        **more,
    )
    return getattr(transformers, model_name)(config)


def save_tiny_model(folder: Path, family: str = "llama", **shape: Any) -> Path:
    """Write a tiny model as a folder that ``--model`` takes."""
    loaded = tiny_model(family, **shape)
    model: Any = loaded.model
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def fake_model(max_context: int = 4096) -> LoadedModel:
    """A loaded model without weights, to stand beside a :class:`FakeEngine`."""
    import torch

    tokenizer = tiny_tokenizer()
    return LoadedModel(
        name="fake",
        model=torch.nn.Identity(),
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer),
        stop_ids=(tokenizer.convert_tokens_to_ids("<|im_end|>"),),
        max_context=max_context,
        dtype="float32",
        device="cpu",
    )


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
    loss of a train step is ``1 / (1 + updates so far)``.
    """

    script: Script
    max_length: int = 4096
    idle: int = 0
    """Lanes that it says stand idle, for methods whose answers may be written ahead."""
    seconds: float = 0.0
    """How long each request takes, in wall time."""
    generations: list[GenerateRequest] = field(default_factory=list)
    searches: list[BeamRequest] = field(default_factory=list)
    trainings: list[TrainRequest] = field(default_factory=list)
    slots: list[FakeSlot] = field(default_factory=list)
    kept: list[FakeKept] = field(default_factory=list)
    generated_tokens: int = 0
    closed: bool = False

    def conversation(self, request: GenerateRequest) -> str:
        """What the model was given, as text with its special tokens."""
        return str(tiny_tokenizer().decode(request.prompt_ids))

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
        ids = (*tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], 2)
        finish: FinishReason = "stop"
        if len(ids) > request.max_new_tokens:
            ids, finish = ids[: request.max_new_tokens], "length"
        self.generated_tokens += len(ids)
        return ids, finish

    async def train(self, request: TrainRequest) -> Trained:
        """Count one update."""
        slot = _slot(request.adapter)
        context = request.context
        if slot.closed or (isinstance(context, FakeKept) and context.closed):
            raise RuntimeError("trained on something that was given back")
        self.trainings.append(request)
        await asyncio.sleep(self.seconds)
        losses = tuple(1.0 / (1 + slot.updates) for _ in request.targets)
        slot.updates += 1
        trained = sum(weight != 0 for target in request.targets for weight in target.weights)
        return Trained(sum(losses), losses, trained, self.seconds)

    async def open_adapter(self, spec: AdapterSpec, seed: int) -> AdapterSlot:
        """Hand out a new slot."""
        await asyncio.sleep(0)
        self.slots.append(FakeSlot(spec, seed))
        return self.slots[-1]

    async def close(self) -> None:
        """Remember that the engine was closed."""
        self.closed = True


def _slot(adapter: AdapterSlot) -> FakeSlot:
    if not isinstance(adapter, FakeSlot):
        raise TypeError(f"a FakeEngine trains its own slots, not {adapter!r}")
    return adapter


@dataclass(frozen=True)
class Scene:
    """What a method did when it was played."""

    engine: FakeEngine
    trials: tuple[Trial, ...]
    usage: Usage
    """All that was spent, in the ledger's own count."""


def play(
    method: Method,
    script: Script,
    *,
    question: Question | None = None,
    verifier: Verifier | None = None,
    seed: int = 42,
    max_new_tokens: int = 256,
    max_length: int = 8192,
    idle: int = 0,
    **budget: Any,
) -> Scene:
    """Let a method try one question on a scripted engine.

    Args:
        method: the method, made with its settings.
        script: what the engine writes; see :class:`FakeEngine`.
        question: by default "Write the number 7.", whose gold is 7.
        verifier: by default a :class:`TinyVerifier`.
        seed: of the run.
        max_new_tokens: longest completion.
        max_length: longest conversation.
        idle: lanes that the engine says stand idle.
        budget: fields of the budget section: ``trials``, ``unanswered``, ``token_budget``,
            ``time_budget``.
    """
    from fttt.config import BudgetSection, SamplingSection, build
    from fttt.experiment.adapters import adapter_spec
    from fttt.experiment.progress import Quiet
    from fttt.experiment.session import Bench, QuestionSession
    from fttt.methods import MethodSettings
    from fttt.store import MemoryJournal

    engine, journal = FakeEngine(script, max_length, idle), MemoryJournal()
    sampling = {"max_new_tokens": max_new_tokens}
    bench = Bench(
        engine=engine,
        chat=ChatFormat(tiny_tokenizer()),
        stop_ids=(2,),
        verifier=verifier or TinyVerifier(),
        journal=journal,
        observer=Quiet(),
        seed=seed,
        sampling=build(SamplingSection, sampling, "play()"),
        budget=build(BudgetSection, budget, "play()"),
        adapter_spec=adapter_spec(getattr(method, "settings", MethodSettings())),
        method=method,
    )
    asked = question or TinyTask().load(TaskOptions())[7]

    async def solve() -> Usage:
        session = QuestionSession(asked, bench)
        try:
            await method.solve(asked, session)
            session.end_trials()
        finally:
            session.close()
        return session.ledger.usage

    usage = asyncio.run(solve())
    return Scene(engine, tuple(journal.trials), usage)


class TinyVerifier:
    """Reads the last whole number of a completion; no number is no answer."""

    def __init__(self) -> None:
        self.closed = False

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Compare the last number with the question's gold."""
        answer = self.extract(completion)
        if answer is None:
            return Verdict("unanswered", None, "no number in the completion")
        if answer == question.gold:
            return Verdict("correct", answer)
        return Verdict("incorrect", answer, f"expected {question.gold}")

    def extract(self, completion: str) -> str | None:
        """The last whole number."""
        numbers = re.findall(r"\d+", completion)
        return numbers[-1] if numbers else None

    async def close(self) -> None:
        """Remember that the verifier was closed."""
        self.closed = True


class TinyTask:
    """Ten questions, each of which asks for a number."""

    name: ClassVar[str] = "tiny"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def load(self, options: TaskOptions) -> list[Question]:
        """The questions ``tiny/0`` to ``tiny/9``."""
        return [Question(f"tiny/{n}", f"Write the number {n}.", str(n)) for n in range(10)]

    def verifier(self) -> Verifier:
        """A verifier of numbers."""
        return TinyVerifier()
