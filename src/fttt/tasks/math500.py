"""MATH: competition problems in the split of 12,000 and 500 (Hendrycks 2021, Lightman 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Question
from fttt.verifiers.answer_extraction import boxed_answer, last_boxed
from fttt.verifiers.math import MATH_RULES, MathRule, MathVerifier
from fttt.verifiers.verifier import Verifier, check_rule

__all__ = ["Math500Task"]

PROMPT = (
    "Solve this problem step by step.\n\n"
    "{question}\n\n"
    "End your answer with the final result in \\boxed{}."
)

PAPER_PROMPT = (
    "Solve the following math problem efficiently and clearly:\n\n"
    "- For simple problems (2 steps or fewer):\n"
    "Provide a concise solution with minimal explanation.\n\n"
    "- For complex problems (3 steps or more):\n"
    "Use this step-by-step format:\n\n"
    "## Step 1: [Concise description]\n[Brief explanation and calculations]\n\n"
    "## Step 2: [Concise description]\n[Brief explanation and calculations]\n\n"
    "...\n\n"
    "Regardless of the approach, always conclude with:\n\n"
    "Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct.\n\n"
    "Where [answer] is just the final number or expression that solves the problem.\n\n"
    "Problem: {question}"
)

FIELDS = ("problem", "solution")
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


class Math500Task:
    """12,000 problems to train on and 500 to test; answers are compared as mathematics."""

    name: ClassVar[str] = "math500"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    paper_prompt: ClassVar[str] = PAPER_PROMPT
    broken: ClassVar[Mapping[str, str]] = {
        f"train/number_theory/{number}.json": "the solution boxes nothing"
        for number in (7115, 7117)
    }
    """Questions whose gold answer is missing in the benchmark itself."""

    def __init__(self, rule: MathRule = "equivalence") -> None:
        """Set the rule of comparison (``strict`` is the string rule of the benchmark).

        Raises:
            UsageError: there is no such rule.
        """
        check_rule(rule, MATH_RULES, "mathematics")
        self.rule: MathRule = rule

    def load(self, options: TaskOptions) -> list[Question]:
        """Read ``MATH500/{train,test}.jsonl``, or the hub."""
        check_split(self.name, options.split, self.splits)
        template = options.template(PROMPT, PAPER_PROMPT)
        return [
            self._question(options.split, index, where, row, template)
            for index, (where, row) in enumerate(self._rows(options))
        ]

    def published_places(self, split: str) -> list[str]:
        """Where the paper's code has the split."""
        return [f"MATH500/{split}.jsonl"]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return _hub_rows(options.split)
        return read_local(self, options, [f"{options.split}.jsonl"], FIELDS)

    def _question(self, split: str, index: int, where: str, row: Row, template: str) -> Question:
        solution = str(row["solution"])
        boxed = last_boxed(solution) if self.rule == "strict" else boxed_answer(solution)
        gold = row.get("answer") or boxed
        if not gold and "\\boxed" not in solution:
            raise UsageError(f"{where} has no answer, and no \\boxed{{}} in its solution; add one.")
        return Question(
            id=str(row.get("unique_id") or f"math/{split}/{index}"),
            prompt=fill_prompt(template, str(row["problem"])),
            gold=str(gold or ""),
            solution=solution,
        )

    def verifier(self) -> Verifier:
        """Compare the last ``\\boxed{}`` by the rule of this task."""
        return MathVerifier(rule=self.rule)


def _hub_rows(split: str) -> list[tuple[str, Row]]:
    """Rows with a description of their place.

    The hub has the 500 as a set of their own; the 12,000 are the rest of the benchmark's 12,500.
    """
    test = read_hub("HuggingFaceH4/MATH-500", None, "test", (*FIELDS, "answer"))
    if split == "test":
        return test
    held_out = {row["problem"] for _, row in test}
    return [
        (f"{where} ({subject}, {part})", row)
        for part in ("train", "test")
        for subject in SUBJECTS
        for where, row in read_hub("EleutherAI/hendrycks_math", subject, part, FIELDS)
        if row["problem"] not in held_out
    ]
