"""``fttt optune``: the learned optimizer, from attempts to a trained network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fttt.cli.options import Recipe, name_list, option
from fttt.cli.run import run_command, run_flags
from fttt.config import build, in_sections, key_values, merge, read_toml, resolve, to_toml
from fttt.config.optune import OpTuneConfig
from fttt.errors import RunError, UsageError

if TYPE_CHECKING:
    from fttt.optune.plan import TrainingPlan
    from fttt.optune.processes import Processes
    from fttt.optune.training import Trained

__all__ = ["optune_app"]

optune_app = typer.Typer(
    help="Train a network that predicts, from a failed attempt, how to change the weights.",
    no_args_is_help=True,
)


EXAMPLES, NETWORK, OPTIMIZER, MACHINE = "Examples", "Network", "Optimizer", "Machine"


_field = partial(option, model=OpTuneConfig)


@optune_app.command("generate")
def generate_command(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="hub name, folder, GGUF file or embedded name"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="a task of `fttt list tasks`, or module:Class"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder with the benchmark in its own layout")
    ] = None,
    split: Annotated[str | None, typer.Option(help="split of the task, never test (train)")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first N questions")] = None,
    task_option: Annotated[
        list[str] | None, typer.Option(help="option of the task itself", metavar="KEY=VALUE")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(min=1, help="attempts at each question (10)", metavar="N")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="sampling temperature (0.6)")] = None,
    top_p: Annotated[float | None, typer.Option(help="nucleus (0.95)")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="longest attempt, in tokens (2048)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of sampling (42)")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="sequences at once; default: what fits")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")] = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder to begin (else one under outputs/)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="run folder to go on with")] = None,
) -> None:
    """Make attempts at a training split, judge them, and keep them in a run folder."""
    flags = in_sections(
        {
            "method": "sample",
            "model": model,
            "task": task,
            "seed": seed,
            "data_dir": data_dir,
            "split": split if resume else split or "train",
            "limit": limit,
            "options": key_values(task_option or [], "--task-option"),
            "trials": 10 if attempts is None and not resume else attempts,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "dtype": dtype,
            "device": device,
        }
    )
    if resume is None:
        from fttt.experiment.plan import task_of
        from fttt.training.gold import check_trainable

        config = resolve(flags)
        check_trainable(task_of(config), config.data.split)
    run_flags(flags, out, resume)


@optune_app.command("train")
def train_command(
    attempts_from: Annotated[Path | None, _field("attempts_from", "--from")] = None,
    model: Annotated[str | None, _field("model", "--model", "-m")] = None,
    task: Annotated[str | None, _field("task", "--task", "-t")] = None,
    data_dir: Annotated[Path | None, _field("data_dir")] = None,
    seed: Annotated[int | None, _field("seed")] = None,
    attempts: Annotated[str | None, _field("attempts", panel=EXAMPLES, metavar="wrong|all")] = None,
    max_attempts: Annotated[int | None, _field("max_attempts", panel=EXAMPLES)] = None,
    limit: Annotated[int | None, _field("limit", panel=EXAMPLES)] = None,
    held_out: Annotated[float | None, _field("held_out", panel=EXAMPLES)] = None,
    max_length: Annotated[int | None, _field("max_length", panel=EXAMPLES)] = None,
    feedback: Annotated[str | None, _field("feedback", panel=EXAMPLES)] = None,
    shuffle_attempts: Annotated[
        bool,
        typer.Option(
            "--shuffle-attempts",
            help="ablation: each example reads another question's attempt",
            rich_help_panel=EXAMPLES,
        ),
    ] = False,
    constant_input: Annotated[
        bool,
        typer.Option(
            "--constant-input",
            help="ablation: every example reads the same attempt",
            rich_help_panel=EXAMPLES,
        ),
    ] = False,
    targets: Annotated[str | None, _field("targets", panel=NETWORK, metavar="NAME,NAME")] = None,
    layers: Annotated[int | None, _field("layers", panel=NETWORK)] = None,
    rank: Annotated[int | None, _field("rank", panel=NETWORK)] = None,
    dropout: Annotated[float | None, _field("dropout", panel=NETWORK)] = None,
    alpha: Annotated[float | None, _field("alpha", panel=NETWORK)] = None,
    window: Annotated[int | None, _field("window", panel=OPTIMIZER)] = None,
    epochs: Annotated[int | None, _field("epochs", panel=OPTIMIZER)] = None,
    max_steps: Annotated[int | None, _field("max_steps", panel=OPTIMIZER)] = None,
    lr: Annotated[float | None, _field("lr", panel=OPTIMIZER)] = None,
    weight_decay: Annotated[float | None, _field("weight_decay", panel=OPTIMIZER)] = None,
    clip: Annotated[float | None, _field("clip", panel=OPTIMIZER)] = None,
    schedule: Annotated[
        str | None, _field("schedule", panel=OPTIMIZER, metavar="constant|cosine")
    ] = None,
    warmup: Annotated[float | None, _field("warmup", panel=OPTIMIZER)] = None,
    validate_every: Annotated[int | None, _field("validate_every", panel=MACHINE)] = None,
    checkpoint_every: Annotated[int | None, _field("checkpoint_every", panel=MACHINE)] = None,
    tracker: Annotated[str | None, _field("tracker", panel=MACHINE)] = None,
    batch_tokens: Annotated[int | None, _field("batch_tokens", panel=MACHINE)] = None,
    dtype: Annotated[str | None, _field("dtype", panel=MACHINE)] = None,
    device: Annotated[str | None, _field("device", panel=MACHINE)] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to begin (outputs/optune-TASK-MODEL-sSEED)")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="training folder to go on with")] = None,
    recipe: Recipe = None,
) -> None:
    """Train the network on attempts and gold solutions; several processes share the work."""
    if shuffle_attempts and constant_input:
        raise UsageError("--shuffle-attempts and --constant-input exclude each other; give one.")
    flags = in_sections(
        {
            "attempts_from": attempts_from, "model": model, "task": task, "data_dir": data_dir,
            "seed": seed, "attempts": attempts, "max_attempts": max_attempts, "limit": limit,
            "held_out": held_out, "max_length": max_length, "feedback": feedback,
            "targets": None if targets is None else name_list(targets),
            "layers": layers, "rank": rank, "dropout": dropout, "alpha": alpha,
            "window": window, "epochs": epochs, "max_steps": max_steps, "lr": lr,
            "weight_decay": weight_decay, "clip": clip, "schedule": schedule, "warmup": warmup,
            "validate_every": validate_every, "checkpoint_every": checkpoint_every,
            "tracker": tracker, "batch_tokens": batch_tokens, "dtype": dtype, "device": device,
        },
        OpTuneConfig,
    )  # fmt: skip
    if shuffle_attempts or constant_input:
        flags["ablation"] = "shuffle-attempts" if shuffle_attempts else "constant-input"
    if resume is not None and out is not None:
        raise UsageError("--resume goes on in its own folder; leave --out away.")
    file = {} if recipe is None else read_toml(recipe)
    build(OpTuneConfig, merge({"attempts_from": "?"}, file), str(recipe))  # its own faults first
    _train(merge(file, flags), out, resume)


def _train(values: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    from fttt.optune.plan import default_folder, plan_training, read_settings, resumed

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

    from fttt.training.folder import begin_folder, held_folder

    if resume is None:
        begin_folder(folder, "fttt optune train --resume")

    from fttt.optune.processes import Processes

    processes = Processes(config.device, config.tracker, folder)
    with held_folder(folder) if processes.main else nullcontext():
        trained = _carry_out(plan, folder, processes, begun=resume is not None)
    if processes.main:
        _show(trained, folder)


def _carry_out(plan: TrainingPlan, folder: Path, processes: Processes, *, begun: bool) -> Trained:
    from fttt.models import load_model
    from fttt.optune.plan import CONFIG
    from fttt.optune.training import Trainer
    from fttt.progress import StepProgress

    loaded = load_model(plan.model, dtype=plan.config.dtype, device=processes.device)
    progress = StepProgress("optune", shown=processes.main)
    trainer = Trainer(plan, loaded, folder, processes, progress)
    if processes.main and not begun:  # only now is it known that nothing is refused
        text = f"# fttt optune train --recipe {CONFIG}\n" + to_toml(plan.config)
        (folder / CONFIG).write_text(text, encoding="utf-8")
    try:
        return trainer.run()
    except (RunError, KeyboardInterrupt):
        if processes.main:
            typer.echo(f"fttt: Go on with `fttt optune train --resume {folder}`.", err=True)
        raise


def _show(trained: Trained, folder: Path) -> None:
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
    typer.echo(f"{folder}")


def _evaluate_command() -> Callable[..., None]:
    """``fttt run`` with all its options, but for the method, which is known."""

    @wraps(run_command)
    def evaluate_command(**options: Any) -> None:
        run_command("optune", **options)

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
