"""``fttt compare``: two or more runs on the same questions, held against each other."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from fttt.cli.options import RunFolders
from fttt.errors import UsageError
from fttt.store import open_runs

__all__ = ["compare_command"]


def compare_command(
    runs: RunFolders,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON instead of tables.")
    ] = False,
    intersection: Annotated[
        bool,
        typer.Option("--intersection", help="Compare on the questions that all runs finished."),
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=1, metavar="K", help="Look at the first K trials of each question only."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="SETTING",
            help="Compare although this differs (model, temperature, unanswered ...); repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="METHOD", help="Compare every other side with this one only."
        ),
    ] = None,
) -> None:
    """Compare runs on the same questions, paired, at equal trials and at equal tokens."""
    try:
        from fttt.report.compare import compare
        from fttt.report.outcomes import truncate
        from fttt.report.text import render
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`fttt compare` needs the package {error.name!r}, which is not installed; "
            "install it with `pip install 'fttt[report]'`."
        ) from error
    comparison, _ = compare(
        truncate(open_runs(runs), trials),
        intersection=intersection,
        allow=allow or (),
        baseline=baseline,
    )
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
    else:
        Console().print(render(comparison))
