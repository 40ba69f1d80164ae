"""``fttt sweep``: a grid of runs in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.options import say_how_to_resume
from fttt.cli.run import load
from fttt.files import output_folder

__all__ = ["sweep_command"]


def sweep_command(
    file: Annotated[
        Path, typer.Argument(help="TOML file with methods, tasks, seeds, vary and base.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the runs; that of an unfinished sweep goes on"),
    ] = None,
) -> None:
    """Run methods x tasks x seeds x settings with the model loaded once; end in one table."""
    from fttt.config import build, read_toml
    from fttt.experiment.sweep import SweepConfig, run_sweep
    from fttt.progress import Progress
    from fttt.report.run_table import show_runs

    config = build(SweepConfig, read_toml(file), str(file))
    with (
        output_folder(out, file.stem) as folder,
        say_how_to_resume(f"`fttt sweep {file} --out {folder}`", folder),
    ):
        runs = run_sweep(config, folder, load, Progress(file.stem))
    show_runs(runs)
