"""What one open page has not been told yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fttt.report.sides import side_labels
from fttt.store import FollowedQuestion, FollowedRun, Run, spent
from fttt.viewer.watcher import Watcher

__all__ = ["RunStream", "told_apart"]

_LETTERS = {"correct": "c", "incorrect": "i", "unanswered": "u"}


class RunStream:
    """The list of runs, and the trials of a run and of one chosen beside it, for one page.

    At first all is told, then what has changed.
    """

    def __init__(self, watcher: Watcher, run: str = "", against: str = "") -> None:
        self.keys = [key for key in dict.fromkeys((run, against)) if key in watcher.runs]
        self._watcher = watcher
        self._rows: dict[str, dict[str, Any]] | None = None
        self._head: dict[str, Any] = {}
        self._told: dict[str, tuple[int, int, int]] = {}
        """Of each run: its epoch, the number of its questions, and how many changes were told."""

    def news(self) -> list[tuple[str, Any]]:
        """Names and contents of the next events."""
        events: list[tuple[str, Any]] = []
        rows = {row["key"]: row for row in self._watcher.rows()}
        told = self._rows or {}
        changed = [row for key, row in rows.items() if told.get(key) != row]
        if changed or self._rows is None or list(rows) != list(told):
            events.append(("runs", {"rows": changed, "order": list(rows)}))
            self._rows = rows
        head = {"memory": self._watcher.memory, "broken": self._watcher.broken}
        if head != self._head:
            events.append(("head", head))
            self._head = head
        for key in self.keys:
            run = self._watcher.runs.get(key)
            if run is not None:
                with self._watcher.lock:
                    events.extend(self._of(key, run))
        return events

    def _label(self, key: str) -> str:
        runs = {k: self._watcher.runs[k].run for k in self.keys if k in self._watcher.runs}
        return dict(zip(runs, told_apart(list(runs.values())), strict=True))[key]

    def _of(self, key: str, run: FollowedRun) -> list[tuple[str, Any]]:
        now = (run.epoch, len(run.questions), len(run.changes))
        before = self._told.get(key)
        if before == now:
            return []
        self._told[key] = now
        if before is None or before[:2] != now[:2]:
            return [("run", {"key": key, "label": self._label(key), **_entry(run)})]
        places = sorted(set(run.changes[before[2] :]))
        facts = [[place, *_facts(run, run.questions[place])] for place in places]
        return [("trials", {"key": key, "questions": facts})]


def told_apart(runs: Sequence[Run]) -> list[str]:
    """A name for each of a few runs that tells it from the others."""
    labels = side_labels([(run,) for run in runs])
    if all(label == run.path.name for label, run in zip(labels, runs, strict=True)):
        labels = [run.method for run in runs]  # they differ in their seeds alone, or in nothing
    named = [f"{label}, seed {run.seed}" for label, run in zip(labels, runs, strict=True)]
    return named if len(set(named)) == len(named) else [run.path.name for run in runs]


def _entry(run: FollowedRun) -> dict[str, Any]:
    """A run as the page's script reads it; see ``trials.js``."""
    facts = [_facts(run, question) for question in run.questions]
    named = ("verdicts", "solved", "tokens", "scores", "done")
    return {
        "name": run.path.name,
        "task": run.run.task,
        "budget": run.run.trial_budget,
        "beside": _beside(run),
        "ids": [question.id for question in run.questions],
        **{name: [fact[n] for fact in facts] for n, name in enumerate(named)},
    }


def _beside(run: FollowedRun) -> str:
    from fttt.report.page import beside

    return beside(run.run)


def _facts(run: FollowedRun, question: FollowedQuestion) -> list[Any]:
    """Verdicts, the trials it took (0: unsolved), tokens, scores and whether it is done."""
    trials = question.in_order
    scores = [trial.score for trial in trials]
    needed = 0
    if run.is_solved(question):
        costs = spent(trials, run.run.unanswered)
        first = (cost for t, cost in zip(trials, costs, strict=True) if t.verdict == "correct")
        needed = next(first, len(trials)) if run.run.decided_by == "first" else len(trials)
    return [
        "".join(_LETTERS[trial.verdict] for trial in trials),
        needed,
        sum(trial.usage.generated_tokens for trial in trials),
        scores if any(score is not None for score in scores) else None,
        question.done or run.summary is not None,
    ]
