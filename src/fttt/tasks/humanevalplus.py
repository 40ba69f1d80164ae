"""HumanEval+: HumanEval with about eighty times as many tests (Liu et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.evalplus import judged_tests
from fttt.tasks.humaneval import FIELDS, make_question
from fttt.tasks.task import TaskOptions
from fttt.types import Question
from fttt.verifiers.verifier import Verifier

__all__ = ["HumanEvalPlusTask"]


class HumanEvalPlusTask:
    """The 164 problems of HumanEval, judged by EvalPlus's base and added inputs."""

    name: ClassVar[str] = "humanevalplus"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, judge_url: str | None = None) -> None:
        """``judge_url`` names a served judge; by default ``OJ_API``, else an embedded one."""
        self._judge_url = judge_url

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the benchmark's parquet file, or ``evalplus/humanevalplus``."""
        check_split(self.name, options.split, self.splits)
        return [
            make_question({**row, "test": judged_tests(row["test"], row["task_id"])}, options)
            for _, row in self._rows(options)
        ]

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has it."""
        files = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.jsonl")
        return [f"humanevalplus/{file}" for file in files]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("evalplus/humanevalplus", None, options.split, FIELDS)
        others = [f"{folder}{options.split}-*.parquet" for folder in ("data/", "")]
        return read_local(self, options, [*others, f"{options.split}.jsonl"], FIELDS)

    def verifier(self) -> Verifier:
        """Run the unit tests in the code judge."""
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(self._judge_url)
