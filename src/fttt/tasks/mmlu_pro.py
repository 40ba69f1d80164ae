"""MMLU-Pro: questions of 14 subjects with up to ten options (Wang et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import CHOICE_PROMPT, TaskOptions, fill_prompt, lettered
from fttt.types import Question
from fttt.verifiers.choice import ChoiceVerifier, gold_letter, read_options
from fttt.verifiers.verifier import Verifier

__all__ = ["MMLUProTask"]

FIELDS = ("question_id", "question", "options", "answer", "category")
_ABSENT = "N/A"
"""What fills up options in some versions of the data."""


class MMLUProTask:
    """12,032 questions to test and 70 to show, of 14 subjects, with up to ten options.

    ``shots`` shows that many worked questions of the same subject first, from the split
    ``validation``, which has five of each; the published harness shows five.
    """

    name: ClassVar[str] = "mmlupro"
    splits: ClassVar[tuple[str, ...]] = ("test", "validation")

    def __init__(self, shots: int = 0, category: str | None = None) -> None:
        """Set the number of worked questions, and the subject (such as ``physics``; else all).

        Raises:
            UsageError: there are not that many worked questions.
        """
        if not isinstance(shots, int) or not 0 <= shots <= 5:
            raise UsageError(f"The option shots of mmlupro cannot be {shots!r}; give 0 to 5.")
        self.shots, self.category = shots, category

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the benchmark's parquet files, or ``TIGER-Lab/MMLU-Pro``."""
        check_split(self.name, options.split, self.splits)
        if self.shots and options.split == "validation":
            raise UsageError(
                "The split 'validation' of mmlupro has the worked questions: no shots."
            )
        rows = self._rows(options, options.split)
        if self.category is not None:
            known = sorted({str(row["category"]) for _, row in rows})
            rows = [(where, row) for where, row in rows if row["category"] == self.category]
            if not rows:
                raise UsageError(
                    f"mmlupro has no category {self.category!r}; choose from {', '.join(known)}."
                )
        shown: dict[str, list[str]] = {}
        if self.shots:
            for where, row in self._rows(options, "validation"):
                example = f"Question: {_asked(where, row)}\n\n{_worked(row)}"
                shown.setdefault(row["category"], []).append(example)
        return [self._question(where, row, shown, options) for where, row in rows]

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has the split."""
        folders = ("MMLU-Pro", "mmlu_pro", "mmlupro")
        return [f"{folder}/{part}{split}-*.parquet" for folder in folders for part in ("data/", "")]

    def _rows(self, options: TaskOptions, split: str) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("TIGER-Lab/MMLU-Pro", None, split, FIELDS)
        others = [f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.jsonl"]
        there = TaskOptions(data_dir=options.data_dir, split=split)
        return read_local(self, there, others, FIELDS)

    def _question(
        self, where: str, row: Row, shown: dict[str, list[str]], options: TaskOptions
    ) -> Question:
        letter = gold_letter(row["answer"])
        if letter is None:
            raise UsageError(f"{where} has the answer {row['answer']!r}, which is no letter.")
        examples = shown.get(row["category"], [])[: self.shots]
        asked = _asked(where, row)
        if letter not in read_options(asked):
            raise UsageError(f"{where} has the answer {letter!r}, which is none of its options.")
        if examples:
            asked = "\n\n".join([*examples, f"Question: {asked}"])
        return Question(
            id=f"mmlupro/{row['question_id']}",
            prompt=fill_prompt(options.prompt or CHOICE_PROMPT, asked),
            gold=str(row["answer"]),
            solution=_worked(row) if row.get("cot_content") else None,
        )

    def verifier(self) -> Verifier:
        """Compare the letter of the chosen option."""
        return ChoiceVerifier()


def _asked(where: str, row: Row) -> str:
    """A question with its options."""
    texts = row["options"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise UsageError(f"{where} has 'options' that are no list of two or more.")
    while texts[-1] == _ABSENT:
        texts = texts[:-1]
    return f"{str(row['question']).strip()}\n\n{lettered(list(map(str, texts)))}"


def _worked(row: Row) -> str:
    """The worked answer of a question, which ends with its letter."""
    working = str(row.get("cot_content") or "").strip().removeprefix("A:").strip()
    stated = f"The answer is ({row['answer']})"
    return working if working.rstrip(".").endswith(stated) else f"{working}\n{stated}".strip()
