"""``fttt finetune evaluate``: what checkpoints solve, beside what they cost to train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.run import BUDGET, DATA, ENGINE, SAMPLING, given, load, option
from fttt.config import key_values

if TYPE_CHECKING:
    from fttt.experiment.evaluate import Evaluated
    from fttt.store import Run

__all__ = ["evaluate_command"]

KEPT = 0.9
"""Share of a trained change that merged weights should hold."""


def evaluate_command(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="folders that `fttt finetune train` wrote"),
    ],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="a task of `fttt list tasks` (what it was trained on)"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="base model (the one that the checkpoint names)"),
    ] = None,
    data_dir: Annotated[Path | None, option("data.data_dir", "--data-dir", panel=DATA)] = None,
    split: Annotated[str | None, option("data.split", "--split", panel=DATA)] = None,
    limit: Annotated[int | None, option("data.limit", "--limit", panel=DATA)] = None,
    skip_cases: Annotated[
        Path | None,
        typer.Option(
            help="the hard questions are those that this file does not name, as `fttt run greedy` "
            "of the base model writes it (else those that the checkpoint's greedy decoding fails)",
            metavar="FILE",
            rich_help_panel=DATA,
        ),
    ] = None,
    hard_limit: Annotated[
        int | None, typer.Option(help="at most this many hard questions", rich_help_panel=DATA)
    ] = None,
    task_option: Annotated[
        list[str] | None, option("data.options", "--task-option", panel=DATA, metavar="KEY=VALUE")
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            help="the code judge to ask (else OJ_API, else an embedded one)", rich_help_panel=DATA
        ),
    ] = None,
    trials: Annotated[int | None, option("budget.trials", "--trials", panel=BUDGET)] = None,
    unanswered: Annotated[
        str | None,
        option("budget.unanswered", "--unanswered", panel=BUDGET, metavar="count|retry"),
    ] = None,
    seed: Annotated[int | None, option("seed", "--seed", panel=SAMPLING)] = None,
    temperature: Annotated[
        float | None, option("sampling.temperature", "--temperature", panel=SAMPLING)
    ] = None,
    top_p: Annotated[float | None, option("sampling.top_p", "--top-p", panel=SAMPLING)] = None,
    max_new_tokens: Annotated[
        int | None, option("sampling.max_new_tokens", "--max-new-tokens", panel=SAMPLING)
    ] = None,
    batch_size: Annotated[
        int | None, option("engine.batch_size", "--batch-size", panel=ENGINE)
    ] = None,
    dtype: Annotated[str | None, option("engine.dtype", "--dtype", panel=ENGINE)] = None,
    device: Annotated[str | None, option("engine.device", "--device", panel=ENGINE)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the runs; that of an unfinished evaluation goes on"),
    ] = None,
) -> None:
    """Greedy decoding on all questions, then independent samples on the hard ones.

    Several checkpoints are evaluated one after the other, and share one table.
    """
    base = given(
        {
            "task": task,
            "model": model,
            "seed": seed,
            "data": {
                "data_dir": None if data_dir is None else str(data_dir),
                "split": split,
                "limit": limit,
                "skip_cases": None if skip_cases is None else str(skip_cases),
                "options": key_values(task_option or [], "--task-option"),
            },
            "budget": {"trials": trials, "unanswered": unanswered},
            "sampling": {
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
            },
            "engine": {"dtype": dtype, "device": device, "batch_size": batch_size},
        }
    )
    if judge_url is not None:
        os.environ["OJ_API"] = judge_url  # where a client of the judge looks for it
    _evaluate(checkpoints, base, hard_limit, out)


def _evaluate(
    checkpoints: Sequence[Path], base: dict[str, Any], hard_limit: int | None, out: Path | None
) -> None:
    from fttt.errors import RunError
    from fttt.experiment.evaluate import evaluated, evaluation
    from fttt.experiment.progress import Progress
    from fttt.experiment.sweep import run_sweep

    sweep = evaluation(checkpoints, base, hard_limit=hard_limit)
    name = checkpoints[0].resolve().name if len(checkpoints) == 1 else f"{len(checkpoints)}"
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = out or Path("outputs") / f"evaluate-{name}-{sweep.tasks[0]}-{time}"
    try:
        runs = run_sweep(sweep, folder, load, Progress("evaluate"))
    except RunError:
        typer.echo(f"fttt: Go on with the same command and --out {folder}.", err=True)
        raise
    _show(evaluated(runs), runs)


def _show(rows: Sequence[Evaluated], runs: Sequence[Run]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge to wrap at
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for name in ("trained parameters", "trained tokens", "training s", "greedy", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("hard ones", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    for row in rows:
        facts = row.facts
        table.add_row(
            Path(facts["folder"]).resolve().name,
            facts["method"],
            f"{facts['trained_parameters']:,}",
            f"{facts['trained_tokens']:,}",
            f"{facts['seconds']:,.1f}",
            *_accuracy(row.greedy),
            *(("none", "") if row.samples is None else _accuracy(row.samples)),
        )
    console.print(table)
    for row in rows:
        kept = row.facts.get("change_kept", 1.0)
        if kept < KEPT:
            typer.echo(
                f"fttt: In {row.greedy.environment['dtype']} the weights hold {100 * kept:.0f} % "
                f"of what {row.facts['folder']} was trained to; --dtype float32 holds all of it.",
                err=True,
            )
    for run in runs:
        console.print(str(run.path), soft_wrap=True, highlight=False)


def _accuracy(run: Run) -> tuple[str, str]:
    summary = run.summary
    low, high = summary["ci95"]
    share = f"{summary['solved']}/{summary['questions']} ({100 * summary['accuracy']:.1f} %)"
    return share, f"{100 * low:.1f} to {100 * high:.1f}"
