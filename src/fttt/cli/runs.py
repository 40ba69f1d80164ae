"""``fttt run``, ``sweep``, ``demo`` and ``regrade``: the commands that make run folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.flags import (
    DATA,
    PANELS,
    AsJSON,
    DryRun,
    JudgeURL,
    Recipe,
    TrackerName,
    ask_judge,
    complete_method,
    print_json,
    say_how_to_resume,
    tracked,
    with_flags,
)
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
from fttt.files import model_label, numbered, output_folder
from fttt.progress import Progress, note
from fttt.trackers import NO_TRACKER, check_tracker

if TYPE_CHECKING:
    from fttt.experiment.executor import Executor
    from fttt.experiment.runner import Cell
    from fttt.experiment.sweep import SweepConfig
    from fttt.store import Run

__all__ = [
    "carry_out_sweep",
    "demo_command",
    "print_runs",
    "regrade_command",
    "run_command",
    "run_flags",
    "sweep_command",
]


@with_flags(
    without=["method", "data.prompt"],
    panels={**PANELS, "save_correct_cases": "Correct cases"},  # whose long flags squeeze others
)
def run_command(
    flags: dict[str, Any],
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            help=field_help("method"),
            show_default=False,
            autocompletion=complete_method,
        ),
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            help="file with a prompt template instead of the task's own, with {question} in it",
            metavar="FILE",
            rich_help_panel=DATA,
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            help="how answers are judged, for the task jsonl: number, math, choice, code, regex, "
            "regex:PATTERN, command:LINE, python:MODULE:FUNCTION, reward:MODEL@SCORE or "
            "llm:NAME@URL (or llm:NAME at the --endpoint); or several: all(A, B), any(A, B), "
            "weighted(2*A, 1*B)@SCORE",
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
    shared: Annotated[
        bool, typer.Option("--shared", help="policy: one adapter for all questions of the run")
    ] = False,
    train_on_thoughts: Annotated[
        bool | None,
        typer.Option(
            help="unlearn, policy, self-distill: learn from an attempt's thought too (on), or from "
            "its answer alone; fttt --reflection: likewise of a critique",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="optune: which trials are edited", metavar="alternate|accumulate"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="folder of a trained checkpoint (finetuned, optune): the setting 'checkpoint'",
            metavar="DIR",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="new run folder (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="run folder to resume")] = None,
    recipe: Recipe = None,
    tracker: TrackerName = NO_TRACKER,
    dry_run: DryRun = False,
    as_json: AsJSON = False,
) -> None:
    """Try each question of a task by a method, and keep every trial in a run folder."""
    further = {
        "method": method,
        "prompt": prompt and _text(prompt),
        "options": _given({"verifier": verifier, "rule": math_rule}),
        "settings": _given(
            {
                "reflection": reflection or None,
                "shared": shared or None,
                "train_on_thoughts": train_on_thoughts,
                "schedule": schedule,
                "checkpoint": checkpoint and str(checkpoint),
            }
        ),
    }
    flags = merge(flags, in_sections(further))
    ask_judge(judge_url)
    run_flags(flags, out, resume, recipe, dry_run=dry_run, as_json=as_json, tracker=tracker)


def run_flags(
    flags: dict[str, Any],
    out: Path | None,
    resume: Path | None,
    recipe: Path | None = None,
    *,
    dry_run: bool = False,
    as_json: bool = False,
    tracker: str = NO_TRACKER,
) -> None:
    """Carry out a run: flags over file over defaults, in a new folder or in ``resume``."""
    if resume is not None and out is not None:
        raise UsageError("--resume continues in its own folder; leave --out away.")
    check_tracker(tracker)
    file = None if recipe is None else read_toml(recipe)
    if resume is not None:
        _show(_resumed(resume, merge(file or {}, flags), tracker), as_json=as_json)
        return
    if "method" not in flags and "method" not in (file or {}):
        raise UsageError(
            "No method was given; write `fttt run METHOD ...` with one of `fttt list methods`."
        )
    config = resolve(flags, recipe=file, source=str(recipe))

    from fttt.experiment.plan import plan_run, settle
    from fttt.store import check_free

    settled = settle(config)
    if dry_run:
        settled.check_model()
        typer.echo(to_toml(settled.config), nl=False)
        return
    if out is not None:
        check_free(out)
    plan = plan_run(settled, find_cases=True)
    for said in plan.notes:
        note(said)

    from fttt.experiment.runner import Cell

    with output_folder(out, plan.folder_name) as folder:
        _show(_carried_out(Cell(plan, folder), tracker), as_json=as_json)


def _resumed(folder: Path, flags: dict[str, Any], tracker: str) -> Run:
    from fttt.experiment.plan import plan_resume
    from fttt.store import Run

    run = Run.open(folder)
    method = flags.get("method", run.method)
    if method != run.method:
        raise UsageError(
            f"The run in {str(folder)!r} is one of {run.method!r}, not of {method!r}; "
            f"resume it by `fttt run --resume {folder}`, or start a new run."
        )
    plan = plan_resume(run, merge(run.config, flags))
    if run.finished and not run.lost:
        return run

    from fttt.experiment.runner import Cell

    return _carried_out(Cell(plan, folder, resume=True), tracker)


def _carried_out(cell: Cell, tracker: str) -> Run:
    from fttt.experiment.cluster import executors
    from fttt.experiment.runner import run_cells

    config: RunConfig = cell.plan.config
    progress = Progress(config.method)
    with (
        executors(config.engine, progress.note) as load,
        tracked(progress, tracker, cell.folder, config.to_toml()) as track,
    ):
        executor = _timed(load, progress)(config)
        with say_how_to_resume(f"`fttt run --resume {cell.folder}`", cell.folder):
            runs = run_cells([cell], executor, progress)
        track(runs)
    return runs[0]


def _timed(
    load: Callable[[RunConfig], Executor], progress: Progress
) -> Callable[[RunConfig], Executor]:
    """Load, and say how long it took."""

    def loading(config: RunConfig) -> Executor:
        start = time.monotonic()
        executor = load(config)
        seconds = time.monotonic() - start
        progress.note(f"{model_label(config.model)} is ready ({seconds:.1f} s)")
        return executor

    return loading


def _show(run: Run, *, as_json: bool) -> None:
    from fttt.report.text import run_facts, show_runs

    if as_json:
        print_json(run_facts(run))
    else:
        show_runs([run])


def print_runs(runs: Sequence[Run], *, as_json: bool) -> None:
    """Print a table of runs, or a JSON list of their summaries."""
    from fttt.report.text import run_facts, show_runs

    if as_json:
        print_json([run_facts(run) for run in runs])
    else:
        show_runs(runs)


def _text(file: Path) -> str:
    """The prompt in a file, without the line break at its end."""
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The prompt file {str(file)!r} cannot be read: {reason}.") from None


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


@with_flags(
    only=[
        "engine.memory_share", "engine.replicas", "engine.gpus_per_replica", "engine.ray_address",
    ]
)  # fmt: skip
def sweep_command(
    file: Annotated[
        Path, typer.Argument(help="TOML file with methods, tasks, seeds, vary and base.")
    ],
    flags: dict[str, Any],
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the runs; an unfinished sweep in it is resumed"),
    ] = None,
    tracker: TrackerName = NO_TRACKER,
    dry_run: DryRun = False,
    as_json: AsJSON = False,
) -> None:
    """Run methods x tasks x seeds x settings with the model loaded once; end in one table."""
    from fttt.config import build, read_toml
    from fttt.experiment.sweep import Grid, SweepConfig, recipe

    check_tracker(tracker)
    config = build(SweepConfig, merge(read_toml(file), {"base": flags}), str(file))
    if dry_run:
        typer.echo(recipe(Grid(config, out or Path(file.stem))), nl=False)
        return
    with (
        output_folder(out, file.stem) as folder,
        say_how_to_resume(f"`fttt sweep {file} --out {folder}`", folder),
    ):
        runs = carry_out_sweep(config, folder, file.stem, tracker)
    print_runs(runs, as_json=as_json)


def carry_out_sweep(
    config: SweepConfig, folder: Path, title: str, tracker: str = NO_TRACKER
) -> list[Run]:
    """Run what is owed of a sweep where its settings say."""
    from fttt.experiment.cluster import executors
    from fttt.experiment.sweep import Grid, run_sweep

    progress = Progress(title)
    with (
        executors(Grid(config, folder).engine, progress.note) as load,
        tracked(progress, tracker, folder, config.model_dump(mode="json")) as track,
    ):
        runs = run_sweep(config, folder, _timed(load, progress), progress)
        track(runs)
    return runs


def demo_command(
    out: Annotated[Path | None, typer.Option(help="folder of the two runs")] = None,
    as_json: AsJSON = False,
) -> None:
    """Watch a small model learn from scores, beside the same model drawn again.

    Eight packing problems, each answer scored from 0 to 1: best-of-n draws 40 answers a problem,
    policy learns after each eight. The embedded model, so nothing is downloaded.
    """
    from fttt.experiment.sweep import DEMO

    with (
        output_folder(out, "demo") as folder,
        say_how_to_resume(f"`fttt demo --out {folder}`", folder),
    ):
        runs = carry_out_sweep(DEMO, folder, "demo")
    print_runs(runs, as_json=as_json)
    if len(runs) > 1 and not as_json:
        typer.echo(f"Compare them: fttt compare {folder}")
        typer.echo(f"See each trial: fttt report {folder}")


def regrade_command(
    run: Annotated[Path, typer.Argument(help="Run folder; it is not changed.")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the regraded copy (else RUN-regraded)")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Judge the stored completions of a run again, without a model, and list changed verdicts."""
    from fttt.experiment.regrade import regrade
    from fttt.report.text import run_facts
    from fttt.store import Run

    old = Run.open(run)
    names = numbered(run.with_name(f"{run.resolve().name}-regraded"))
    folder = out or next(name for name in names if not name.exists())
    new, changes = regrade(old, folder)
    if as_json:
        changed = [
            {
                "question_id": change.after.question_id,
                "trial": change.after.trial,
                "before": change.before.verdict,
                "after": change.after.verdict,
                "detail": change.after.detail,
            }
            for change in changes
        ]
        print_json({**run_facts(new), "changed": changed})
        return
    for change in changes:
        before, after = change.before, change.after
        detail = f" ({after.detail})" if after.detail else ""
        typer.echo(
            f"{after.question_id} trial {after.trial}: {before.verdict} -> {after.verdict}{detail}"
        )
    solved = old.summary["solved"], new.summary["solved"]
    typer.echo(
        f"{len(changes)} of {len(new.trials)} verdicts changed; "
        f"solved questions: {solved[0]} before, {solved[1]} now."
    )
    _show(new, as_json=False)
