"""Evaluating fine-tuned checkpoints: greedily on all questions, by samples on the hard ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fttt.config import build, merge
from fttt.errors import UsageError
from fttt.experiment.sweep import SweepConfig
from fttt.finetune.metadata import read_info
from fttt.store import Run

__all__ = ["Evaluated", "evaluated", "evaluation"]

SAMPLES = "finetuned"
KEPT = 0.9
"""Share of a trained change that merged weights should hold."""


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's runs."""

    greedy: Run
    """On all questions."""
    samples: Run | None
    """On the hard ones; ``None`` where greedy decoding solved every question."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What ``environment.json`` says of the checkpoint and its training."""
        facts: Mapping[str, Any] = self.greedy.environment["adapter"]
        return facts

    @property
    def note(self) -> str | None:
        """A warning that the evaluated weights hold too little of what was trained."""
        kept = self.facts.get("change_kept", 1.0)
        if kept >= KEPT:
            return None
        return (
            f"In {self.greedy.environment['dtype']} the weights hold {100 * kept:.0f} % of the "
            f"change trained in {self.facts['folder']}; --dtype float32 holds all of it."
        )


def evaluation(
    checkpoints: Sequence[Path], base: Mapping[str, Any], *, hard_limit: int | None = None
) -> SweepConfig:
    """The sweep that evaluates checkpoints, one after the other.

    Args:
        checkpoints: folders that ``fttt finetune train`` wrote.
        base: settings of all runs, as a recipe has them; without ``task``, the one that the
            checkpoints were trained on. Where ``data.skip_cases`` is given, the hard questions are
            those that it does not name; else those that the checkpoint's own greedy decoding
            fails.
        hard_limit: at most this many hard questions.

    Raises:
        UsageError: a folder is no checkpoint, or the task is not clear.
    """
    tasks = dict.fromkeys(read_info(folder).task for folder in checkpoints)
    if "task" not in base and len(tasks) > 1:
        raise UsageError(
            f"The checkpoints were trained on {', '.join(tasks)}; say with --task on which "
            "questions all of them are to be evaluated."
        )
    base = merge({"task": next(iter(tasks)), "save_correct_cases": False}, base)
    data = dict(base.get("data", {}))
    cases = data.pop("skip_cases", None)
    samples: dict[str, Any] = {"method": SAMPLES}
    if cases is not None:
        if hard_limit is not None:
            raise UsageError(
                "--hard-limit cannot be combined with --skip-cases; choose the hard questions by "
                "one of them."
            )
        samples["data"] = {"skip_cases": cases}
    return build(
        SweepConfig,
        {
            "methods": ["greedy", samples],
            "tasks": [base.pop("task")],
            "seeds": [base.pop("seed", 42)],
            "vary": [
                {"label": label, "adapter": str(folder)}
                for label, folder in zip(_labels(checkpoints), checkpoints, strict=True)
            ],
            "hard_only": cases is None,
            "hard_limit": hard_limit,
            "base": {**base, "data": data},
        },
        "the evaluation",
    )


def evaluated(runs: Sequence[Run]) -> list[Evaluated]:
    """The runs of an evaluation, by checkpoint."""
    samples = {run.adapter: run for run in runs if run.method == SAMPLES}
    return [Evaluated(run, samples.get(run.adapter)) for run in runs if run.method == "greedy"]


def _labels(folders: Sequence[Path]) -> list[str]:
    """Short names, each its own: a folder's, or as much of its path as tells it apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UsageError("A checkpoint is named twice; name each one once.")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["-".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return labels
