"""A reward model as a verifier: a sequence classifier that scores question and answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any
from weakref import WeakValueDictionary

import torch

from fttt.errors import RunError, UsageError, first_line
from fttt.files import from_hub
from fttt.models.loader import context_of, pick_device, pick_dtype, without_bars
from fttt.models.locate import find_model
from fttt.types import Outcome, Question, Verdict

__all__ = ["RewardVerifier", "check_reward_model"]

_CLASSIFIER = "ForSequenceClassification"
_BATCH_TOKENS = 8192
"""Of a pass, padding included."""
_COMPANY_SECONDS = 0.01
"""How long the first answer of a pass waits for others."""


@lru_cache(maxsize=16)
def check_reward_model(name: str) -> Any:
    """The configuration of a reward model; one that gives no reward is refused by it.

    Args:
        name: a hub name or a folder.

    Raises:
        UsageError: there is no such model, or it is no classifier of one or two labels.
    """
    source = find_model(name)
    if source.kind == "gguf":
        raise UsageError(
            f"The reward model {name!r} is a GGUF file; give a hub name or a folder with a "
            "sequence classifier."
        )
    auto: Any = import_module("transformers").AutoConfig
    try:
        with from_hub(source.path):
            config = auto.from_pretrained(source.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The config of the reward model {name!r} cannot be read: {first_line(error)}"
        ) from error
    kinds = getattr(config, "architectures", None) or ["none that its config.json names"]
    if not any(kind.endswith(_CLASSIFIER) for kind in kinds):
        raise UsageError(
            f"The reward model {name!r} is no sequence classifier but {kinds[0]}; give a model "
            f"whose config.json names a class that ends with {_CLASSIFIER}."
        )
    if config.num_labels not in (1, 2):
        raise UsageError(
            f"The reward model {name!r} has {config.num_labels} labels, of which none is known to "
            "be the reward; give one with a single output, or with wrong and right."
        )
    return config


_LOADED: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
"""Classifiers in memory, which verifiers of one model share: the runs of a sweep have one each."""


@dataclass(eq=False)
class _Unscored:
    """An answer that waits for its score."""

    token_ids: tuple[int, ...]
    score: asyncio.Future[float] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class RewardVerifier:
    """Scores question and answer with a sequence classifier; answers that wait share a pass.

    The score is the model's single output, or the log-odds of the second of two labels (right
    against wrong). An answer is correct from ``mark`` on; without one none is, and a run looks for
    the highest score. A reward model is no oracle: what it likes may be wrong.

    The weights are loaded at once, so that an engine plans its memory beside them.
    """

    def __init__(
        self,
        model: str,
        *,
        mark: float | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Load the model.

        Args:
            model: a hub name or a folder with safetensors weights.
            mark: the score from which on an answer is correct.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``auto`` (bfloat16 on a GPU, float32 on a CPU), ``float32``, ``bfloat16`` or
                ``float16``.

        Raises:
            UsageError: there is no such model, or it is no classifier of one or two labels.
            RunError: it does not fit the device.
        """
        config = check_reward_model(model)
        where = pick_device(device)
        path, transformers = find_model(model).path, import_module("transformers")
        tokenizers: Any = transformers.AutoTokenizer
        classifiers: Any = transformers.AutoModelForSequenceClassification
        own = (path, where, pick_dtype(dtype, where))
        self._name, self._mark = model, mark
        try:
            with without_bars(), from_hub(path):
                self._tokenizer = tokenizers.from_pretrained(path, trust_remote_code=False)
                self._model = _LOADED.get(own) or classifiers.from_pretrained(
                    path, dtype=own[2], use_safetensors=True, trust_remote_code=False
                )
            _LOADED[own] = self._model.to(where).eval().requires_grad_(False)
        except torch.OutOfMemoryError:
            raise RunError(f"The reward model {model!r} does not fit on {where}.") from None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"The reward model {model!r} cannot be loaded: {first_line(error)}"
            ) from error
        self._longest = context_of(config)
        self._batch_tokens = _BATCH_TOKENS
        # a classifier on a decoder finds the last token by the padding, so none means one at a time
        self._pad = self._model.config.get_text_config().pad_token_id
        self._waiting: list[_Unscored] = []
        self._passes: asyncio.Task[None] | None = None

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Score the answer in the next pass."""
        start = time.perf_counter()
        ids = self._ids(question.prompt, completion)
        if len(ids) > self._longest:
            detail = f"{len(ids)} tokens are longer than the reward model's context"
            return Verdict("incorrect", detail=detail, failed=True)
        asked = _Unscored(ids)
        self._waiting.append(asked)
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run())
        score = await asked.score
        if not math.isfinite(score):
            return Verdict("incorrect", detail=f"the reward is {score}", failed=True)
        right = self._mark is not None and score >= self._mark
        outcome: Outcome = "correct" if right else "incorrect"
        return Verdict(
            outcome,
            detail=f"reward {score:.4g}",
            seconds=time.perf_counter() - start,
            feedback=f"Your answer was given the score {score:.3g}; a higher one is better.",
            score=score,
        )

    def extract(self, question: Question, completion: str) -> str | None:
        """Nothing: a reward model reads no answer."""
        return None

    async def close(self) -> None:
        """Let what waits go."""
        if self._passes is not None:
            self._passes.cancel()
            await asyncio.gather(self._passes, return_exceptions=True)
        for asked in self._waiting:
            asked.score.cancel()
        self._waiting.clear()

    def _ids(self, prompt: str, answer: str) -> tuple[int, ...]:
        """Question and answer as the model's chat template has them, or as a pair of texts."""
        tokenizer = self._tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return tuple(tokenizer(prompt, answer)["input_ids"])
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _run(self) -> None:
        """Score what waits, pass by pass, in the engine's own thread: a GPU has one at a time."""
        await asyncio.sleep(_COMPANY_SECONDS)
        while self._waiting:
            self._waiting.sort(key=lambda asked: len(asked.token_ids))
            taken = self._waiting[: self._pass_size()]
            try:
                scores = self._scores([asked.token_ids for asked in taken])
            except torch.OutOfMemoryError:
                if len(taken) == 1:
                    self._fail(
                        RunError(
                            f"The reward model {self._name!r} ran out of memory on one answer; "
                            "lower --batch-size, so that the engine leaves room for it."
                        )
                    )
                self._batch_tokens //= 2
                continue
            except Exception as error:
                self._fail(error)
                return
            del self._waiting[: len(taken)]
            for asked, score in zip(taken, scores, strict=True):
                if not asked.score.done():
                    asked.score.set_result(score)
            await asyncio.sleep(0)

    def _fail(self, error: Exception) -> None:
        """Answer all that wait with an error."""
        for asked in self._waiting:
            if not asked.score.done():
                asked.score.set_exception(error)
        self._waiting.clear()

    def _pass_size(self) -> int:
        """How many of the waiting answers, the shortest first, a pass takes."""
        if self._pad is None:
            return 1
        size = 1
        while size < len(self._waiting):
            if (size + 1) * len(self._waiting[size].token_ids) > self._batch_tokens:
                break
            size += 1
        return size

    @torch.no_grad()
    def _scores(self, sequences: Sequence[tuple[int, ...]]) -> list[float]:
        longest = max(map(len, sequences))
        pad = 0 if self._pad is None else self._pad
        device = self._model.device
        padded = [[*ids, *[pad] * (longest - len(ids))] for ids in sequences]
        seen = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]
        logits = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(seen, device=device),
        ).logits.float()
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        found: list[float] = scores.tolist()
        return found
