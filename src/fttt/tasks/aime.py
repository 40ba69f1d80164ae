"""AIME: the American Invitational Mathematics Examination, whose answers are integers to 999."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, find_local, read_file, read_hub, read_local
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
_FILES = ("*.jsonl", "*.parquet")
"""Names of no form, where a folder has none of the usual ones."""
_YEAR = re.compile(r"aime[-_ ]?(?:20)?(\d\d)(?!\d)", re.IGNORECASE)
"""The year that a file's name has."""
_HALF = re.compile(r"(.*[-_ ])(II?|[12])", re.IGNORECASE)
"""The name of one of the two examinations of a year, which some copies have in a file each."""
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|[$°]")
"""What copies write behind an answer that is an angle (``336^\\circ``), and around it."""


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
        files = ("data/train-*.parquet", f"{split}.jsonl", "train.jsonl", *_FILES)
        return [f"{folder}/{file}" for folder in folders for file in files]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub(self.hub, None, "train", ("problem", "answer"))
        others = ["data/train-*.parquet", "data/test-*.parquet", "test.jsonl", "train.jsonl"]
        places = [*self.published_places(options.split), *others, *_FILES]
        found = find_local(self.name, options.data_dir, places)
        if found.stem in ("test", "train") or "-of-" in found.name:
            return read_local(self, options, [*others, *_FILES], ())
        files = self._of_the_year(sorted(found.parent.glob(f"*{found.suffix}")))
        return [row for file in files for row in read_file(file, ())]

    def _of_the_year(self, files: Sequence[Path]) -> list[Path]:
        """The files of the year's examination: one, or both halves.

        Raises:
            UsageError: none of them is of the year, or it is not known which is.
        """
        named = {file: _YEAR.search(file.name) for file in files}
        own = [file for file in files if (year := named[file]) and int(year[1]) == self.year % 100]
        own = own or [file for file in files if named[file] is None]
        halves = [match for file in own if (match := _HALF.fullmatch(file.stem))]
        both = len({half[1] for half in halves}) == 1 and len(halves) == len(own) == 2
        if len(own) == 1 or both:
            return own
        listed = ", ".join(repr(str(file)) for file in own or files)
        raise UsageError(
            f"Which file has the problems of {self.name!r} is not known ({listed}); put it into a "
            f"folder of its own, or call it aime{self.year}{files[0].suffix}."
        )

    def _question(self, index: int, where: str, row: Row, template: str) -> Question:
        problem, answer = (_field(row, NAMES[name], where) for name in ("problem", "answer"))
        answer = _DEGREES.sub("", answer).strip()
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
