"""``fttt check``: a task's gold answers through the task's own verifier."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.options import found_data
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.gold_check import CheckReport, check_task

__all__ = ["check_command"]

_SHOWN = 20


def check_command(
    task: Annotated[
        str, typer.Argument(help="The task: one of `fttt list tasks`, or module:Class.")
    ],
    data_dir: Annotated[
        Path | None, typer.Option(help="The benchmark's folder (or jsonl file); else the hub.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split.")] = "test",
    verifier: Annotated[
        str | None, typer.Option(help="For jsonl: number, math, regex, command:LINE, ...")
    ] = None,
    math_rule: Annotated[
        str | None,
        typer.Option(help="For math500: equivalence or strict; for gsm8k: value or strict."),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="For programs: a served judge; else an embedded one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge every gold answer and solution, and wrong answers made from them.

    Exits with 0 where every gold is correct and every wrong answer is not, else with 1.
    """
    choices = {"verifier": verifier, "rule": math_rule, "judge_url": judge_url}
    made = get_task(task, **{key: value for key, value in choices.items() if value is not None})
    data_dir = data_dir or found_data(made, split)
    report = asyncio.run(check_task(made, TaskOptions(data_dir=data_dir, split=split)))
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"as_expected": report.as_expected}))
    else:
        _print(report)
    if not report.as_expected:
        raise typer.Exit(1)


def _print(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{report.task}, {report.split}: {report.questions} questions")
    for column in ("what", "judged", "mistakes", "expected"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {
        "gold answers that fail": report.golds,
        "gold answers rewritten that fail": report.rewritten,
        "gold solutions that fail": report.solutions,
        "wrong answers that pass": report.wrong,
    }
    for name, tally in rows.items():
        if tally.judged:
            table.add_row(name, f"{tally.judged:,}", f"{len(tally.mistakes):,}", "0")
    console.print(table)
    if report.broken:
        console.print(
            f"Left out, since their gold is missing or wrong in the benchmark: "
            f"{', '.join(report.broken)}",
            markup=False,
        )
    for name, tally in rows.items():
        for mistake in tally.mistakes[:_SHOWN]:
            console.print(
                f"{name}: {mistake.question_id}: {mistake.detail or mistake.completion[:200]}",
                markup=False,
            )
        if len(tally.mistakes) > _SHOWN:
            console.print(f"{name}: and {len(tally.mistakes) - _SHOWN} more (--json names all)")
