"""``fttt finetune evaluate``: what checkpoints solve, beside what they cost to train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.flags import DATA, JudgeURL, ask_judge, say_how_to_resume, with_flags
from fttt.cli.runs import load
from fttt.files import output_folder

if TYPE_CHECKING:
    from fttt.experiment.evaluate import Evaluated
    from fttt.store import Run

__all__ = ["evaluate_command"]

KEPT = 0.9
"""Share of a trained change that merged weights should hold."""


@with_flags(
    without=[
        "method", "adapter", "save_correct_cases", "data.questions", "data.prompt", "data.seed",
        "budget.token_budget", "budget.time_budget", "engine.max_length", "settings",
    ],
    texts={
        "task": "a task of `fttt list tasks`, or module:Class (what it was trained on)",
        "model": "base model (the one that the checkpoint names)",
        "data.skip_cases": "the hard questions are those that this file does not name, as "
        "`fttt run greedy` of the base model writes it (else those that the checkpoint's greedy "
        "decoding fails)",
    },
)  # fmt: skip
def evaluate_command(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="folders that `fttt finetune train` wrote"),
    ],
    flags: dict[str, Any],
    hard_limit: Annotated[
        int | None, typer.Option(help="at most this many hard questions", rich_help_panel=DATA)
    ] = None,
    judge_url: JudgeURL = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the runs; that of an unfinished evaluation is resumed"),
    ] = None,
) -> None:
    """Greedy decoding on all questions, then independent samples on the hard ones.

    Several checkpoints are evaluated one after the other, and share one table.
    """
    ask_judge(judge_url)
    _evaluate(checkpoints, flags, hard_limit, out)


def _evaluate(
    checkpoints: Sequence[Path], base: dict[str, Any], hard_limit: int | None, out: Path | None
) -> None:
    from fttt.experiment.evaluate import evaluated, evaluation
    from fttt.experiment.sweep import run_sweep
    from fttt.progress import Progress

    sweep = evaluation(checkpoints, base, hard_limit=hard_limit)
    name = checkpoints[0].resolve().name if len(checkpoints) == 1 else f"{len(checkpoints)}"
    with (
        output_folder(out, f"evaluate-{name}-{sweep.tasks[0]}") as folder,
        say_how_to_resume(f"the same command and --out {folder}", folder),
    ):
        runs = run_sweep(sweep, folder, load, Progress("evaluate"))
    _show(evaluated(runs), runs)


def _show(rows: Sequence[Evaluated], runs: Sequence[Run]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fttt.report.run_table import show_folders

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
    show_folders(runs, console)


def _accuracy(run: Run) -> tuple[str, str]:
    summary = run.summary
    low, high = summary["ci95"]
    share = f"{summary['solved']}/{summary['questions']} ({100 * summary['accuracy']:.1f} %)"
    return share, f"{100 * low:.1f} to {100 * high:.1f}"
