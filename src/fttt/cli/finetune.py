"""``fttt finetune``: train a baseline on gold solutions, and evaluate it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.finetune_evaluate import evaluate_command
from fttt.cli.run import given
from fttt.config import FinetuneConfig, build, field_help, key_values, merge, read_toml, to_toml
from fttt.errors import UsageError

if TYPE_CHECKING:
    from fttt.finetune.checkpoint import FinetuneInfo

__all__ = ["finetune_app"]

DATA, TRAINING, PRECISION = "Questions", "Training", "Precision"

finetune_app = typer.Typer(
    help="Fine-tune a model on gold solutions, and evaluate what came of it.", no_args_is_help=True
)


def _option(path: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option whose help is the description of a field of the config."""
    return typer.Option(
        *names,
        help=field_help(path, FinetuneConfig),
        rich_help_panel=panel,
        show_default=False,
        **more,
    )


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
    seed: Annotated[int | None, _option("seed", "--seed")] = None,
    data_dir: Annotated[Path | None, _option("data.data_dir", "--data-dir", panel=DATA)] = None,
    split: Annotated[str | None, _option("data.split", "--split", panel=DATA)] = None,
    limit: Annotated[int | None, _option("data.limit", "--limit", panel=DATA)] = None,
    data_seed: Annotated[int | None, _option("data.seed", "--data-seed", panel=DATA)] = None,
    task_option: Annotated[
        list[str] | None, _option("data.options", "--task-option", panel=DATA, metavar="KEY=VALUE")
    ] = None,
    held_out: Annotated[float | None, _option("data.held_out", "--held-out", panel=DATA)] = None,
    max_length: Annotated[
        int | None, _option("data.max_length", "--max-length", panel=DATA)
    ] = None,
    samples: Annotated[int | None, _option("training.samples", "--samples", panel=TRAINING)] = None,
    epochs: Annotated[float | None, _option("training.epochs", "--epochs", panel=TRAINING)] = None,
    max_steps: Annotated[
        int | None, _option("training.max_steps", "--max-steps", panel=TRAINING)
    ] = None,
    lr: Annotated[float | None, _option("training.lr", "--lr", panel=TRAINING)] = None,
    warmup: Annotated[float | None, _option("training.warmup", "--warmup", panel=TRAINING)] = None,
    weight_decay: Annotated[
        float | None, _option("training.weight_decay", "--weight-decay", panel=TRAINING)
    ] = None,
    clip: Annotated[float | None, _option("training.clip", "--clip", panel=TRAINING)] = None,
    every: Annotated[int | None, _option("training.every", "--every", panel=TRAINING)] = None,
    early_stop: Annotated[
        int | None, _option("training.early_stop", "--early-stop", panel=TRAINING)
    ] = None,
    batch_tokens: Annotated[
        int | None, _option("training.batch_tokens", "--batch-tokens", panel=PRECISION)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        _option(
            "training.gradient_checkpointing",
            "--gradient-checkpointing/--no-gradient-checkpointing",
            panel=PRECISION,
        ),
    ] = None,
    dtype: Annotated[str | None, _option("engine.dtype", "--dtype", panel=PRECISION)] = None,
    device: Annotated[str | None, _option("engine.device", "--device", panel=PRECISION)] = None,
    setting: Annotated[
        list[str] | None, _option("settings", "--set", "-s", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to begin (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="folder to go on with")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file with settings; flags go over it")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved settings as a recipe, and stop")
    ] = False,
) -> None:
    """Train a method on the gold solutions of a task's training split."""
    flags = given(
        {
            "method": method,
            "model": model,
            "task": task,
            "seed": seed,
            "data": {
                "data_dir": data_dir,
                "split": split,
                "limit": limit,
                "seed": data_seed,
                "options": key_values(task_option or [], "--task-option"),
                "held_out": held_out,
                "max_length": max_length,
            },
            "training": {
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
            },
            "engine": {"dtype": dtype, "device": device},
            "settings": key_values(setting or [], "--set"),
        }
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
    if not (folder / "config.toml").is_file():
        raise UsageError(
            f"The folder {str(folder)!r} holds no fine-tuning to go on with: there is no "
            "config.toml in it."
        )
    from fttt.finetune.checkpoint import INFO_FILE, read_info
    from fttt.finetune.plan import plan_finetune

    if (folder / INFO_FILE).is_file():
        _show(read_info(folder), folder)
        return
    source = str(folder / "config.toml")
    config = build(FinetuneConfig, read_toml(folder / "config.toml"), source)
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
    if first and not resume and folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"The folder {str(folder)!r} is not empty; name another with --out, or go on with "
            f"--resume {folder}."
        )
    if first:
        typer.echo(
            f"{plan.config.method}: {plan.trained_parameters:,} trained parameters, learning rate "
            f"{plan.config.training.lr:g}, into {folder}"
        )
    info = train(plan, folder, resume=resume)
    if first:
        _show(info, folder)


def _show(info: FinetuneInfo, folder: Path) -> None:
    loss = "" if info.validation_loss is None else f", validation loss {info.validation_loss:.4f}"
    rate = info.tokens / max(info.seconds, 1e-9)
    typer.echo(
        f"{info.method}: {info.step:,} steps{loss}, {info.tokens:,} tokens in "
        f"{info.seconds:,.1f} s ({rate:,.0f} tokens/s), {info.trained_parameters:,} trained "
        f"parameters, in {folder}"
    )
