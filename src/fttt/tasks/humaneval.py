"""HumanEval: functions from their docstrings, judged by unit tests (Chen et al. 2021)."""

from __future__ import annotations

import ast
import builtins
import doctest
import re
from collections.abc import Iterator
from typing import ClassVar

from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import TaskOptions, fenced, fill_prompt
from fttt.types import JSON, Question
from fttt.verifiers.verifier import Verifier

__all__ = ["FIELDS", "HumanEvalTask", "make_question"]

PROMPT = (
    "Complete this Python function.\n\n"
    "{question}\n\n"
    "Give the whole function, with the imports that it needs, in one fenced ```python block."
)

PAPER_PROMPT = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n\n\n{question}\n\n```"
)

CONTRADICTED = frozenset(("HumanEval/47", "HumanEval/116", "HumanEval/148"))
"""Problems whose reference solution contradicts an example in their docstring."""

_EXAMPLE = re.compile(
    r"[*>\s]*(?:assert |for )?(\w+\(.*\))\s*(?:==>?|=>|-+>|\u279e|returns|should return)\s*"
    r"(.+?)\s*$"
)
"""An example outside of a doctest: ``f(1) == 2``, ``f(1) => 2``, and so on."""

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


class HumanEvalTask:
    """164 problems to test; the benchmark has no other split."""

    name: ClassVar[str] = "humaneval"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    paper_prompt: ClassVar[str] = PAPER_PROMPT

    def __init__(self, judge_url: str | None = None) -> None:
        """``judge_url`` names a served judge; by default ``OJ_API``, else an embedded one."""
        self._judge_url = judge_url

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the benchmark's parquet file, or ``openai/openai_humaneval``."""
        check_split(self.name, options.split, self.splits)
        return [make_question(row, options) for _, row in self._rows(options)]

    def published_places(self, split: str) -> list[str]:
        """Where the paper's code has the split."""
        folders = ("openai_humaneval/openai_humaneval/", "openai_humaneval/")
        return [f"{folder}{split}-*.parquet" for folder in folders]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("openai/openai_humaneval", None, options.split, FIELDS)
        return read_local(self, options, [f"{options.split}-*.parquet"], FIELDS)

    def verifier(self) -> Verifier:
        """Run the unit tests in the code judge."""
        from fttt.verifiers.code import CodeVerifier

        return CodeVerifier(self._judge_url)


def make_question(row: Row, options: TaskOptions) -> Question:
    """The question of a row."""
    shown = row["prompt"] if options.prompt_style == "paper" else fenced(row["prompt"])
    return Question(
        id=row["task_id"],
        prompt=fill_prompt(options.template(PROMPT, PAPER_PROMPT), shown),
        gold=_problem(row),
        solution=fenced(row["prompt"] + row["canonical_solution"]),
    )


def _problem(row: Row) -> dict[str, JSON]:
    """The judge's problem object, with the docstring's examples as the tests that may be shown."""
    problem: dict[str, JSON] = {key: row[key] for key in ("prompt", "test", "entry_point")}
    examples = []
    if row["task_id"] not in CONTRADICTED:
        examples = list(_examples(row["prompt"], row["entry_point"]))
    if examples:
        lines = [f"{row['entry_point']} = candidate", *examples]
        problem["visible"] = "\n    ".join(["def check(candidate):", *lines]) + "\n"
    return problem


def _examples(prompt: str, entry: str) -> Iterator[str]:
    """A docstring's examples as statements, if they can be run."""
    try:
        tree = ast.parse(prompt)
    except SyntaxError:
        return
    known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    known |= {entry, *dir(builtins)}
    for source, want in _stated(_docstring(tree, entry)):
        try:
            parsed = ast.parse(source)
            if want:
                ast.literal_eval(want)
        except (SyntaxError, ValueError):
            continue
        names = [node for node in ast.walk(parsed) if isinstance(node, ast.Name)]
        if any(name.id not in known and isinstance(name.ctx, ast.Load) for name in names):
            continue
        known |= {name.id for name in names}
        text = ast.unparse(parsed)
        alone = len(parsed.body) == 1 and isinstance(parsed.body[0], ast.Expr)
        if alone and want:
            yield f"assert {text} == {want}"
        elif alone and isinstance(parsed.body[0].value, ast.Compare):  # type: ignore[attr-defined]
            yield f"assert {text}"
        elif not alone and "\n" not in text:
            yield text


def _docstring(tree: ast.Module, entry: str) -> str:
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry]
    return (ast.get_docstring(found[-1]) or "") if found else ""


def _stated(text: str) -> Iterator[tuple[str, str]]:
    """Calls and their results: of doctests, else of lines such as ``f(1) == 2``."""
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError:  # an invalid doctest
        examples = []
    for example in examples:
        yield example.source.strip(), _value(example.want.strip())
    if examples:
        return
    for line in text.splitlines():
        stated = _EXAMPLE.match(line)
        if stated is not None:
            yield stated[1], _value(stated[2].removesuffix("."))


def _value(want: str) -> str:
    return {"true": "True", "false": "False"}.get(want, want)
