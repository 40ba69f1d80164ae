"""What a task is: questions with their prompts, and the verifier that judges the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from fttt.errors import UsageError
from fttt.types import Question
from fttt.verifiers.choice import LETTERS
from fttt.verifiers.verifier import Verifier

__all__ = ["CHOICE_PROMPT", "PLACE", "Task", "TaskOptions", "fenced", "fill_prompt", "lettered"]

PLACE = "{question}"
"""Where a prompt template takes the question."""


CHOICE_PROMPT = (
    "Answer this multiple-choice question. Think step by step.\n\n"
    "{question}\n\n"
    'End your answer with the line "The answer is (X)", where X is the letter of the right option.'
)
"""The prompt of multiple choice, whose answers :class:`fttt.verifiers.choice.ChoiceVerifier` reads.
"""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The settings that every task has."""

    data_dir: Path | None = None
    """A folder in the benchmark's own layout (or the file of a ``jsonl`` task); else the hub."""
    split: str = "test"
    prompt: str | None = None
    """A prompt template that replaces the task's own; ``{question}`` marks the place."""
    seed: int = 42
    """For tasks that generate their questions, or shuffle their options."""
    prompt_style: Literal["own", "paper"] = "own"
    """Whether the prompt is the task's own, or that of the paper's public code."""

    def template(self, own: str, paper: str) -> str:
        """The template in force: the user's, the task's own or the paper's."""
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


def fill_prompt(template: str, question: str) -> str:
    """Put a question into a template.

    Only ``{question}`` is replaced, so that templates may hold other braces (LaTeX, code).

    Raises:
        UsageError: the template has no place for the question.
    """
    if PLACE not in template:
        shown = template if len(template) <= 60 else template[:60] + "…"
        raise UsageError(
            f"The prompt template {shown!r} has no place for the question; "
            f"write {PLACE} where it belongs."
        )
    return template.replace(PLACE, question)


def fenced(code: str) -> str:
    """``code`` as a fenced block of Python."""
    return f"```python\n{code.strip(chr(10))}\n```"


def lettered(options: Sequence[str]) -> str:
    """Options one a line, by their letters: ``(A) text``; one without a text is ``(empty)``."""
    lines = zip(
        LETTERS, (" ".join(option.split()) or "(empty)" for option in options), strict=False
    )
    return "\n".join(f"({letter}) {text}" for letter, text in lines)
