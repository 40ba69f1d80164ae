"""What fine-tuning and OpTune's training share: gold solutions and the precision of training.

Both learn from the gold solutions of a training split, as token ids: the same prompts and the same
solutions, formatted as an attempt is when it is generated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fttt.errors import UsageError
from fttt.models.chat import ChatFormat
from fttt.tasks.task import Task
from fttt.types import Question

__all__ = [
    "GoldExample",
    "check_trainable",
    "gold_examples",
    "held_out",
    "refuse_float16",
]


@dataclass(frozen=True, slots=True)
class GoldExample:
    """A question and the solution to learn."""

    question_id: str
    prompt_ids: tuple[int, ...]
    """The user's turn and the header of the answer, as in a trial."""
    solution_ids: tuple[int, ...]
    """The solution with the token that ends an answer: the tokens that carry the loss."""

    @property
    def length(self) -> int:
        """Tokens of prompt and solution."""
        return len(self.prompt_ids) + len(self.solution_ids)


def check_trainable(task: Task, split: str) -> None:
    """Refuse a task without a training split, and a split that is not for training.

    Raises:
        UsageError: the split does not exist, or is the test split.
    """
    others = [name for name in task.splits if name != "test"]
    if not others:
        raise UsageError(
            f"The task {task.name!r} has no training split, only {task.splits[0]!r}; train on "
            "another task (mbpp for code) and evaluate on this one."
        )
    if split not in others:
        raise UsageError(
            f"The task {task.name!r} is not trained on its split {split!r}; "
            f"choose from {', '.join(others)}."
        )


def gold_examples(questions: Sequence[Question], chat: ChatFormat) -> list[GoldExample]:
    """The gold examples of the questions that have a solution, in their order.

    Raises:
        UsageError: no question has a solution.
    """
    found = [
        GoldExample(q.id, chat.prompt_ids(q.prompt), chat.answer_ids(q.prompt, q.solution))
        for q in questions
        if q.solution is not None
    ]
    if not found:
        raise UsageError(
            f"None of the {len(questions)} questions has a worked solution to learn from; "
            "choose another task or split."
        )
    return found


def held_out(ids: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The question ids held out for validation: ``share`` of the distinct ones.

    Ids are ranked by their hash, so that their order does not matter and a longer list changes few
    of them; of two or more, at least one is on either side.
    """
    if not 0 <= share < 1:
        raise UsageError(f"The share held out must be at least 0 and below 1, not {share}.")
    distinct = sorted(set(ids), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())
    if share == 0 or len(distinct) < 2:
        return frozenset()
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    return frozenset(distinct[:count])


def refuse_float16(dtype: str) -> None:
    """Refuse float16, which serves inference but not training.

    Raises:
        UsageError: the dtype is float16.
    """
    if dtype == "float16":
        raise UsageError(
            "Training in float16 needs its losses scaled, which is not supported; "
            "use --dtype bfloat16 or float32."
        )
