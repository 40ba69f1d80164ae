"""Options that commands share; the help of most is the description of a field of the config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from fttt.config import RunConfig, field_default, field_help

__all__ = [
    "BUDGET",
    "CASES",
    "DATA",
    "ENGINE",
    "SAMPLING",
    "BatchSize",
    "DType",
    "DataDir",
    "Device",
    "DryRun",
    "JudgeURL",
    "Limit",
    "MaxNewTokens",
    "Recipe",
    "Setting",
    "Split",
    "TaskOption",
    "Temperature",
    "TopP",
    "Trials",
    "Unanswered",
    "ask_judge",
    "name_list",
    "option",
]

DATA, BUDGET, SAMPLING, ENGINE = "Questions", "Budget", "Sampling", "Engine"
CASES = "Correct cases"
"""A panel of its own, since a pair of long flags would squeeze the others."""


def option(
    path: str,
    *names: str,
    panel: str | None = None,
    model: type[BaseModel] = RunConfig,
    **more: Any,
) -> Any:
    """An option whose help is the description of a field of the config, and its default.

    Args:
        path: the field, as ``section.field`` or ``field``.
        names: the flags; by default the parameter's own name makes one.
        panel: the heading under which the help shows it.
        model: the config.
        more: of :func:`typer.Option`.
    """
    text = field_help(path, model)
    default = field_default(path, model)
    if default is not None:
        shown = ",".join(default) if isinstance(default, tuple) else default
        text += f" \\[{shown}]"  # no markup
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


DataDir = Annotated[Path | None, option("data.data_dir", panel=DATA)]
Split = Annotated[str | None, option("data.split", panel=DATA)]
Limit = Annotated[int | None, option("data.limit", panel=DATA)]
TaskOption = Annotated[list[str] | None, option("data.options", panel=DATA, metavar="KEY=VALUE")]
JudgeURL = Annotated[
    str | None,
    typer.Option(
        help="the code judge to ask (else OJ_API, else an embedded one)", rich_help_panel=DATA
    ),
]
Trials = Annotated[int | None, option("budget.trials", panel=BUDGET)]
Unanswered = Annotated[str | None, option("budget.unanswered", panel=BUDGET, metavar="count|retry")]
Temperature = Annotated[float | None, option("sampling.temperature", panel=SAMPLING)]
TopP = Annotated[float | None, option("sampling.top_p", panel=SAMPLING)]
MaxNewTokens = Annotated[int | None, option("sampling.max_new_tokens", panel=SAMPLING)]
BatchSize = Annotated[int | None, option("engine.batch_size", panel=ENGINE)]
DType = Annotated[str | None, option("engine.dtype", panel=ENGINE)]
Device = Annotated[str | None, option("engine.device", panel=ENGINE)]
Setting = Annotated[list[str] | None, option("settings", "--set", "-s", metavar="KEY=VALUE")]
Recipe = Annotated[Path | None, typer.Option(help="TOML file with settings; flags go over it")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved settings as a recipe, and stop")
]


def ask_judge(url: str | None) -> None:
    """Let the verifiers ask the code judge at ``url``, where one is named."""
    if url is not None:
        os.environ["OJ_API"] = url  # where a client of the judge looks for it


def name_list(text: str) -> list[str]:
    """The names in a value as ``one,two``."""
    return [part.strip() for part in text.split(",") if part.strip()]
