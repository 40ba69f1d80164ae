"""``fttt optune``: the learned optimizer, from attempts to a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fttt.cli.run import given, run_flags
from fttt.config import key_values, resolve

__all__ = ["optune_app"]

optune_app = typer.Typer(
    help="Train a network that predicts, from a failed attempt, how to change the weights.",
    no_args_is_help=True,
)


@optune_app.command("generate")
def generate_command(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="hub name, folder, GGUF file or embedded name"),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="a task of `fttt list tasks`")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder with the benchmark in its own layout")
    ] = None,
    split: Annotated[str | None, typer.Option(help="split of the task, never test (train)")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first N questions")] = None,
    task_option: Annotated[
        list[str] | None, typer.Option(help="option of the task itself", metavar="KEY=VALUE")
    ] = None,
    attempts: Annotated[int | None, typer.Option(help="attempts at each question (10)")] = None,
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
    flags = given(
        {
            "method": "sample",
            "model": model,
            "task": task,
            "seed": seed,
            "data": {
                "data_dir": data_dir,
                "split": split if resume else split or "train",
                "limit": limit,
                "options": key_values(task_option or [], "--task-option"),
            },
            "budget": {"trials": 10 if attempts is None and not resume else attempts},
            "sampling": {
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
            },
            "engine": {"dtype": dtype, "device": device, "batch_size": batch_size},
        }
    )
    if resume is None:
        from fttt.experiment.plan import task_of
        from fttt.training.gold import check_trainable

        config = resolve(flags)
        check_trainable(task_of(config), config.data.split)
    run_flags(flags, out, resume)
