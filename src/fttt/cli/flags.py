"""Flags that are fields of a config, with the field's own type and text, and flags that are none.

The second kind are the few that several commands share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fttt.config import RunConfig, in_sections, key_values
from fttt.config.run_config import EMBEDDED_MODEL, Section
from fttt.errors import DivergedError, RunError, StoppedError
from fttt.progress import Progress, note
from fttt.store import Run
from fttt.tasks import Task
from fttt.tasks.benchmark_data import local_data, local_note
from fttt.trackers import NO_TRACKER, RunTracker

__all__ = [
    "DATA",
    "PANELS",
    "PRECISION",
    "AsJSON",
    "DryRun",
    "JudgeURL",
    "Recipe",
    "RunFolders",
    "TrackerName",
    "ask_judge",
    "complete_method",
    "examples",
    "first_process",
    "found_data",
    "print_json",
    "say",
    "say_how_to_resume",
    "tracked",
    "with_flags",
]

DATA, PRECISION = "Questions", "Precision"

NAMES = {
    "attempts_from": ("--from",),
    "data.options": ("--task-option",),
    "data.seed": ("--data-seed",),
    "model": ("--model", "-m"),
    "settings": ("--set", "-s"),
    "task": ("--task", "-t"),
    "template_args": ("--template-arg",),
}
"""Flags whose names differ from their fields' names."""
METAVARS = {
    "adapter": "DIR",
    "data.questions": "ID,ID",
    "data.skip_cases": "FILE",
    "engine.ray_address": "HOST:PORT",
    "engine.replicas": "N|auto",
    "endpoint": "URL",
    "targets": "NAME,NAME",
}
PANELS = {
    "data": DATA,
    "budget": "Budget",
    "sampling": "Sampling",
    "engine": "Engine",
    "training": "Training",
}
"""The heading under which the help shows a section."""

Command = Callable[..., None]


