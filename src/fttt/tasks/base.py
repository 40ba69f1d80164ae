"""What a task is: questions, and the verifier that judges answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

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
    prompt_style: Literal["own", "paper"] = "own"
    """Whether the prompt is the task's own, or that of the paper's public code."""

    def template(self, own: str, paper: str) -> str:
        """The template that was chosen, of a task's own and the paper's."""
        return self.prompt or (paper if self.prompt_style == "paper" else own)


class Task(Protocol):
    """A source of questions.

    A task may also have ``paper_prompt``, the template of the paper's public code (see
    :meth:`TaskOptions.template`); ``published_places(split)``, patterns of its files below the
    folder of that code's data; and ``numbered(number)``, the id of the question that the paper's
    index files call by a number, where that is not its row.
    """

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
