"""What commands print at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fttt.store import Run

__all__ = ["show_runs"]


def show_runs(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print one table of finished runs, and their folders."""
    console = console or Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    tasks = {run.task for run in runs}
    table.add_column("method")
    if len(tasks) > 1:
        table.add_column("task")
    for name in ("solved", "accuracy", "95 %", "trials", "tokens", "seconds", "tokens/s"):
        table.add_column(name, justify="right")
    for run in runs:
        cells = [run.method, *([run.task] if len(tasks) > 1 else []), *_figures(run.summary)]
        table.add_row(*cells)
    console.print(table)
    for run in runs:
        console.print(f"{run.path}", soft_wrap=True, highlight=False)


def _figures(summary: Mapping[str, Any]) -> list[str]:
    low, high = summary["ci95"]
    tokens, seconds = summary["usage"]["generated_tokens"], summary["seconds"]
    return [
        f"{summary['solved']}/{summary['questions']}",
        f"{100 * summary['accuracy']:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{summary['trials_total']:,}",
        f"{tokens:,}",
        f"{seconds:,.1f}",
        f"{tokens / seconds:,.0f}" if seconds else "",
    ]
