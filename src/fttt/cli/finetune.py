"""``fttt finetune``: train a baseline on gold solutions, and evaluate it."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.finetune_evaluate import evaluate_command
from fttt.cli.options import DATA, DataDir, DryRun, Recipe, Setting, TaskOption, option
from fttt.config import (
    FinetuneConfig,
    build,
    field_help,
    in_sections,
    key_values,
    merge,
    read_toml,
    to_toml,
)
from fttt.errors import UsageError

if TYPE_CHECKING:
    from fttt.finetune.checkpoint import FinetuneInfo

__all__ = ["finetune_app"]

TRAINING, PRECISION = "Training", "Precision"

finetune_app = typer.Typer(
    help="Fine-tune a model on gold solutions, and evaluate what came of it.", no_args_is_help=True
)
_option = partial(option, model=FinetuneConfig)


@finetune_app.command("train")
def train_command(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD", help=field_help("method", FinetuneConfig), show_default=False
        ),
    ] = None,
    model: Annotated[str | None, _option("model", "--model", "-m")] = None,
    task: Annotated[str | None, _option("task", "--task", "-t")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    data_dir: DataDir = None,
    split: Annotated[str | None, _option("data.split", panel=DATA)] = None,
    limit: Annotated[int | None, _option("data.limit", panel=DATA)] = None,
    data_seed: Annotated[int | None, _option("data.seed", panel=DATA)] = None,
    task_option: TaskOption = None,
    held_out: Annotated[float | None, _option("data.held_out", panel=DATA)] = None,
    max_length: Annotated[int | None, _option("data.max_length", panel=DATA)] = None,
    samples: Annotated[int | None, _option("training.samples", panel=TRAINING)] = None,
    epochs: Annotated[float | None, _option("training.epochs", panel=TRAINING)] = None,
    max_steps: Annotated[int | None, _option("training.max_steps", panel=TRAINING)] = None,
    lr: Annotated[float | None, _option("training.lr", panel=TRAINING)] = None,
    warmup: Annotated[float | None, _option("training.warmup", panel=TRAINING)] = None,
    weight_decay: Annotated[float | None, _option("training.weight_decay", panel=TRAINING)] = None,
    clip: Annotated[float | None, _option("training.clip", panel=TRAINING)] = None,
    every: Annotated[int | None, _option("training.every", panel=TRAINING)] = None,
    early_stop: Annotated[int | None, _option("training.early_stop", panel=TRAINING)] = None,
    batch_tokens: Annotated[int | None, _option("training.batch_tokens", panel=PRECISION)] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        _option("training.gradient_checkpointing", "--gradient-checkpointing", panel=PRECISION),
    ] = None,
    dtype: Annotated[str | None, _option("engine.dtype", panel=PRECISION)] = None,
    device: Annotated[str | None, _option("engine.device", panel=PRECISION)] = None,
    setting: Setting = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to begin (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="folder to go on with")] = None,
    recipe: Recipe = None,
    dry_run: DryRun = False,
) -> None:
    """Train a method on the gold solutions of a task's training split."""
    flags = in_sections(
        {
            "method": method,
            "model": model,
            "task": task,
            "seed": seed,
            "data_dir": data_dir,
            "split": split,
            "limit": limit,
            "data.seed": data_seed,
            "options": key_values(task_option or [], "--task-option"),
            "held_out": held_out,
            "max_length": max_length,
            "samples": samples,
            "epochs": epochs,
            "max_steps": max_steps,
            "lr": lr,
            "warmup": warmup,
            "weight_decay": weight_decay,
            "clip": clip,
            "every": every,
            "early_stop": early_stop,
            "batch_tokens": batch_tokens,
            "gradient_checkpointing": gradient_checkpointing,
            "dtype": dtype,
            "device": device,
            "settings": key_values(setting or [], "--set"),
        },
        FinetuneConfig,
    )
    if resume is not None:
        _resume(resume, flags, given=out is not None or recipe is not None)
        return
    config = _resolve(flags, recipe)

    from fttt.finetune.plan import plan_finetune

    plan = plan_finetune(config)
    if dry_run:
        typer.echo(to_toml(plan.config), nl=False)
        return
    _train(plan, out or _folder(plan.config), resume=False)


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
            f"--resume goes on with the settings in {str(folder / 'config.toml')!r}; leave "
            "everything else away, or train anew with --recipe and that file."
        )
    file = folder / "config.toml"
    values = read_toml(file) if file.is_file() else {}
    if "training" not in values:
        raise UsageError(
            f"The folder {str(folder)!r} holds no fine-tuning to go on with: there is no "
            "config.toml of `fttt finetune train` in it; name one that was given as its --out."
        )
    from fttt.finetune.checkpoint import INFO_FILE, read_info
    from fttt.finetune.plan import plan_finetune, processes

    if (folder / INFO_FILE).is_file():
        info = read_info(folder)
        if processes()[0] == 0:
            _show(info, folder)
        return
    config = build(FinetuneConfig, values, str(file))
    _train(plan_finetune(config), folder, resume=True)


def _folder(config: FinetuneConfig) -> Path:
    """A name under outputs/ that does not exist yet."""
    from fttt.finetune.plan import label, processes

    if processes()[1] > 1:
        raise UsageError("With several processes the folder must be named; give --out DIR.")
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("outputs") / f"finetune-{label(config)}-{now}"


def _train(plan: Any, folder: Path, *, resume: bool) -> None:
    from fttt.finetune.plan import processes
    from fttt.finetune.train import train

    first = processes()[0] == 0
    if not first:
        train(plan, folder, resume=resume)
        return

    from fttt.training.folder import begin_folder, held_folder

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
