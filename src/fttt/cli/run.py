"""``fttt run``: one method on one task with one model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.config import RunConfig, field_help, key_values, merge, read_toml, resolve, to_toml
from fttt.errors import FTTTError, RunError, UsageError

if TYPE_CHECKING:
    from fttt.models import LoadedModel

__all__ = [
    "BUDGET",
    "DATA",
    "ENGINE",
    "SAMPLING",
    "given",
    "load",
    "option",
    "run_command",
    "run_flags",
]

DATA, BUDGET, SAMPLING, ENGINE = "Questions", "Budget", "Sampling", "Engine"


def option(path: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option whose help is the description of a field of the config."""
    return typer.Option(
        *names, help=field_help(path), rich_help_panel=panel, show_default=False, **more
    )


def run_command(
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help=field_help("method"), show_default=False)
    ] = None,
    model: Annotated[str | None, option("model", "--model", "-m")] = None,
    adapter: Annotated[Path | None, option("adapter", "--adapter", metavar="DIR")] = None,
    task: Annotated[str | None, option("task", "--task", "-t")] = None,
    seed: Annotated[int | None, option("seed", "--seed")] = None,
    data_dir: Annotated[Path | None, option("data.data_dir", "--data-dir", panel=DATA)] = None,
    split: Annotated[str | None, option("data.split", "--split", panel=DATA)] = None,
    limit: Annotated[int | None, option("data.limit", "--limit", panel=DATA)] = None,
    questions: Annotated[
        str | None, option("data.questions", "--questions", panel=DATA, metavar="ID,ID")
    ] = None,
    skip_cases: Annotated[
        Path | None, option("data.skip_cases", "--skip-cases", panel=DATA, metavar="FILE")
    ] = None,
    save_correct_cases: Annotated[
        bool | None,
        option("save_correct_cases", "--save-correct-cases/--no-save-correct-cases", panel=DATA),
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            help="file with the prompt instead of the task's own; {question} marks the place",
            metavar="FILE",
            rich_help_panel=DATA,
        ),
    ] = None,
    data_seed: Annotated[int | None, option("data.seed", "--data-seed", panel=DATA)] = None,
    task_option: Annotated[
        list[str] | None, option("data.options", "--task-option", panel=DATA, metavar="KEY=VALUE")
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            help="how answers are judged, for the task jsonl: number, math, code, regex, "
            "command:LINE or python:MODULE:FUNCTION",
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
    token_budget: Annotated[
        int | None, option("budget.token_budget", "--token-budget", panel=BUDGET)
    ] = None,
    time_budget: Annotated[
        float | None, option("budget.time_budget", "--time-budget", panel=BUDGET)
    ] = None,
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
    max_length: Annotated[
        int | None, option("engine.max_length", "--max-length", panel=ENGINE)
    ] = None,
    setting: Annotated[
        list[str] | None, option("settings", "--set", "-s", metavar="KEY=VALUE")
    ] = None,
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
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file with settings; flags go over it")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved settings as a recipe, and stop")
    ] = False,
) -> None:
    """Try each question of a task by a method, and keep every trial in a run folder."""
    options = key_values(task_option or [], "--task-option")
    options |= given({"verifier": verifier, "rule": math_rule})
    settings = key_values(setting or [], "--set")
    if reflection:
        settings["reflection"] = True
    settings |= given({"schedule": schedule, "checkpoint": checkpoint and str(checkpoint)})
    flags = given(
        {
            "method": method,
            "model": model,
            "adapter": None if adapter is None else str(adapter),
            "task": task,
            "seed": seed,
            "save_correct_cases": save_correct_cases,
            "data": {
                "data_dir": data_dir,
                "split": split,
                "limit": limit,
                "questions": None if questions is None else _ids(questions),
                "skip_cases": skip_cases,
                "prompt": None if prompt is None else _text(prompt),
                "seed": data_seed,
                "options": options,
            },
            "budget": {
                "trials": trials,
                "unanswered": unanswered,
                "token_budget": token_budget,
                "time_budget": time_budget,
            },
            "sampling": {
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
            },
            "engine": {
                "dtype": dtype,
                "device": device,
                "batch_size": batch_size,
                "max_length": max_length,
            },
            "settings": settings,
        }
    )
    if judge_url is not None:
        os.environ["OJ_API"] = judge_url  # where a client of the judge looks for it
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

    from fttt.experiment.plan import check_names, default_folder, prepare

    if dry_run:
        typer.echo(to_toml(check_names(config)), nl=False)
        return
    plan = prepare(config)

    from fttt.experiment.runner import Cell

    _carry_out(Cell(plan, out or default_folder(plan)))


def _resume(folder: Path, flags: dict[str, Any]) -> None:
    from fttt.experiment.resume import resume_plan
    from fttt.store import Run

    run = Run.open(folder)
    plan = resume_plan(run, merge(run.config, flags))
    if run.finished:
        _show(run)
        return

    from fttt.experiment.runner import Cell

    _carry_out(Cell(plan, folder, resume=True))


def _carry_out(cell: Any) -> None:
    from fttt.experiment.progress import Progress
    from fttt.experiment.runner import run_cells

    config: RunConfig = cell.plan.config
    loaded = load(config)
    try:
        run = run_cells([cell], loaded, Progress(config.method))[0]
    except FTTTError as error:
        command = f"fttt run --resume {cell.folder}"
        if isinstance(error, RunError) and cell.folder.is_dir() and command not in str(error):
            typer.echo(f"fttt: Go on with `{command}`.", err=True)
        raise
    _show(run)


def load(config: RunConfig) -> LoadedModel:
    """Load a config's model, with the checkpoint that it starts from."""
    from fttt.experiment.plan import load_weights

    engine = config.engine
    return load_weights(config.model, config.adapter, dtype=engine.dtype, device=engine.device)


def _show(run: Any) -> None:
    from fttt.cli.tables import show_runs

    show_runs([run])


def _text(file: Path) -> str:
    """The prompt in a file, without the line break at its end."""
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The prompt file {str(file)!r} cannot be read: {error}.") from None


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given; empty tables are left out."""
    found = {}
    for key, value in flags.items():
        if isinstance(value, dict):
            value = given(value)
        if value is not None and value != {}:
            found[key] = value
    return found
