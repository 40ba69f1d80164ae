"""AIME: the American Invitational Mathematics Examination, whose answers are integers to 999."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Question
from fttt.verifiers.number import NumberVerifier
from fttt.verifiers.verifier import Verifier

__all__ = ["Aime24Task", "Aime25Task"]

PROMPT = (
    "Solve this problem step by step.\n\n"
    "{question}\n\n"
    "Put the result, an integer from 0 to 999, in \\boxed{} at the end."
)

NAMES = {
    "problem": ("problem", "Problem", "question"),
    "answer": ("answer", "Answer"),
    "solution": ("solution", "Solution"),
}
"""What copies of the examination call a field."""


class AimeTask:
    """One year's two examinations of 15 problems; answers are compared as numbers."""

    name: ClassVar[str]
    year: ClassVar[int]
    hub: ClassVar[str]
    """The data set of the hub; its only split is called ``train``."""
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def load(self, options: TaskOptions) -> list[Question]:
        """Read a file of the year's problems, or the hub."""
        check_split(self.name, options.split, self.splits)
        template = options.prompt or PROMPT
        rows = enumerate(self._rows(options))
        return [self._question(index, where, row, template) for index, (where, row) in rows]

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has the year."""
        folders = (f"aime_{self.year}", f"aime{self.year}", self.name, f"AIME_{self.year}")
        files = ("data/train-*.parquet", f"{split}.jsonl", "train.jsonl", "*.jsonl", "*.parquet")
        return [f"{folder}/{file}" for folder in folders for file in files]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub(self.hub, None, "train", ("problem", "answer"))
        others = ["data/train-*.parquet", "data/test-*.parquet", "*.jsonl", "*.parquet"]
        return read_local(self, options, others, ())

    def _question(self, index: int, where: str, row: Row, template: str) -> Question:
        problem, answer = (_field(row, NAMES[name], where) for name in ("problem", "answer"))
        if not (answer.isascii() and answer.isdigit() and int(answer) <= 999):
            raise UsageError(
                f"{where} has the answer {answer!r}; an answer of AIME is an integer from 0 to 999."
            )
        worked = next((str(row[name]) for name in NAMES["solution"] if row.get(name)), None)
        gold = str(int(answer))
        return Question(
            id=f"{self.name}/{index}",
            prompt=fill_prompt(template, problem),
            gold=gold,
            solution=None if worked is None else f"{worked.strip()}\n\n\\boxed{{{gold}}}",
        )

    def verifier(self) -> Verifier:
        """Compare numbers by value."""
        return NumberVerifier()


class Aime24Task(AimeTask):
    """30 problems of AIME I and II of 2024; answers are integers from 0 to 999."""

    name: ClassVar[str] = "aime24"
    year: ClassVar[int] = 2024
    hub: ClassVar[str] = "HuggingFaceH4/aime_2024"


class Aime25Task(AimeTask):
    """30 problems of AIME I and II of 2025; answers are integers from 0 to 999."""

    name: ClassVar[str] = "aime25"
    year: ClassVar[int] = 2025
    hub: ClassVar[str] = "yentinglin/aime_2025"


def _field(row: Row, names: Sequence[str], where: str) -> str:
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None:
        raise UsageError(f"{where} has no field {names[0]!r}; it needs problem and answer.")
    return str(found).strip()
