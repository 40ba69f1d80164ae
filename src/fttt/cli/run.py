"""``fttt run``: one method on one task with one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.flags import DATA, PANELS, with_flags
from fttt.cli.options import DryRun, JudgeURL, Recipe, ask_judge, say_how_to_resume
from fttt.config import (
    RunConfig,
    field_help,
    in_sections,
    merge,
    read_toml,
    resolve,
    to_toml,
)
from fttt.errors import UsageError
from fttt.files import output_folder

if TYPE_CHECKING:
    from fttt.models import LoadedModel

__all__ = ["load", "run_command", "run_flags"]


@with_flags(
    without=["method", "data.prompt"],
    panels={**PANELS, "save_correct_cases": "Correct cases"},  # whose long flags squeeze others
)
def run_command(
    flags: dict[str, Any],
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help=field_help("method"), show_default=False)
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            help="file with the prompt instead of the task's own; {question} marks the place",
            metavar="FILE",
            rich_help_panel=DATA,
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            help="how answers are judged, for the task jsonl: number, math, code, regex, "
            "regex:PATTERN, command:LINE or python:MODULE:FUNCTION",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    math_rule: Annotated[
        str | None,
        typer.Option(
            help="math500: how answers are compared",
            metavar="equivalence|strict",
            rich_help_panel=DATA,
        ),
    ] = None,
    judge_url: JudgeURL = None,
    reflection: Annotated[
        bool, typer.Option("--reflection", help="fttt: learn from a written critique too")
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(help="optune: which trials are edited", metavar="alternate|accumulate"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="folder of what was trained before (finetuned, optune): the setting 'checkpoint'",
            metavar="DIR",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder to begin (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="run folder to go on with")] = None,
    recipe: Recipe = None,
    dry_run: DryRun = False,
) -> None:
    """Try each question of a task by a method, and keep every trial in a run folder."""
    further = {
        "method": method,
        "prompt": prompt and _text(prompt),
        "options": _given({"verifier": verifier, "rule": math_rule}),
        "settings": _given(
            {
                "reflection": reflection or None,
                "schedule": schedule,
                "checkpoint": checkpoint and str(checkpoint),
            }
        ),
    }
    flags = merge(flags, in_sections(further))
    ask_judge(judge_url)
    run_flags(flags, out, resume, recipe, dry_run=dry_run)


def run_flags(
    flags: dict[str, Any],
    out: Path | None,
    resume: Path | None,
    recipe: Path | None = None,
    *,
    dry_run: bool = False,
) -> None:
    """Carry out a run: flags over file over defaults, in a new folder or in ``resume``."""
    if resume is not None and out is not None:
        raise UsageError("--resume goes on in its own folder; leave --out away.")
    file = None if recipe is None else read_toml(recipe)
    if resume is not None:
        _resume(resume, merge(file or {}, flags))
        return
    if "method" not in flags and "method" not in (file or {}):
        raise UsageError(
            "No method was given; write `fttt run METHOD ...` with one of `fttt list methods`."
        )
    config = resolve(flags, recipe=file, source=str(recipe))

    from fttt.experiment.plan import check_names, prepare

    if dry_run:
        typer.echo(to_toml(check_names(config)), nl=False)
        return
    plan = prepare(config, find_cases=True)
    for note in plan.notes:
        typer.echo(note, err=True)

    from fttt.experiment.runner import Cell

    with output_folder(out, plan.folder_name) as folder:
        _carry_out(Cell(plan, folder))


def _resume(folder: Path, flags: dict[str, Any]) -> None:
    from fttt.experiment.resume import resume_plan
    from fttt.store import Run

    run = Run.open(folder)
    method = flags.get("method", run.method)
    if method != run.method:
        raise UsageError(
            f"The run in {str(folder)!r} is one of {run.method!r} and cannot go on as {method!r}; "
            f"go on with it by `fttt run --resume {folder}`, or start a new run."
        )
    plan = resume_plan(run, merge(run.config, flags))
    if run.finished:
        _show(run)
        return

    from fttt.experiment.runner import Cell

    _carry_out(Cell(plan, folder, resume=True))


def _carry_out(cell: Any) -> None:
    from fttt.experiment.runner import run_cells
    from fttt.progress import Progress

    config: RunConfig = cell.plan.config
    loaded = load(config)
    with say_how_to_resume(f"`fttt run --resume {cell.folder}`", cell.folder):
        run = run_cells([cell], loaded, Progress(config.method))[0]
    _show(run)


def load(config: RunConfig) -> LoadedModel:
    """Load a config's model, with the checkpoint that it starts from."""
    from fttt.experiment.plan import load_weights

    engine = config.engine
    return load_weights(config.model, config.adapter, dtype=engine.dtype, device=engine.device)


def _show(run: Any) -> None:
    from fttt.report.run_table import show_runs

    show_runs([run])


def _text(file: Path) -> str:
    """The prompt in a file, without the line break at its end."""
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The prompt file {str(file)!r} cannot be read: {reason}.") from None


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}
