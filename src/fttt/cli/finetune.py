"""``fttt finetune``: train a baseline on gold solutions, and evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.finetune_evaluate import evaluate_command
from fttt.cli.flags import PANELS, PRECISION, DryRun, Recipe, found_data, with_flags
from fttt.config import (
    FinetuneConfig,
    build,
    field_help,
    merge,
    read_toml,
    to_toml,
)
from fttt.errors import UsageError
from fttt.files import output_folder
from fttt.tasks import get_task

if TYPE_CHECKING:
    from fttt.finetune.metadata import FinetuneInfo

__all__ = ["finetune_app"]

finetune_app = typer.Typer(
    help="Fine-tune a model on gold solutions, and evaluate what came of it.", no_args_is_help=True
)


@finetune_app.command("train")
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
def train_command(
    flags: dict[str, Any],
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD", help=field_help("method", FinetuneConfig), show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to begin (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="folder to resume")] = None,
    recipe: Recipe = None,
    dry_run: DryRun = False,
) -> None:
    """Train a method on the gold solutions of a task's training split."""
    flags |= {} if method is None else {"method": method}
    if resume is not None:
        _resume(resume, flags, given=out is not None or recipe is not None)
        return
    config = _resolve(flags, recipe)
    if config.data.data_dir is None:
        task = get_task(config.task, **config.data.options)
        data = config.data.model_copy(update={"data_dir": found_data(task, config.data.split)})
        config = config.model_copy(update={"data": data})

    from fttt.finetune.finetune_plan import plan_finetune

    plan = plan_finetune(config)
    if dry_run:
        typer.echo(to_toml(plan.config), nl=False)
        return
    from fttt.finetune.finetune_plan import label, processes

    if out is None and processes()[1] > 1:
        raise UsageError("With several processes the folder must be named; give --out DIR.")
    with output_folder(out, f"finetune-{label(plan.config)}") as folder:
        _train(plan, folder, resume=False)


finetune_app.command("evaluate")(evaluate_command)


def _resolve(flags: dict[str, Any], recipe: Path | None) -> FinetuneConfig:
    file = {} if recipe is None else read_toml(recipe)
    if "method" not in flags and "method" not in file:
        raise UsageError(
            "No method was given; write `fttt finetune train METHOD ...` with full, lora, adapter, "
            "ia3, ln-tuning or prefix."
        )
    if recipe is not None:
        build(FinetuneConfig, merge({"method": "?"}, file), str(recipe))
    over = flags.get("training", {})
    if {"epochs", "max_steps"} & set(over):  # what is given takes the place of the recipe's
        kept = {k: v for k, v in file.get("training", {}).items() if k not in _LENGTHS}
        file = {**file, "training": kept}
    return build(FinetuneConfig, merge(file, flags), "the command line")


_LENGTHS = ("epochs", "max_steps")


def _resume(folder: Path, flags: dict[str, Any], *, given: bool) -> None:
    if flags or given:
        raise UsageError(
            f"--resume keeps the settings in {str(folder / 'config.toml')!r}; leave "
            "everything else away, or train anew with --recipe and that file."
        )
    file = folder / "config.toml"
    values = read_toml(file) if file.is_file() else {}
    if "training" not in values:
        raise UsageError(
            f"The folder {str(folder)!r} holds no fine-tuning to resume: there is no "
            "config.toml of `fttt finetune train` in it; name one that was given as its --out."
        )
    from fttt.finetune.finetune_plan import plan_finetune, processes
    from fttt.finetune.metadata import INFO_FILE, read_info

    if (folder / INFO_FILE).is_file():
        info = read_info(folder)
        if processes()[0] == 0:
            _show(info, folder)
        return
    config = build(FinetuneConfig, values, str(file))
    _train(plan_finetune(config), folder, resume=True)


def _train(plan: Any, folder: Path, *, resume: bool) -> None:
    from fttt.finetune.finetune_plan import processes
    from fttt.finetune.train import train

    first = processes()[0] == 0
    if not first:
        train(plan, folder, resume=resume)
        return

    from fttt.files import begin_folder, held_folder

    if not resume:
        begin_folder(folder, "fttt finetune train --resume")
    with held_folder(folder):
        typer.echo(
            f"{plan.config.method}: {plan.trained_parameters:,} trained parameters, learning rate "
            f"{plan.config.training.lr:g}, into {folder}"
        )
        try:
            info = train(plan, folder, resume=resume)
        except KeyboardInterrupt:
            if (folder / "config.toml").is_file():
                typer.echo(f"fttt: Go on with `fttt finetune train --resume {folder}`.", err=True)
            raise
    _show(info, folder)


def _show(info: FinetuneInfo, folder: Path) -> None:
    loss = "" if info.validation_loss is None else f", validation loss {info.validation_loss:.4f}"
    rate = info.tokens / max(info.seconds, 1e-9)
    typer.echo(
        f"{info.method}: {info.step:,} steps{loss}, {info.tokens:,} tokens in "
        f"{info.seconds:,.1f} s ({rate:,.0f} tokens/s), {info.trained_parameters:,} trained "
        f"parameters, in {folder}"
    )
