"""``fttt regrade``: verdicts again from stored completions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fttt.files import numbered

__all__ = ["regrade_command"]


def regrade_command(
    run: Annotated[Path, typer.Argument(help="Run folder; it is not changed.")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the regraded copy (else RUN-regraded)")
    ] = None,
) -> None:
    """Judge the stored completions of a run again, without a model, and say what changed."""
    from fttt.experiment.regrade import regrade
    from fttt.report.run_table import show_runs
    from fttt.store import Run

    old = Run.open(run)
    names = numbered(run.with_name(f"{run.resolve().name}-regraded"))
    folder = out or next(name for name in names if not name.exists())
    new, changes = regrade(old, folder)
    for change in changes:
        before, after = change.before, change.after
        detail = f" ({after.detail})" if after.detail else ""
        typer.echo(
            f"{after.question_id} trial {after.trial}: {before.verdict} -> {after.verdict}{detail}"
        )
    solved = old.summary["solved"], new.summary["solved"]
    typer.echo(
        f"{len(changes)} of {len(new.trials)} verdicts changed; "
        f"solved questions: {solved[0]} before, {solved[1]} now."
    )
    show_runs([new])
