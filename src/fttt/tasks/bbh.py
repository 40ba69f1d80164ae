"""BIG-Bench Hard as multiple choice (Suzgun et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from fttt.errors import UsageError
from fttt.registry import unknown_name
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import CHOICE_PROMPT, TaskOptions, fill_prompt, lettered
from fttt.types import Question
from fttt.verifiers.choice import LETTERS, ChoiceVerifier
from fttt.verifiers.verifier import Verifier

__all__ = ["BBHTask"]

FIELDS = ("input", "target")
WORDS = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "formal_fallacies": ("valid", "invalid"),
    "navigate": ("Yes", "No"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}
"""Tasks whose answers are one of two words, which become options."""
LETTERED = (
    "date_understanding",
    "disambiguation_qa",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
)
FREE = ("dyck_languages", "multistep_arithmetic_two", "object_counting", "word_sorting")
"""Tasks whose answers are no choice."""
CHOICES = tuple(sorted((*WORDS, *LETTERED)))
_WORD_LIST = re.compile(r"\s*\nOptions:(?:\s*\n\s*-[^\n]*)+\s*\Z")


class BBHTask:
    """5,511 questions of the 23 tasks of BIG-Bench Hard whose answers are a choice.

    The other four (``dyck_languages``, ``multistep_arithmetic_two``, ``object_counting`` and
    ``word_sorting``) have free answers and are left out.
    """

    name: ClassVar[str] = "bbh"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    broken: ClassVar[Mapping[str, str]] = {
        f"bbh/{name}": "its option was split at a comma, so no letter is right"
        for name in ("movie_recommendation/163", "ruin_names/99", "ruin_names/144")
    }
    """Questions whose gold answer is no option in the benchmark itself."""

    def __init__(self, tasks: Sequence[str] | str | None = None) -> None:
        """``tasks`` are names of tasks, separated by commas; by default all that are a choice.

        Raises:
            UsageError: a task does not exist, or is no choice.
        """
        listed = tasks.split(",") if isinstance(tasks, str) else tasks or CHOICES
        self.tasks = tuple(name.strip() for name in listed)
        for name in self.tasks:
            if name in FREE:
                raise UsageError(
                    f"The task {name!r} of bbh is no multiple choice; leave it out, or choose "
                    f"from {', '.join(CHOICES)}."
                )
            if name not in CHOICES:
                raise unknown_name("task of bbh", name, CHOICES)

    def load(self, options: TaskOptions) -> list[Question]:
        """Read ``bbh/TASK.json`` of the benchmark's repository, or ``SaylorTwift/bbh``."""
        check_split(self.name, options.split, self.splits)
        return [
            _question(name, index, where, row, options.prompt or CHOICE_PROMPT)
            for name in self.tasks
            for index, (where, row) in enumerate(self._rows(name, options))
        ]

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has the first of the tasks."""
        return self._places(self.tasks[0])

    def _places(self, name: str) -> list[str]:
        files = (f"{name}.json", f"{name}/test-*.parquet", f"{name}.jsonl")
        return [f"{folder}{file}" for folder in ("bbh/", "BIG-Bench-Hard/bbh/") for file in files]

    def _rows(self, name: str, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("SaylorTwift/bbh", name, "test", FIELDS)
        one = BBHTask(tasks=(name,))
        others = (f"{name}.json", f"{name}/test-*.parquet", f"{name}.jsonl")
        return read_local(one, options, others, FIELDS)

    def verifier(self) -> Verifier:
        """Compare the letter of the chosen option."""
        return ChoiceVerifier()


def _question(name: str, index: int, where: str, row: Row, template: str) -> Question:
    asked, target = str(row["input"]).strip(), str(row["target"]).strip()
    words = WORDS.get(name)
    gold = target.strip("()")
    if words is not None:
        if target not in words:
            raise UsageError(
                f"{where} has the target {target!r}; it is one of {', '.join(words)} there."
            )
        asked = f"{_WORD_LIST.sub('', asked)}\n\nOptions:\n{lettered(words)}"
        gold = LETTERS[words.index(target)]
    return Question(id=f"bbh/{name}/{index}", prompt=fill_prompt(template, asked), gold=gold)
