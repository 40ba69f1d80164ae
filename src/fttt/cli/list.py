"""``fttt list``: the methods, tasks and models that there are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["ListKind", "list_command"]


class ListKind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    MODELS = "models"


def list_command(
    kind: Annotated[ListKind, typer.Argument(help="What to list.", show_default=False)],
) -> None:
    """List the methods with their settings, the tasks, or the models."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in {
        ListKind.METHODS: _methods,
        ListKind.TASKS: _tasks,
        ListKind.MODELS: _models,
    }[kind]():
        table.add_row(name, text)
    Console().print(table)


def _methods() -> list[tuple[str, str]]:
    from fttt.methods import METHODS

    rows = []
    for method in METHODS.values():
        rows.append((method.name, method.summary))
        for name, field in method.Settings.model_fields.items():
            default = field.get_default(call_default_factory=True)
            text = ", ".join(default) if isinstance(default, tuple) else str(default)
            text = "required" if field.is_required() else text
            rows.append((f"  --set {name}=", f"{field.description} ({text})"))
    return [*rows, ("module:Class", "a method of your own (see fttt.Method)")]


def _tasks() -> list[tuple[str, str]]:
    from fttt.tasks import TASKS, task_options

    rows = []
    for name, task in TASKS.items():
        first = " ".join((task.__doc__ or "").strip().partition("\n\n")[0].split())
        said = [first, f"Splits: {', '.join(task.splits)}."]
        if options := task_options(task):
            said.append(f"Options (--task-option KEY=VALUE): {', '.join(options)}.")
        rows.append((name, " ".join(said)))
    return [*rows, ("module:Class", "a task of your own (see fttt.Task)")]


def _models() -> list[tuple[str, str]]:
    from fttt.models import list_models

    return [
        *list_models(),
        ("OWNER/NAME", "a causal language model of the Hugging Face hub (safetensors)"),
        ("FOLDER", "a folder with config.json and safetensors weights"),
        ("FILE.gguf", "a GGUF file, read as it is (docs/models.md names the families)"),
        *_left_over(),
    ]


def _left_over() -> list[tuple[str, str]]:
    """What version 0.1 kept of GGUF files."""
    from fttt.models import cache_folder

    folder = cache_folder("models")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if not size:
        return []
    text = f"{size / 1e9:.1f} GB of converted GGUF files, which nothing reads any more: delete it"
    return [(str(folder), text)]
