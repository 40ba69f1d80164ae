"""MBPP+: 378 of MBPP's problems with about 35 times as many tests (Liu et al. 2023)."""

from __future__ import annotations

import re
from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.evalplus import judged_tests
from fttt.tasks.mbpp import PROMPT, entry_point, problem_of
from fttt.tasks.task import TaskOptions, fenced, fill_prompt
from fttt.types import JSON, Question
from fttt.verifiers.verifier import Verifier

__all__ = ["MBPPPlusTask"]

FIELDS = ("task_id", "prompt", "code", "test_imports", "test_list", "test")
_LOOP = re.compile(r"^for [^\n]*:[ \t]*\n(?:[ \t][^\n]*(?:\n|\Z)|\n)+\Z", re.MULTILINE)
"""The loop over all inputs that a problem's tests end in."""


class MBPPPlusTask:
    """378 problems of MBPP, judged by EvalPlus's base and added inputs.

    The model sees the tests of MBPP.
    """

    name: ClassVar[str] = "mbppplus"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, judge_url: str | None = None) -> None:
        """``judge_url`` names a served judge; by default ``OJ_API``, else an embedded one."""
        self._judge_url = judge_url

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the benchmark's parquet file, or ``evalplus/mbppplus``."""
        check_split(self.name, options.split, self.splits)
        template = options.prompt or PROMPT
        return [_question(where, row, template) for where, row in self._rows(options)]

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has it."""
        files = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.jsonl")
        return [f"mbppplus/{file}" for file in files]

    def numbered(self, number: int) -> str:
        """The id of a task by its number."""
        return f"MBPP/{number}"

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("evalplus/mbppplus", None, options.split, FIELDS)
        others = [f"{folder}{options.split}-*.parquet" for folder in ("data/", "")]
        return read_local(self, options, [*others, f"{options.split}.jsonl"], FIELDS)

    def verifier(self) -> Verifier:
        """Run the unit tests in the code judge."""
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(self._judge_url)


def _question(where: str, row: Row, template: str) -> Question:
    public = [str(test).strip() for test in row["test_list"]]
    imports = "\n".join(row["test_imports"])
    entry = entry_point(int(row["task_id"]), row["code"], public)
    tests = fenced("\n".join(filter(None, [imports, *public])))
    shown = f"{row['prompt'].strip()}\n\nThese tests must pass:\n{tests}"
    identity = f"MBPP/{row['task_id']}"
    gold = _problem(where, judged_tests(row["test"], identity), entry)
    return Question(
        id=identity,
        prompt=fill_prompt(template, shown),
        gold={**gold, "visible": problem_of(imports, public, entry)["test"]},
        solution=fenced(row["code"]),
    )


def _problem(where: str, test: str, entry: str) -> dict[str, JSON]:
    """The judge's problem object: the loop over all inputs becomes the body of ``check``."""
    loop = _LOOP.search(test)
    if loop is None:
        raise UsageError(f"{where} has tests that do not end in a loop over their inputs.")
    return problem_of(test[: loop.start()].rstrip(), [loop[0].rstrip()], entry)
