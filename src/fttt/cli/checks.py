"""``fttt check`` and ``fttt verify``: answers held against gold answers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.flags import found_data
from fttt.config import key_values
from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.types import Verdict
from fttt.verifiers.verifier import choose_verifier
from fttt.verifiers.verify_lines import verify_lines

if TYPE_CHECKING:
    from fttt.tasks.gold_check import CheckReport

__all__ = ["check_command", "verify_command"]

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
    task_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Options of the task.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge every gold answer and solution, and wrong answers made from them.

    Exits with 0 where every gold is correct and every wrong answer is not, else with 1.
    """
    from fttt.tasks.gold_check import check_task  # late: it knows every verifier

    choices = {"verifier": verifier, "rule": math_rule, "judge_url": judge_url}
    given = {key: value for key, value in choices.items() if value is not None}
    made = get_task(task, **given, **key_values(task_option or [], "--task-option"))
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


class GoldKind(StrEnum):
    """What the gold answers are."""

    NUMBER = "number"
    MATH = "math"
    CHOICE = "choice"
    CODE = "code"


class MathRule(StrEnum):
    """How answers of mathematics are compared."""

    EQUIVALENCE = "equivalence"
    STRICT = "strict"


class NumberRule(StrEnum):
    """Where numbers are looked for."""

    VALUE = "value"
    STRICT = "strict"


def verify_command(
    kind: Annotated[GoldKind, typer.Argument(help="What the gold answers are.")],
    file: Annotated[
        Path | None, typer.Argument(help="JSON lines; by default standard input.")
    ] = None,
    math_rule: Annotated[
        MathRule, typer.Option(help="How answers of mathematics are compared.")
    ] = MathRule.EQUIVALENCE,
    number_rule: Annotated[
        NumberRule,
        typer.Option(help='Where numbers are looked for; strict: behind "The final answer is".'),
    ] = NumberRule.VALUE,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for one comparison of mathematics.", min=0.01)
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="For code: a served judge; else an embedded one.")
    ] = None,
) -> None:
    """Judge lines {"gold", "completion"}; print {"verdict", "extracted", "detail"} for each.

    A line may have a "finish_reason": "length" says that the completion was cut off at its limit.
    A "prompt" names the options of a choice, and its repetition is no answer.

    Verdicts keep the order of the lines, and each is printed as soon as the earlier ones are.
    """
    rules = {GoldKind.MATH: math_rule.value, GoldKind.NUMBER: number_rule.value}
    choice = f"{kind.value}-strict" if rules.get(kind) == "strict" else kind.value
    verifier = choose_verifier(choice, time_limit=time_limit, judge_url=judge_url)
    with _opened(file) as lines:
        source = str(file) if file else "standard input"
        asyncio.run(_print_verdicts(verify_lines(verifier, kind.value, lines, source)))


def _opened(file: Path | None) -> Any:
    if file is None or str(file) == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        raise UsageError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from None


async def _print_verdicts(verdicts: AsyncIterator[Verdict]) -> None:
    async for verdict in verdicts:
        line = {
            "verdict": verdict.outcome,
            "extracted": verdict.extracted,
            "detail": verdict.detail,
            **({"failed": True} if verdict.failed else {}),
        }
        typer.echo(json.dumps(line))