def with_flags(
    model: type[BaseModel] = RunConfig,
    *,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
    panels: Mapping[str, str] = PANELS,
    texts: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """Give a command a flag for each field of a config, in the place of its parameter ``flags``.

    The command is called with the values of the given flags, in the config's sections.

    Args:
        model: the config.
        without: fields that have no flag, as ``section.field`` or ``field``.
        only: the fields that have one, where not all others have.
        panels: headings of the help, by field or section.
        texts: help texts other than the fields' own.
    """
    wanted = (flag for flag in _flags(model) if only is None or flag.path in only)
    flags = [flag for flag in wanted if flag.path not in without]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def called(**given: Any) -> None:
            values = {flag.path: flag.read(given.pop(flag.parameter)) for flag in flags}
            command(flags=in_sections(values, model), **given)

        own = signature(command, eval_str=True)
        parameters: list[Parameter] = []
        for parameter in own.parameters.values():
            if parameter.name == "flags":
                parameters += [flag.shown(panels, texts or {}) for flag in flags]
            else:
                parameters.append(parameter)
        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


@dataclass(frozen=True)
class _Flag:
    """A field of a config as a flag."""

    path: str
    field: FieldInfo

    @property
    def parameter(self) -> str:
        return self.path.replace(".", "_")

    @property
    def kind(self) -> Any:
        """The field's type, where a value is given."""
        kind = self.field.annotation
        if get_origin(kind) in (Union, UnionType):
            kinds = [part for part in get_args(kind) if part is not NoneType]
            kind = kinds[0] if len(kinds) == 1 else str  # the field reads what it may be
        return get_args(kind)[0] if get_origin(kind) is Annotated else kind

    def read(self, given: Any) -> Any:
        """The field's value; ``None`` or nothing where the flag was not given."""
        if get_origin(self.kind) is dict:
            return key_values(given or [], self.names[0])
        if get_origin(self.kind) is tuple and given is not None:
            return [part.strip() for part in given.split(",") if part.strip()]
        return str(given) if isinstance(given, Path) else given

    @property
    def names(self) -> tuple[str, ...]:
        name = self.path.rpartition(".")[2].replace("_", "-")
        either = self.kind is bool and self.field.default is not False
        own = f"--{name}/--no-{name}" if either else f"--{name}"
        return NAMES.get(self.path, (own,))

    def shown(self, panels: Mapping[str, str], texts: Mapping[str, str]) -> Parameter:
        """The parameter that a command line parser reads."""
        origin, metavar = get_origin(self.kind), METAVARS.get(self.path)
        kind: Any = self.kind
        if origin is Literal:
            kind, metavar = str, "|".join(get_args(self.kind))
        elif origin is tuple:
            kind = str
        elif origin is dict:
            kind, metavar = list[str], "KEY=VALUE"
        option = typer.Option(
            *self.names,
            help=texts.get(self.path) or self._text(),
            metavar=metavar,
            rich_help_panel=panels.get(self.path) or panels.get(self.path.partition(".")[0]),
            show_default=False,
            autocompletion=_completion(self.path, self.kind),
        )
        annotation = Annotated[kind | None, option]
        return Parameter(
            self.parameter, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation
        )

    def _text(self) -> str:
        """The field's description, with its default value where it has one."""
        default = self.field.default
        told = ",".join(default) if isinstance(default, tuple) else default
        if told is PydanticUndefined or told is None or isinstance(told, bool):
            return self.field.description or ""
        return f"{self.field.description} \\[{told}]"  # no markup


def complete_method(incomplete: str) -> list[str]:
    """The methods that a shell completes a word to."""
    from fttt.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def _completion(path: str, kind: Any) -> Callable[[str], list[str]] | None:
    """What a shell completes a flag's value to; ``None``: files."""
    if get_origin(kind) is not Literal and path not in ("task", "model"):
        return None

    def complete(incomplete: str) -> list[str]:
        from fttt.tasks import TASKS

        if path == "model":
            names: Collection[str] = [EMBEDDED_MODEL]
        else:
            names = list(TASKS) if path == "task" else get_args(kind)
        return [name for name in names if name.startswith(incomplete)]

    return complete


def _flags(model: type[BaseModel], section: str = "") -> Iterator[_Flag]:
    """The fields of a config and of its sections, in their order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _flags(kind, f"{name}.")
        else:
            yield _Flag(section + name, field)


JudgeURL = Annotated[
    str | None,
    typer.Option(
        help="the code judge to ask (else OJ_API, else an embedded one)", rich_help_panel=DATA
    ),
]
Recipe = Annotated[Path | None, typer.Option(help="TOML file with settings; flags override it")]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        help="Run folders, or folders that hold runs; runs that differ only in the seed are pooled."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved settings as a recipe, and stop")
]


def examples(*lines: str) -> str:
    """What stands below a command's help: command lines to begin with."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


AsJSON = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


TrackerName = Annotated[
    str,
    typer.Option(
        "--tracker", help="tensorboard, wandb, trackio, mlflow, or another of accelerate's"
    ),
]


@contextmanager
def tracked(
    progress: Progress, name: str, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Sequence[Run]], None]]:
    """Hand a run's figures to a tracker, and at its end those of its summary.

    Args:
        progress: of the run, which hands on what it counts.
        name: of the tracker; ``none`` for none.
        folder: of the run.
        settings: of the run.
    """
    if name == NO_TRACKER:
        yield lambda runs: None
        return
    tracker = RunTracker(name, folder, settings, note)
    progress.tracker = tracker
    try:
        yield lambda runs: tracker.log(_final(runs), sum(r.summary["trials_total"] for r in runs))
    finally:
        tracker.close()


def _final(runs: Sequence[Run]) -> dict[str, float]:
    """The last figures of runs; of several by the names of their folders."""
    values = {}
    for run in runs:
        prefix = f"{run.path.name}/" if len(runs) > 1 else "final_"
        for key in ("accuracy", "solved", "trials_total", "seconds"):
            values[prefix + key] = run.summary[key]
    return values


def print_json(value: Any) -> None:
    """Print plain data as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def ask_judge(url: str | None) -> None:
    """Let the verifiers ask the code judge at ``url``, where one is named."""
    if url is not None:
        os.environ["OJ_API"] = url  # where a client of the judge looks for it


def found_data(task: Task, split: str) -> Path | None:
    """``./datasets``, if it holds the task's split; a line on standard error says so."""
    folder = local_data(task, split)
    if folder is not None:
        note(local_note(task.name))
    return folder


@contextmanager
def say_how_to_resume(command: str, folder: Path) -> Iterator[None]:
    """Note the command that resumes what has begun in ``folder`` and failed or was interrupted.

    It is printed after the error's own sentence; not where that names the command, or where
    resuming would fail again.
    """
    try:
        yield
    except (RunError, KeyboardInterrupt) as caught:
        if not any(folder.glob("*.toml")):
            raise
        error = StoppedError("Stopped.") if isinstance(caught, KeyboardInterrupt) else caught
        helps = not isinstance(error, DivergedError) and command not in str(error)
        if helps and first_process():
            error.add_note(f"Resume with {command}.")
        raise error from error.__cause__


def say(line: str) -> None:
    """Print a line, in the first of several processes only."""
    if first_process():
        typer.echo(line)


def first_process() -> bool:
    """Whether this is the first of several processes, which speaks for all."""
    return os.environ.get("RANK", "0") == "0"  # as accelerate and torchrun number them
