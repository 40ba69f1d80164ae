"""OpTune's training examples: attempts at training questions, and the questions' gold solutions.

An example is a failed conversation (question, attempt, feedback), whose gradient the network reads,
and the gold solution that the changed model should give. Token ids are the sampled ones; nothing is
tokenised again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from fttt.engine.ops.sampling import derive_key
from fttt.errors import UsageError
from fttt.models.chat import ChatFormat
from fttt.models.locate import same_model
from fttt.optune.checkpoint import Ablation
from fttt.store import Run
from fttt.training import GoldExample
from fttt.types import Completion, Trial, user

__all__ = [
    "AttemptExample",
    "attempt_examples",
    "check_attempts",
    "conversation_ids",
    "in_windows",
    "with_ablation",
]

FRESH = ("sample", "best-of-n", "self-consistency", "greedy")
"""Methods whose trials are independent answers of the base model to the question alone."""


@dataclass(frozen=True, slots=True)
class AttemptExample:
    """One attempt and the gold solution."""

    key: str
    """Question and trial, which name its random stream."""
    conversation_ids: tuple[int, ...]
    """Question, attempt and feedback."""
    gold: GoldExample


def check_attempts(run: Run, model: str, task: str) -> None:
    """Refuse a run folder whose trials are not attempts of this model at this task.

    Raises:
        UsageError: another model, another task, no trials, or trials that depend on earlier ones.
    """
    where = f"The attempts in {str(run.path)!r}"
    if not same_model(run.model, model):
        raise UsageError(
            f"{where} were made by the model {run.model!r}, not by {model!r}, so their token ids "
            f"mean other tokens; train with --model {run.model} or generate attempts of "
            f"{model!r}."
        )
    if run.task != task:
        raise UsageError(
            f"{where} are at the task {run.task!r}, not {task!r}; train with --task {run.task} or "
            "generate attempts at the other task."
        )
    if run.method not in FRESH:
        raise UsageError(
            f"{where} were made by {run.method!r}, whose trials are not independent answers; "
            f"use a run of {', '.join(FRESH)} (`fttt optune generate` makes one)."
        )
    if any(not trial.token_ids for trial in run.trials):
        raise UsageError(
            f"{where} were written by a server that gives no token ids, which training needs; "
            "generate attempts with the model's weights."
        )
    if not run.trials:
        raise UsageError(f"{where} are missing: the run has no trials yet; resume that run first.")


def conversation_ids(
    chat: ChatFormat, prompt: str, attempt: Trial, feedback: str
) -> tuple[int, ...]:
    """Ids of question, attempt and feedback, as the method ``optune`` gives them to the engine."""
    said = Completion(
        attempt.completion,
        attempt.token_ids,
        attempt.finish_reason,
        attempt.generation,
        thought=attempt.thought,
        thought_tokens=attempt.thought_tokens,
    )
    return chat.conversation_ids(prompt, (said, user(feedback)), header=False)


def attempt_examples(
    run: Run,
    golds: Mapping[str, GoldExample],
    chat: ChatFormat,
    *,
    feedback: str,
    attempts: Literal["wrong", "all"] = "wrong",
    max_attempts: int | None = None,
    max_length: int,
) -> tuple[list[AttemptExample], int]:
    """The examples of a run's attempts, by question, and the number of attempts that were too long.

    Args:
        run: see :func:`check_attempts`.
        chat: the model's chat format.
        golds: gold solutions by question id; questions without one are left out.
        feedback: the user's turn after an attempt.
        attempts: whether correct attempts are used, too.
        max_attempts: maximum attempts of each question; the first ones are used.
        max_length: maximum tokens of a conversation, and of a question with its solution.

    Raises:
        UsageError: no example is left.
    """
    examples: list[AttemptExample] = []
    too_long = 0
    for record in run.records:
        gold = golds.get(record.question.id)
        if gold is None:
            continue
        chosen = [t for t in record.trials if attempts == "all" or t.verdict != "correct"]
        for trial in chosen[:max_attempts]:
            ids = conversation_ids(chat, record.question.prompt, trial, feedback)
            if max(len(ids), gold.length) > max_length:
                too_long += 1
                continue
            examples.append(AttemptExample(f"{trial.question_id}#{trial.trial}", ids, gold))
    if not examples:
        raise UsageError(
            f"No attempt of {str(run.path)!r} is left to train on ({too_long} are longer than "
            f"{max_length} tokens, with --attempts {attempts}); generate more, use --attempts all, "
            "or raise --max-length."
        )
    return examples, too_long


def with_ablation(examples: Sequence[AttemptExample], ablation: Ablation) -> list[AttemptExample]:
    """The examples with conversations that do not show what went wrong.

    ``shuffle-attempts`` gives each example the conversation of another question's example;
    ``constant-input`` gives all of them the first one's. The gold solutions stay. The network can
    then learn the style of gold solutions, but not how to use feedback.

    Raises:
        UsageError: there are too few other questions to take attempts from.
    """
    if ablation == "none":
        return list(examples)
    if ablation == "constant-input":
        return [replace(e, conversation_ids=examples[0].conversation_ids) for e in examples]
    ids = [e.gold.question_id for e in examples]
    most = max(Counter(ids).values())
    if 2 * most > len(ids):
        raise UsageError(
            f"--shuffle-attempts has too few other questions: {most} of {len(ids)} attempts are at "
            "one of them; generate attempts at more questions."
        )
    # a question's examples are adjacent, so a shift by the longest block moves each out of its own
    moved = [*examples[most:], *examples[:most]]
    return [
        replace(e, conversation_ids=other.conversation_ids)
        for e, other in zip(examples, moved, strict=True)
    ]


def in_windows(
    examples: Sequence[AttemptExample], window: int, seed: int, first: int = 0
) -> Iterator[list[AttemptExample]]:
    """Endless windows from number ``first`` on, epoch by epoch, each epoch in an order of its own.

    The last window of an epoch holds the remaining examples.
    """
    per_epoch = -(-len(examples) // window)
    epoch, skip = divmod(first, per_epoch)
    while True:
        key = derive_key("order", seed, epoch) & (2**63 - 1)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(key)).tolist()
        for start in range(skip * window, len(examples), window):
            yield [examples[i] for i in order[start : start + window]]
        epoch, skip = epoch + 1, 0
