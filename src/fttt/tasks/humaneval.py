"""HumanEval: functions from their docstrings, judged by unit tests (Chen et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

from fttt.tasks.base import TaskOptions
from fttt.tasks.files import Row, check_split, find, read_hub, read_parquet
from fttt.tasks.prompts import fenced, fill_prompt
from fttt.types import Question
from fttt.verifiers.base import Verifier

__all__ = ["HumanEvalTask"]

PROMPT = (
    "Complete this Python function.\n\n"
    "{question}\n\n"
    "Give the whole function, with the imports that it needs, in one fenced ```python block."
)

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


class HumanEvalTask:
    """164 problems; there is nothing to train on."""

    name: ClassVar[str] = "humaneval"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, judge_url: str | None = None) -> None:
        """``judge_url`` names a served judge; by default ``OJ_API``, else an embedded one."""
        self._judge_url = judge_url

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the benchmark's parquet file, or ``openai/openai_humaneval``."""
        check_split(self.name, options.split, self.splits)
        template = options.prompt or PROMPT
        return [self._question(row, template) for row in self._rows(options)]

    def _rows(self, options: TaskOptions) -> list[Row]:
        if options.data_dir is None:
            return read_hub("openai/openai_humaneval", None, options.split, FIELDS)
        folders = ("openai_humaneval/openai_humaneval/", "openai_humaneval/", "")
        places = [f"{folder}{options.split}-*.parquet" for folder in folders]
        return read_parquet(find(self.name, options.data_dir, places), FIELDS)

    def _question(self, row: Row, template: str) -> Question:
        return Question(
            id=row["task_id"],
            prompt=fill_prompt(template, fenced(row["prompt"])),
            gold={key: row[key] for key in ("prompt", "test", "entry_point")},
            solution=fenced(row["prompt"] + row["canonical_solution"]),
        )

    def verifier(self) -> Verifier:
        """Run the unit tests in the code judge."""
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(self._judge_url)
