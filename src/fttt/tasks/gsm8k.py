"""GSM8K: grade-school word problems with a number as the answer (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Question
from fttt.verifiers.number import NUMBER_RULES, NumberRule, NumberVerifier
from fttt.verifiers.verifier import Verifier, check_rule

__all__ = ["GSM8KTask"]

PROMPT = (
    "Solve this problem step by step.\n\n"
    "{question}\n\n"
    'End your answer with the line "The final answer is" followed by the number.'
)

PAPER_PROMPT = (
    "Given the following problem, reason and give a final answer to the problem.\n"
    "Problem: {question}\n"
    'Your response should end with "The final answer is [answer]" where [answer] is the response '
    "to the problem."
)

FIELDS = ("question", "answer")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class GSM8KTask:
    """7,473 training and 1,319 test problems; answers are compared as numbers."""

    name: ClassVar[str] = "gsm8k"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    paper_prompt: ClassVar[str] = PAPER_PROMPT

    def __init__(self, rule: NumberRule = "value") -> None:
        """Set where an answer is searched for (``strict``: behind "The final answer is" only).

        Raises:
            UsageError: there is no such rule.
        """
        check_rule(rule, NUMBER_RULES, "numbers")
        self.rule: NumberRule = rule

    def load(self, options: TaskOptions) -> list[Question]:
        """Read ``{train,test}.jsonl`` of the benchmark's repository, or ``openai/gsm8k``."""
        check_split(self.name, options.split, self.splits)
        template = options.template(PROMPT, PAPER_PROMPT)
        return [
            self._question(options.split, index, where, row, template)
            for index, (where, row) in enumerate(self._rows(options))
        ]

    def published_places(self, split: str) -> list[str]:
        """Where the paper's code has the split."""
        return [f"grade-school-math/grade_school_math/data/{split}.jsonl"]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        if options.data_dir is None:
            return read_hub("openai/gsm8k", "main", options.split, FIELDS)
        folders = ("grade_school_math/data/", "data/", "")
        others = [f"{folder}{options.split}.jsonl" for folder in folders]
        return read_local(self, options, others, FIELDS)

    def _question(self, split: str, index: int, where: str, row: Row, template: str) -> Question:
        working, mark, gold = str(row["answer"]).rpartition("####")
        gold = gold.strip().replace(",", "")
        if not mark or not gold:
            raise UsageError(f"{where} has an answer without '#### N' at its end; correct it.")
        working = _CALCULATOR.sub("", working).strip()
        return Question(
            id=f"gsm8k/{split}/{index}",
            prompt=fill_prompt(template, str(row["question"])),
            gold=gold,
            solution=f"{working}\nThe final answer is {gold}",
        )

    def verifier(self) -> Verifier:
        """Compare numbers by value, extracted by the rule of this task."""
        return NumberVerifier(rule=self.rule)
