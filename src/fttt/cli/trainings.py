"""``fttt finetune`` and ``fttt optune``: training on gold solutions, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.flags import (
    DATA,
    PANELS,
    PRECISION,
    AsJSON,
    DryRun,
    JudgeURL,
    Recipe,
    ask_judge,
    examples,
    first_process,
    print_json,
    say,
    say_how_to_resume,
    with_flags,
)
from fttt.cli.runs import carry_out_sweep, run_command, run_flags
from fttt.config import FinetuneConfig, field_help, to_toml
from fttt.config.training_configs import OpTuneConfig
from fttt.errors import UsageError
from fttt.files import output_folder
from fttt.progress import note

if TYPE_CHECKING:
    from fttt.experiment.sweep import Evaluated
    from fttt.finetune.metadata import FinetuneInfo
    from fttt.optune.optune_trainer import TrainingResult
    from fttt.store import Run

__all__ = ["finetune_app", "optune_app"]

finetune_app = typer.Typer(
    help="Fine-tune a model on gold solutions, and evaluate the result.", no_args_is_help=True
)
optune_app = typer.Typer(
    help="Train a network that predicts, from a failed attempt, how to change the weights.",
    no_args_is_help=True,
)


@finetune_app.command(
    "train",
    epilog=examples(
        "fttt finetune train lora --task gsm8k --model Qwen/Qwen2.5-0.5B-Instruct",
        "fttt finetune train full --task mbpp --max-steps 200 --dry-run",
        "fttt finetune train --resume outputs/finetune-lora-gsm8k-...",
    ),
)
@with_flags(
    FinetuneConfig,
    without=["method", "data.prompt"],
    panels={
        **PANELS,
        "engine": PRECISION,
        "training.batch_tokens": PRECISION,
        "training.gradient_checkpointing": PRECISION,
    },
)
def finetune_train_command(
    flags: dict[str, Any],
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD", help=field_help("method", FinetuneConfig), show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the result (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="folder of the training to resume")] = None,
    recipe: Recipe = None,
    dry_run: DryRun = False,
) -> None:
    """Train a method on the gold solutions of a task's training split."""
    flags |= {} if method is None else {"method": method}
    if resume is not None:
        _resume(resume, alone=not flags and out is None and recipe is None)
        return

    from fttt.finetune.finetune_plan import plan_finetune, settle_finetune

    plan = plan_finetune(settle_finetune(flags, recipe))
    for said in plan.notes:
        if first_process():
            note(said)
    if dry_run:
        typer.echo(to_toml(plan.config), nl=False)
        return
    with output_folder(out, "" if out else plan.folder_name) as folder, _resumable(folder):
        from fttt.finetune.train import train

        _show_finetune(train(plan, folder), folder)


def _resumable(folder: Path) -> AbstractContextManager[None]:
    return say_how_to_resume(f"`fttt finetune train --resume {folder}`", folder)


def _resume(folder: Path, *, alone: bool) -> None:
    if not alone:
        raise UsageError(
            f"--resume takes the settings in {str(folder / 'config.toml')!r}; leave everything "
            "else out, or start a new training with --recipe and that file."
        )
    with _resumable(folder):
        from fttt.finetune.train import resume_training

        _show_finetune(resume_training(folder), folder)


def _show_finetune(info: FinetuneInfo, folder: Path) -> None:
    loss = "" if info.validation_loss is None else f", validation loss {info.validation_loss:.4f}"
    rate = info.tokens / max(info.seconds, 1e-9)
    say(
        f"{info.method}: {info.step:,} steps{loss}, {info.tokens:,} tokens in "
        f"{info.seconds:,.1f} s ({rate:,.0f} tokens/s), {info.trained_parameters:,} trained "
        f"parameters, in {folder}"
    )


