"""What a task is: questions, and the verifier that judges answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from fttt.types import Question
from fttt.verifiers.base import Verifier

__all__ = ["Task", "TaskOptions"]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What a user may choose about any task."""

    data_dir: Path | None = None
    """A folder in the benchmark's own layout (or the file of a ``jsonl`` task); else the hub."""
    split: str = "test"
    prompt: str | None = None
    """A prompt template that replaces the task's own; ``{question}`` marks the place."""
    seed: int = 42
    """For tasks that generate their questions."""


class Task(Protocol):
    """A source of questions."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    """The splits that exist, ``test`` first."""

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the split's questions in the benchmark's order.

        Raises :class:`fttt.errors.UsageError` for a missing split, folder or field, and names the
        line of a malformed file.
        """

    def verifier(self) -> Verifier:
        """A fresh verifier for this task's answers; the caller closes it."""
