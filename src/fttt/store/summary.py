"""The figures of ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fttt.store.outcome import DecidedBy, Unanswered, solved_within, spent, wilson
from fttt.types import Record, Usage

__all__ = ["summarize"]


def summarize(
    records: Sequence[Record],
    *,
    head: Mapping[str, Any],
    budget: int | None,
    decided_by: DecidedBy,
    unanswered: Unanswered,
    seconds: float,
) -> dict[str, Any]:
    """Sum up a run.

    Args:
        head: method, task, model and seed, which come first.
        budget: trials a question, or ``None`` where another budget held; ``accuracy_at`` then
            reaches to the most trials that a question had.
        seconds: wall time of the run.
    """
    counted = [spent(record.trials, unanswered) for record in records]
    reach = budget if budget is not None else max((c[-1] for c in counted if c), default=1)

    def accuracy(trials: float) -> float:
        solved = sum(
            solved_within(r.trials, trials, decided_by=decided_by, unanswered=unanswered)
            for r in records
        )
        return solved / len(records) if records else 0.0

    total = len(records)
    solved = round(accuracy(float("inf")) * total)
    trials_total = sum(len(record.trials) for record in records)
    usage = Usage()
    for record in records:
        usage += record.usage
    summary: dict[str, Any] = {
        **head,
        "questions": total,
        "solved": solved,
        "accuracy": solved / total if total else 0.0,
        "ci95": list(wilson(solved, total)),
        "accuracy_at": {str(k): accuracy(k) for k in _powers_of_two(reach)},
        "trials_total": trials_total,
        "trials_mean": trials_total / total if total else 0.0,
        "unanswered": sum(t.verdict == "unanswered" for r in records for t in r.trials),
        "usage": asdict(usage),
        "seconds": seconds,
        "decided_by": decided_by,
    }
    best = [record.score for record in records if record.score is not None]
    if best:
        summary["score"] = sum(best) / len(best)
    if decided_by == "vote":
        summary["vote_accuracy_at"] = {str(k): accuracy(k) for k in range(1, reach + 1)}
    return summary


def _powers_of_two(reach: int) -> list[int]:
    return [1 << n for n in range(max(reach, 1).bit_length())]
