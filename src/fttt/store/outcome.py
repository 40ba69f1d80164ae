"""How the trials of a question make its outcome, and the figures of ``summary.json``.

Everything that counts trials counts them here, so that a summary, a curve and a comparison agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from fttt.types import Record, Trial, Usage

__all__ = ["DecidedBy", "Unanswered", "solved_within", "spent", "summarize", "vote", "wilson"]

DecidedBy = Literal["first", "vote"]
"""``first``: a question is solved by its first correct trial; ``vote``: by its most frequent
answer."""
Unanswered = Literal["count", "retry"]
"""Whether a trial without an answer spends budget (``count``) or not (``retry``)."""


def spent(trials: Sequence[Trial], unanswered: Unanswered = "count") -> list[int]:
    """The budget that was spent up to and with each trial, in trials."""
    total, running = 0, []
    for trial in trials:
        total += not (unanswered == "retry" and trial.verdict == "unanswered")
        running.append(total)
    return running


def solved_within(
    trials: Sequence[Trial],
    budget: float = math.inf,
    *,
    decided_by: DecidedBy = "first",
    unanswered: Unanswered = "count",
) -> bool:
    """Whether a question counts as solved after ``budget`` trials.

    Args:
        trials: the trials of one question in their order.
    """
    within = [
        t for t, cost in zip(trials, spent(trials, unanswered), strict=True) if cost <= budget
    ]
    if decided_by == "vote":
        winner = vote(within)
        return winner is not None and winner.verdict == "correct"
    return any(trial.verdict == "correct" for trial in within)


def vote(trials: Sequence[Trial]) -> Trial | None:
    """The first trial that gave the most frequent answer; ``None`` where none gave one.

    Of two answers with as many votes the one that was given first wins.
    """
    votes: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.extracted is not None and trial.verdict != "unanswered":
            votes.setdefault(trial.extracted, []).append(trial)
    if not votes:
        return None
    return max(votes.values(), key=len)[0]  # max keeps the first of equals


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), by the standard library alone."""
    from statistics import NormalDist

    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = successes / total, 1 + z * z / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


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
        "accuracy_at": {str(k): accuracy(k) for k in _marks(reach)},
        "trials_total": trials_total,
        "trials_mean": trials_total / total if total else 0.0,
        "unanswered": sum(t.verdict == "unanswered" for r in records for t in r.trials),
        "usage": asdict(usage),
        "seconds": seconds,
        "decided_by": decided_by,
    }
    steps = [t for r in records for t in r.trials if t.divergence is not None]
    if steps:
        found = [t.divergence for t in steps if t.divergence is not None]
        summary["divergence"] = {"mean": sum(found) / len(found), "max": max(found)}
        summary["resets"] = sum(t.reset for t in steps)
    best = [record.score for record in records if record.score is not None]
    if best:
        summary["score"] = sum(best) / len(best)
    if decided_by == "vote":
        summary["vote_accuracy_at"] = {str(k): accuracy(k) for k in range(1, reach + 1)}
        if budget is not None:
            summary["samples_saved"] = sum(max(0, budget - max(c, default=0)) for c in counted)
    return summary


def _marks(reach: int) -> list[int]:
    """1, 2, 4 ... and the whole budget."""
    powers = [1 << n for n in range(max(reach, 1).bit_length())]
    return powers if reach <= powers[-1] else [*powers, reach]
