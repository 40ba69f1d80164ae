"""Options that commands share and that are no field of a config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.flags import DATA
from fttt.errors import DivergedError, RunError
from fttt.tasks import Task
from fttt.tasks.benchmark_data import local_data, local_note

__all__ = [
    "DryRun",
    "JudgeURL",
    "Recipe",
    "RunFolders",
    "ask_judge",
    "found_data",
    "say_how_to_resume",
]

JudgeURL = Annotated[
    str | None,
    typer.Option(
        help="the code judge to ask (else OJ_API, else an embedded one)", rich_help_panel=DATA
    ),
]
Recipe = Annotated[Path | None, typer.Option(help="TOML file with settings; flags go over it")]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        help="Run folders, or folders that hold runs; runs that differ in nothing but the seed are "
        "pooled."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved settings as a recipe, and stop")
]


def ask_judge(url: str | None) -> None:
    """Let the verifiers ask the code judge at ``url``, where one is named."""
    if url is not None:
        os.environ["OJ_API"] = url  # where a client of the judge looks for it


def found_data(task: Task, split: str) -> Path | None:
    """``./datasets``, where it holds the task's split; it is then said."""
    folder = local_data(task, split)
    if folder is not None and os.environ.get("RANK", "0") == "0":  # one process says it
        typer.echo(local_note(task.name), err=True)
    return folder


@contextmanager
def say_how_to_resume(command: str, folder: Path) -> Iterator[None]:
    """Print the command that resumes what has begun in ``folder`` and failed.

    Nothing is printed where the error names the command, or where resuming would fail again.
    """
    try:
        yield
    except RunError as error:
        helps = not isinstance(error, DivergedError) and command not in str(error)
        if helps and any(folder.glob("*.toml")):
            typer.echo(f"fttt: Resume with {command}.", err=True)
        raise
