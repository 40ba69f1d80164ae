"""The report's curves of a run that goes on, against one chosen beside it."""

from __future__ import annotations

import time
from typing import Any

from fttt.errors import UsageError
from fttt.report.outcomes import AXES
from fttt.report.page import legend
from fttt.report.plots import budget_figures, inline_svg
from fttt.report.sides import Side, check_rules
from fttt.report.text import count
from fttt.store import FollowedRun
from fttt.viewer.stream import told_apart
from fttt.viewer.watcher import Watcher

__all__ = ["LiveCurves"]

_NAMES = {"solved": "", "score": "best score, "}
_LEAST, _SHARE = 4.0, 12
"""Seconds until curves are drawn again: at least so many, and so many times what drawing took."""


class LiveCurves:
    """Draws curves when a page asks, never so often that the runs would feel it.

    A curve counts the questions that have begun: those that ended first were solved first, so the
    finished ones alone would flatter a run. A question that has not been given so many trials yet
    counts as unsolved there, and the line is dotted where that concerns more than 5 % of them.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._drawn: dict[tuple[str, str], tuple[Any, float, dict[str, Any]]] = {}

    def draw(self, key: str, against: str) -> dict[str, Any]:
        """The figures as SVG, what belongs beside them, and when to ask again."""
        with self._watcher.lock:
            runs = [self._watcher.runs[k] for k in (key, against) if k in self._watcher.runs]
            stamp = [(run.epoch, len(run.changes), run.summary is not None) for run in runs]
        old = self._drawn.get((key, against))
        if old is not None and old[2]["figures"] and (old[0] == stamp or time.monotonic() < old[1]):
            return {**old[2], "again": max(_LEAST, old[1] - time.monotonic())}
        began = time.monotonic()
        made = {"stamp": str(stamp), **self._draw(runs)}
        wait = max(_LEAST, _SHARE * (time.monotonic() - began))
        if len(self._drawn) > 8:
            self._drawn.clear()
        self._drawn[key, against] = (stamp, time.monotonic() + wait, made)
        return {**made, "again": wait}

    def _draw(self, runs: list[FollowedRun]) -> dict[str, Any]:
        with self._watcher.lock:
            begun = [{q.id: q.sha256 for q in run.questions if q.trials or q.done} for run in runs]
            ids = [i for i, digest in begun[0].items() if all(b.get(i) == digest for b in begun)]
            partial = [run.partial(ids) for run in runs]
        beside = "" if len(runs) < 2 else _beside(partial, len(ids))
        if not ids:
            ended = any(run.summary is not None for run in runs)
            said = beside or ("Reading its trials." if ended else "No trial yet.")
            return {"figures": [], "scores": [], "legend": [], "said": said}
        labels = told_apart(partial)
        sides = [
            Side(label, (run,), tuple(ids)) for label, run in zip(labels, partial, strict=True)
        ]
        drawn = {
            measure: [
                inline_svg(figure, f"Live, {_NAMES[measure]}{axis}")
                for axis, figure in zip(AXES, figures, strict=True)
            ]
            for measure, figures in budget_figures(sides, legend=False).items()
        }
        rows = list(drawn.values())
        total = len(runs[0].questions)
        of = "" if len(ids) == total else f" of {count(total)}"
        both = " that both runs have begun" if len(runs) > 1 else " that have begun"
        said = f"Over the {count(len(ids))}{of} questions{both if of or len(runs) > 1 else ''}."
        if "score" in drawn:
            lower = "The lower row" if len(rows) > 1 else "Each figure"
            said += f" {lower} is the best score of a question so far, mean over questions."
        return {
            "figures": rows[0],
            "scores": rows[1] if len(rows) > 1 else [],
            "legend": [dict(entry) for entry in legend(labels)],
            "said": f"{said} {beside}".strip(),
        }


def _beside(partial: list[Any], shared: int) -> str:
    """Why the two must not be compared, if so."""
    if not shared:
        return "The two runs have begun no question in common, so there is no curve of both."
    try:
        return " ".join(check_rules(partial, ()))
    except UsageError as error:
        return f"Not to be compared: {error}"
