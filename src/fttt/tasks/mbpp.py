"""MBPP: short Python functions from one sentence and its tests (Austin et al. 2021)."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import TaskOptions, fenced, fill_prompt
from fttt.types import JSON, Question
from fttt.verifiers.python_source import parse_quietly
from fttt.verifiers.verifier import Verifier

__all__ = ["PROMPT", "MBPPTask", "entry_point", "problem_of"]

PROMPT = (
    "{question}\n\n"
    "Give the whole program, with the imports that it needs, in one fenced ```python block."
)

PAPER_PROMPT = "You are an expert Python programmer, and here is your task:\\n{question}"
# The published prompt has a backslash and an n instead of a new line.
PAPER_QUESTION = "{text}\\nYour code should pass the following tests:\\n{tests}"

FIELDS = ("task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list")

# A judge with the submission and the tests in two processes needs the first text; in a shared
# namespace, the second keeps the submission's function before the tests' own replaces it.
_RENAME = "def submitted(*args):\n    return check(*args)\n"
_KEEP = 'if "check" in globals():\n    submitted = check'


class MBPPTask:
    """974 problems: tasks 11 to 510 test, 511 to 600 validate, 601 to 974 train, 1 to 10 prompt.

    The model sees the tests of ``test_list``; it is judged on those and on
    ``challenge_test_list``, after ``test_setup_code``.
    """

    name: ClassVar[str] = "mbpp"
    splits: ClassVar[tuple[str, ...]] = ("test", "train", "validation", "prompt")
    paper_prompt: ClassVar[str] = PAPER_PROMPT

    def __init__(self, judge_url: str | None = None) -> None:
        """``judge_url`` names a served judge; by default ``OJ_API``, else an embedded one."""
        self._judge_url = judge_url

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the benchmark's parquet files, or ``google-research-datasets/mbpp``."""
        check_split(self.name, options.split, self.splits)
        return [self._question(row, options) for _, row in self._rows(options)]

    def published_places(self, split: str) -> list[str]:
        """Where the paper's code has the split."""
        return [f"mbpp/full/{split}-*.parquet"]

    def numbered(self, number: int) -> str:
        """The id of a task by its number: the paper's index files hold those, not rows."""
        return f"MBPP/{number}"

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("google-research-datasets/mbpp", "full", options.split, FIELDS)
        others = [f"{folder}{options.split}-*.parquet" for folder in ("full/", "")]
        return read_local(self, options, others, FIELDS)

    def _question(self, row: Row, options: TaskOptions) -> Question:
        code = _lines(row["code"])
        public = [_lines(test) for test in row["test_list"]]
        hidden = [_lines(test) for test in row["challenge_test_list"]]
        setup = _lines(row["test_setup_code"])
        entry = entry_point(int(row["task_id"]), code, public)
        if options.prompt_style == "paper":
            tests = "\n".join(row["test_list"])
            shown = PAPER_QUESTION.format(text=row["text"], tests=tests)
        else:
            tests = fenced(_join([setup, *public]))
            shown = f"{row['text'].strip()}\n\nThese tests must pass:\n{tests}"
        return Question(
            id=f"MBPP/{row['task_id']}",
            prompt=fill_prompt(options.template(PROMPT, PAPER_PROMPT), shown),
            gold={
                **problem_of(setup, public + hidden, entry),
                "visible": problem_of(setup, public, entry)["test"],
            },
            solution=fenced(code),
        )

    def verifier(self) -> Verifier:
        """Run the unit tests in the code judge."""
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(self._judge_url)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")


def _join(parts: list[str]) -> str:
    return "\n".join(part for part in parts if part.strip())


def problem_of(setup: str, tests: list[str], entry: str) -> dict[str, JSON]:
    """The judge's problem object: tests of ``entry`` as a function ``check(candidate)``.

    The tests call the candidate by its own name, so that name is bound inside; every other name
    (a class of the submission, say) is the program's. Four problems ask for a function that is
    itself called ``check``: it gets another name.
    """
    body = textwrap.indent(f"{entry} = candidate\n{_join(tests)}", "    ")
    test = _join([setup, f"def check(candidate):\n{body}"])
    if entry != "check":
        return {"prompt": "", "test": test, "entry_point": entry}
    return {"prompt": _RENAME, "test": f"{_KEEP}\n{test}", "entry_point": "submitted"}


def entry_point(number: int, code: str, tests: list[str]) -> str:
    """The function of the reference program that the tests call first and most often."""
    defined = set(_defined(code))
    called: dict[str, int] = {}
    for test in tests:
        for name in dict.fromkeys(_called(test)):
            called[name] = called.get(name, 0) + 1
    candidates = [name for name in called if name in defined]
    if not candidates:
        raise UsageError(
            f"The tests of MBPP task {number} call no function of its code; correct the file."
        )
    return max(candidates, key=lambda name: called[name])


def _defined(code: str) -> Iterator[str]:
    for node in parse_quietly(code).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _called(test: str) -> Iterator[str]:
    for node in ast.walk(parse_quietly(test)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
