"""Options that commands share and that are no field of a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.flags import DATA

__all__ = ["DryRun", "JudgeURL", "Recipe", "RunFolders", "ask_judge"]

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
