"""``fttt compare`` and ``fttt report``: stored runs, held against each other or on a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fttt.cli.flags import RunFolders
from fttt.errors import UsageError
from fttt.files import cannot_write
from fttt.store import open_runs

__all__ = ["compare_command", "report_command"]

FirstTrials = Annotated[
    int | None,
    typer.Option(
        "--trials", min=1, metavar="K", help="Look at the first K trials of each question only."
    ),
]


def compare_command(
    runs: RunFolders,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON instead of tables.")
    ] = False,
    intersection: Annotated[
        bool,
        typer.Option("--intersection", help="Compare on the questions that all runs finished."),
    ] = False,
    trials: FirstTrials = None,
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
    with _report_extra("fttt compare"):
        from fttt.report.compare import compare
        from fttt.report.outcomes import truncate
        from fttt.report.text import render
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


class PlotFormat(StrEnum):
    """What a plot can be written as."""

    PNG = "png"
    SVG = "svg"


def report_command(
    runs: RunFolders,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Also write each plot into this folder.")
    ] = None,
    plot_format: Annotated[
        PlotFormat, typer.Option("--format", help="What to write the plots as.")
    ] = PlotFormat.PNG,
    intersection: Annotated[
        bool,
        typer.Option("--intersection", help="Use the questions that all runs finished."),
    ] = False,
    trials: FirstTrials = None,
) -> None:
    """Write runs as one self-contained HTML file: table, curves, tokens and every trial."""
    with _report_extra("fttt report"):
        from fttt.report.outcomes import truncate
        from fttt.report.page import build_page, gather, save_plots
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder; name an HTML file.")
    sections = gather(truncate(open_runs(runs), trials), intersection)
    page = build_page(sections)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        typer.echo(f"Wrote {out} ({len(page) / 1e6:.1f} MB).")
        if plots is not None:
            for path in save_plots(sections, plots, plot_format.value):
                typer.echo(f"Wrote {path}.")
    except OSError as error:
        place = Path(error.filename or out)
        raise cannot_write(place, error, "name another place with --out or --plots") from error


@contextmanager
def _report_extra(command: str) -> Iterator[None]:
    """Name the extra that a missing package belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`{command}` needs the package {error.name!r}, which is not installed; "
            "install it with `pip install 'fttt[report]'`."
        ) from error
