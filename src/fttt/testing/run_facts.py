"""What two runs of the same draws have in common, for tests that hold one against the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fttt.store import Run
from fttt.types import Trial

__all__ = ["journal_lines", "trial_facts"]


def trial_facts(run: Run | Path) -> list[Trial]:
    """The trials without what depends on the clock, or on the order of sums.

    Args:
        run: a run, or its folder.
    """
    found = run if isinstance(run, Run) else Run.open(run)
    return [
        replace(
            trial,
            loss=None if trial.loss is None else round(trial.loss, 3),
            usage=replace(trial.usage, seconds=0.0),
        )
        for trial in found.trials
    ]


def journal_lines(folder: Path) -> int:
    """Lines of a run's journal so far; 0 before it begins."""
    journal = folder / "events.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
