"""``fttt optune``: the learned optimizer, from attempts to a trained network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.flags import Recipe, with_flags
from fttt.cli.runs import run_command, run_flags
from fttt.config import build, merge, read_toml, resolve, to_toml
from fttt.config.optune_config import OpTuneConfig
from fttt.errors import UsageError

if TYPE_CHECKING:
    from fttt.optune.optune_plan import OpTunePlan
    from fttt.optune.optune_trainer import ProcessGroup, TrainingResult

__all__ = ["optune_app"]

optune_app = typer.Typer(
    help="Train a network that predicts, from a failed attempt, how to change the weights.",
    no_args_is_help=True,
)


_PANELS = {
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


@optune_app.command("generate")
@with_flags(
    without=[
        "method", "adapter", "save_correct_cases", "data.questions", "data.skip_cases",
        "data.prompt", "data.seed", "budget.trials", "budget.unanswered", "budget.token_budget",
        "budget.time_budget", "engine.max_length", "settings",
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
        Path | None, typer.Option(help="run folder to begin (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="run folder to resume")] = None,
) -> None:
    """Make attempts at a training split, judge them, and keep them in a run folder."""
    own: dict[str, Any] = {"method": "sample"}
    if resume is None:
        own |= {"data": {"split": "train"}, "budget": {"trials": 10}}
    if attempts is not None:
        own["budget"] = {"trials": attempts}
    flags = merge(own, flags)
    if resume is None:
        from fttt.experiment.plan import task_of
        from fttt.training import check_trainable

        config = resolve(flags)
        check_trainable(task_of(config), config.data.split)
    run_flags(flags, out, resume)


@optune_app.command("train")
@with_flags(
    OpTuneConfig,
    without=["ablation"],
    panels={field: panel for panel, fields in _PANELS.items() for field in fields},
)
def train_command(
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
        Path | None, typer.Option(help="folder to begin (outputs/optune-TASK-MODEL-sSEED)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="training folder to resume")] = None,
    recipe: Recipe = None,
) -> None:
    """Train the network on attempts and gold solutions; several processes share the work."""
    if shuffle_attempts and constant_input:
        raise UsageError("--shuffle-attempts and --constant-input exclude each other; give one.")
    if shuffle_attempts or constant_input:
        flags["ablation"] = "shuffle-attempts" if shuffle_attempts else "constant-input"
    if resume is not None and out is not None:
        raise UsageError("--resume continues in its own folder; leave --out away.")
    file = {} if recipe is None else read_toml(recipe)
    build(OpTuneConfig, merge({"attempts_from": "?"}, file), str(recipe))  # its own faults first
    _train(merge(file, flags), out, resume)


def _train(values: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    from fttt.optune.optune_plan import default_folder, plan_training, read_settings, resumed

    if resume is not None:
        own = read_settings(resume)
        config = build(OpTuneConfig, merge(own.to_toml(), values), "the command line")
        resumed(own, config, resume)
    elif "attempts_from" not in values:
        raise UsageError(
            "No attempts were given; name a run folder by --from, as `fttt optune generate` "
            "makes one."
        )
    else:
        config = build(OpTuneConfig, values, "the command line")
    plan = plan_training(config)
    folder = resume or out or default_folder(plan)

    from fttt.files import begin_folder, held_folder

    if resume is None:
        begin_folder(folder, "fttt optune train --resume")

    from fttt.optune.optune_trainer import ProcessGroup

    processes = ProcessGroup(config.device, config.tracker, folder)
    with held_folder(folder) if processes.main else nullcontext():
        trained = _carry_out(plan, folder, processes, begun=resume is not None)
    if processes.main:
        _show(trained, folder)


def _carry_out(
    plan: OpTunePlan, folder: Path, processes: ProcessGroup, *, begun: bool
) -> TrainingResult:
    from fttt.models import load_model
    from fttt.optune.optune_plan import CONFIG
    from fttt.optune.optune_trainer import OpTuneTrainer
    from fttt.progress import StepProgress

    loaded = load_model(plan.model, dtype=plan.config.dtype, device=processes.device)
    progress = StepProgress("optune", shown=processes.main)
    trainer = OpTuneTrainer(plan, loaded, folder, processes, progress)
    if processes.main and not begun:  # only now is it known that nothing is refused
        text = f"# fttt optune train --recipe {CONFIG}\n" + to_toml(plan.config)
        (folder / CONFIG).write_text(text, encoding="utf-8")
    try:
        return trainer.run()
    except KeyboardInterrupt:  # an error says itself what to do
        if processes.main:
            typer.echo(f"fttt: Go on with `fttt optune train --resume {folder}`.", err=True)
        raise


def _show(trained: TrainingResult, folder: Path) -> None:
    rate = trained.examples_per_second  # none where there was nothing left to train
    typer.echo(f"{trained.step} steps" + (f", {rate:.1f} examples/s" if rate else ""))
    if trained.skipped:
        typer.echo(f"{trained.skipped} examples were left out: something was not finite")
    for step, loss in trained.validation.items():
        typer.echo(f"validation loss after {step} steps {loss:.4f}")
    if trained.shuffled_loss is not None:
        typer.echo(f"validation loss with another's attempt {trained.shuffled_loss:.4f}")
    if trained.base_loss is not None:
        typer.echo(f"validation loss of the unchanged model {trained.base_loss:.4f}")
        last = trained.validation.get(trained.step)
        if last is not None and not last < trained.base_loss:
            typer.echo("note: with its changes the model is no better than unchanged")
    typer.echo(f"{folder}")


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


optune_app.command("evaluate")(_evaluate_command())


@optune_app.command("push")
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
