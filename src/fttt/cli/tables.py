"""What commands print at their end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fttt.store import Run

__all__ = ["show_runs"]


def show_runs(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print one table of finished runs, and their folders.

    Several runs are named by their folders. They may have shared the engine's batch, so their
    seconds overlap and no speed is made of them.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge to wrap at
    alone = len(runs) == 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method" if alone else "run", overflow="fold")
    names = ["solved", "accuracy", "95 %", "trials", "tokens", "seconds"]
    for name in [*names, "tokens/s"] if alone else names:
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        figures = _figures(run)
        if alone:
            tokens, seconds = run.summary["usage"]["generated_tokens"], run.summary["seconds"]
            figures.append(f"{tokens / seconds:,.0f}" if seconds else "")
        table.add_row(run.method if alone else run.path.name, *figures)
    console.print(table)
    for run in runs:
        console.print(str(run.path), soft_wrap=True, highlight=False)


def _figures(run: Run) -> list[str]:
    summary = run.summary
    low, high = summary["ci95"]
    return [
        f"{summary['solved']}/{summary['questions']}",
        f"{100 * summary['accuracy']:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{summary['trials_total']:,}",
        f"{summary['usage']['generated_tokens']:,}",
        f"{summary['seconds']:,.1f}",
    ]
