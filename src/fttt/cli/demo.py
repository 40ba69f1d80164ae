"""``fttt demo``: the main job on the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.options import say_how_to_resume
from fttt.cli.run import load
from fttt.files import output_folder

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[Path | None, typer.Option(help="folder of the three runs")] = None,
) -> None:
    """Greedy decoding first; what it fails is tried again by best-of-n and by FTTT.

    All on the embedded model and word problems made on the spot: nothing is downloaded.
    """
    from fttt.experiment.demo import DEMO
    from fttt.experiment.sweep import run_sweep
    from fttt.progress import Progress
    from fttt.report.run_table import show_runs

    with (
        output_folder(out, "demo") as folder,
        say_how_to_resume(f"`fttt demo --out {folder}`", folder),
    ):
        runs = run_sweep(DEMO, folder, load, Progress("demo"))
    show_runs(runs)
    if len(runs) > 1:
        typer.echo(f"Compare them: fttt compare {' '.join(str(run.path) for run in runs[1:])}")
