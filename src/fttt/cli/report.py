"""``fttt report``: runs as one HTML file that works offline."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.options import RunFolders
from fttt.errors import UsageError
from fttt.files import cannot_write
from fttt.store import open_runs

__all__ = ["PlotFormat", "report_command"]


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
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=1, metavar="K", help="Look at the first K trials of each question only."
        ),
    ] = None,
) -> None:
    """Write runs as one self-contained HTML file: table, curves, tokens and every trial."""
    try:
        from fttt.report.outcomes import truncate
        from fttt.report.page import build_page, gather, save_plots
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`fttt report` needs the package {error.name!r}, which is not installed; "
            "install it with `pip install 'fttt[report]'`."
        ) from error
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