@finetune_app.command(
    "evaluate",
    epilog=examples("fttt finetune evaluate outputs/finetune-lora-gsm8k-... --trials 16"),
)
@with_flags(
    without=[
        "method", "name", "adapter", "save_correct_cases", "data.questions", "data.prompt",
        "data.seed", "budget.token_budget", "budget.time_budget", "budget.until",
        "engine.max_length", "settings",
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
        typer.Option(help="folder of the runs; an unfinished evaluation there is resumed"),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Greedy decoding on all questions, then independent samples on the hard ones.

    Several checkpoints are evaluated one after the other, and share one table.
    """
    ask_judge(judge_url)

    from fttt.experiment.sweep import evaluated, evaluation

    sweep = evaluation(checkpoints, flags, hard_limit=hard_limit)
    name = checkpoints[0].resolve().name if len(checkpoints) == 1 else f"{len(checkpoints)}"
    with (
        output_folder(out, f"evaluate-{name}-{sweep.tasks[0]}") as folder,
        say_how_to_resume(f"the same command and --out {folder}", folder),
    ):
        runs = carry_out_sweep(sweep, folder, "evaluate")
    if as_json:
        print_json([_evaluated_facts(row) for row in evaluated(runs)])
    else:
        _show_evaluated(evaluated(runs), runs)


def _evaluated_facts(row: Evaluated) -> dict[str, Any]:
    from fttt.report.text import run_facts

    samples = None if row.samples is None else run_facts(row.samples)
    return {
        "checkpoint": dict(row.facts),
        "greedy": run_facts(row.greedy),
        "samples": samples,
        "note": row.note,
    }


def _show_evaluated(rows: Sequence[Evaluated], runs: Sequence[Run]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fttt.report.text import show_folders

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
    for said in (row.note for row in rows if row.note):
        note(f"fttt: {said}")
    show_folders(runs, console)


def _accuracy(run: Run) -> tuple[str, str]:
    summary = run.summary
    low, high = summary["ci95"]
    share = f"{summary['solved']}/{summary['questions']} ({100 * summary['accuracy']:.1f} %)"
    return share, f"{100 * low:.1f} to {100 * high:.1f}"


_OPTUNE_PANELS = {
    "Examples": ("attempts", "max_attempts", "limit", "held_out", "max_length", "feedback"),
    "Network": ("targets", "layers", "rank", "dropout", "alpha"),
    "Optimizer": (
        "window", "epochs", "max_steps", "lr", "weight_decay", "clip", "schedule", "warmup",
    ),
    "Machine": (
        "validate_every", "checkpoint_every", "tracker", "batch_tokens", "dtype", "device",
    ),
}  # fmt: skip
"""Headings of the help."""


@optune_app.command(
    "generate", epilog=examples("fttt optune generate --task gsm8k --attempts 10 --out attempts")
)
@with_flags(
    without=[
        "method", "adapter", "save_correct_cases", "data.questions", "data.skip_cases",
        "data.prompt", "data.seed", "budget.trials", "budget.unanswered", "budget.token_budget",
        "budget.time_budget", "budget.until", "engine.max_length", "settings",
    ],
    texts={"data.split": "split of the task, never test \\[train]"},
)  # fmt: skip
def generate_command(
    flags: dict[str, Any],
    attempts: Annotated[
        int | None,
        typer.Option(min=1, help="attempts at each question \\[10]", metavar="N"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="new run folder (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="run folder to resume")] = None,
    as_json: AsJSON = False,
) -> None:
    """Make attempts at a training split, judge them, and keep them in a run folder."""
    from fttt.optune.optune_plan import attempt_flags

    given = attempt_flags(flags, attempts, resumes=resume is not None)
    run_flags(given, out, resume, as_json=as_json)


@optune_app.command(
    "train",
    epilog=examples(
        "fttt optune train --from attempts --out network",
        "fttt optune train --from attempts --dry-run",
        "fttt optune train --resume network",
    ),
)
@with_flags(
    OpTuneConfig,
    without=["ablation"],
    panels={field: panel for panel, fields in _OPTUNE_PANELS.items() for field in fields},
)
def optune_train_command(
    flags: dict[str, Any],
    shuffle_attempts: Annotated[
        bool,
        typer.Option(
            "--shuffle-attempts",
            help="ablation: each example reads another question's attempt",
            rich_help_panel="Examples",
        ),
    ] = False,
    constant_input: Annotated[
        bool,
        typer.Option(
            "--constant-input",
            help="ablation: every example reads the same attempt",
            rich_help_panel="Examples",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="new training folder (outputs/optune-TASK-MODEL-sSEED)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="training folder to resume")] = None,
    recipe: Recipe = None,
    dry_run: DryRun = False,
) -> None:
    """Train the network on attempts and gold solutions; several processes share the work."""
    if shuffle_attempts and constant_input:
        raise UsageError("--shuffle-attempts and --constant-input exclude each other; give one.")
    if shuffle_attempts or constant_input:
        flags["ablation"] = "shuffle-attempts" if shuffle_attempts else "constant-input"
    if resume is not None and out is not None:
        raise UsageError("--resume works in its own folder; leave out --out.")

    from fttt.optune.optune_plan import default_folder, plan_training, settle_training

    plan = plan_training(settle_training(flags, recipe, resume))
    if dry_run:
        typer.echo(to_toml(plan.config), nl=False)
        return
    folder = resume or out or default_folder(plan)
    with say_how_to_resume(f"`fttt optune train --resume {folder}`", folder):
        from fttt.optune.optune_trainer import train

        _show_optune(train(plan, folder, resume=resume is not None), folder)


def _show_optune(trained: TrainingResult, folder: Path) -> None:
    rate = trained.examples_per_second  # none where there was nothing left to train
    say(f"{trained.step} steps" + (f", {rate:.1f} examples/s" if rate else ""))
    if trained.skipped:
        say(f"{trained.skipped} examples were left out: something was not finite")
    for step, loss in trained.validation.items():
        say(f"validation loss after {step} steps {loss:.4f}")
    if trained.shuffled_loss is not None:
        say(f"validation loss with another's attempt {trained.shuffled_loss:.4f}")
    if trained.base_loss is not None:
        say(f"validation loss of the unchanged model {trained.base_loss:.4f}")
        last = trained.validation.get(trained.step)
        if last is not None and not last < trained.base_loss:
            say("note: with its changes the model is no better than unchanged")
    say(f"{folder}")


def _evaluate_command() -> Callable[..., None]:
    """``fttt run`` with all its options, but for the method, which is known."""

    @wraps(run_command)
    def evaluate_command(**options: Any) -> None:
        run_command(method="optune", **options)

    run = signature(run_command, eval_str=True)
    options = [option for name, option in run.parameters.items() if name != "method"]
    evaluate_command.__signature__ = run.replace(parameters=options)  # type: ignore[attr-defined]
    evaluate_command.__doc__ = "Try a task's questions with a trained network: `fttt run optune`."
    return evaluate_command


optune_app.command(
    "evaluate", epilog=examples("fttt optune evaluate --checkpoint network --task gsm8k")
)(_evaluate_command())


@optune_app.command("push", epilog=examples("fttt optune push network owner/optune-gsm8k"))
def push_command(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint or training folder")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="repository on the hub")],
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = (
        False
    ),
) -> None:
    """Share a checkpoint on the Hugging Face hub; --checkpoint OWNER/NAME reads it from there."""
    from fttt.optune import push

    typer.echo(push(checkpoint, name, private=private))
