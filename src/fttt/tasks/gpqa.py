"""GPQA: graduate-level questions in biology, physics and chemistry (Rein et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.arithmetic import Draws
from fttt.tasks.benchmark_data import Row, check_split, read_hub, read_local
from fttt.tasks.task import CHOICE_PROMPT, TaskOptions, fill_prompt, lettered
from fttt.types import Question
from fttt.verifiers.choice import LETTERS, ChoiceVerifier
from fttt.verifiers.verifier import Verifier

__all__ = ["GPQATask"]

SUBSETS = ("diamond", "main", "extended")
ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
FIELDS = ("Question", *ANSWERS)


class GPQATask:
    """The 198 questions of GPQA diamond, with four options in an order that the seed draws.

    The data set of the hub is gated: it takes a token whose owner has accepted its conditions.
    """

    name: ClassVar[str] = "gpqa"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self, subset: str = "diamond") -> None:
        """``subset`` is ``diamond`` (198 questions), ``main`` (448) or ``extended`` (546).

        Raises:
            UsageError: there is no such subset.
        """
        if subset not in SUBSETS:
            raise UsageError(f"GPQA has no subset {subset!r}; choose from {', '.join(SUBSETS)}.")
        self.subset = subset

    def load(self, options: TaskOptions) -> list[Question]:
        """Read ``gpqa_diamond.csv`` of the benchmark's repository, or ``Idavidrein/gpqa``."""
        check_split(self.name, options.split, self.splits)
        rows = enumerate(self._rows(options))
        return [self._question(index, row, options) for index, (_, row) in rows]

    def published_places(self, split: str) -> list[str]:
        """Where a folder of all benchmarks has it."""
        return [f"{folder}/gpqa_{self.subset}.csv" for folder in ("gpqa", "gpqa/dataset", "GPQA")]

    def _rows(self, options: TaskOptions) -> list[tuple[str, Row]]:
        name = f"gpqa_{self.subset}"
        if options.data_dir is None:
            return read_hub("Idavidrein/gpqa", name, "train", FIELDS)
        others = [f"{name}.csv", f"dataset/{name}.csv", f"{name}.jsonl", f"{name}/*.parquet"]
        return read_local(self, options, others, FIELDS)

    def _question(self, index: int, row: Row, options: TaskOptions) -> Question:
        own = str(row.get("Record ID") or f"{self.subset}/{index}")
        order = _order(f"gpqa/{own}/s{options.seed}", len(ANSWERS))
        shown = lettered([str(row[ANSWERS[place]]) for place in order])
        gold = LETTERS[order.index(0)]
        worked = str(row.get("Explanation") or "").strip()
        question = f"{str(row['Question']).strip()}\n\n{shown}"
        return Question(
            id=f"gpqa/{own}",
            prompt=fill_prompt(options.prompt or CHOICE_PROMPT, question),
            gold=gold,
            solution=f"{worked}\n\nThe answer is ({gold})" if worked else None,
        )

    def verifier(self) -> Verifier:
        """Compare the letter of the chosen option."""
        return ChoiceVerifier()


def _order(key: str, count: int) -> list[int]:
    """The numbers below ``count`` in an order that the key draws (Fisher and Yates)."""
    draw, order = Draws(key), list(range(count))
    for last in range(count - 1, 0, -1):
        other = draw.between(0, last)
        order[last], order[other] = order[other], order[last]
    return order
