"""Sources of questions, by name."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from fttt.errors import UsageError
from fttt.registry import Registry
from fttt.tasks.task import Task, TaskOptions
from fttt.types import Question

__all__ = [
    "TASKS",
    "Task",
    "TaskOptions",
    "get_task",
    "load_questions",
    "task_name",
    "task_options",
]


def _fault(found: Any) -> str | None:
    missing = [part for part in ("name", "splits", "load", "verifier") if not hasattr(found, part)]
    if isinstance(found, type) and not missing:
        return None
    what = f"it has no {missing[0]!r}" if missing else "it is no class"
    return f"{what}; see fttt.Task"


TASKS: Registry[Task] = Registry(
    "task",
    {
        "arithmetic": "fttt.tasks.arithmetic:ArithmeticTask",
        "gsm8k": "fttt.tasks.gsm8k:GSM8KTask",
        "math500": "fttt.tasks.math500:Math500Task",
        "humaneval": "fttt.tasks.humaneval:HumanEvalTask",
        "mbpp": "fttt.tasks.mbpp:MBPPTask",
        "humanevalplus": "fttt.tasks.humanevalplus:HumanEvalPlusTask",
        "mbppplus": "fttt.tasks.mbppplus:MBPPPlusTask",
        "livecodebench": "fttt.tasks.livecodebench:LiveCodeBenchTask",
        "aime24": "fttt.tasks.aime:Aime24Task",
        "aime25": "fttt.tasks.aime:Aime25Task",
        "gpqa": "fttt.tasks.gpqa:GPQATask",
        "mmlupro": "fttt.tasks.mmlu_pro:MMLUProTask",
        "bbh": "fttt.tasks.bbh:BBHTask",
        "sorting": "fttt.tasks.sorting:SortingTask",
        "gym": "fttt.tasks.gym:GymTask",
        "optimise": "fttt.tasks.optimise:OptimiseTask",
        "jsonl": "fttt.tasks.jsonl:JsonlTask",
    },
    _fault,
)
"""The built-in tasks by name."""


def task_name(name: str) -> str:
    """The task's own name for any spelling of it (``MATH-500``, ``HumanEval+``); else ``name``."""
    plain = re.sub(r"[-_ ]", "", name).lower().replace("+", "plus")
    return plain if plain in TASKS else name


def load_questions(task: Task, options: TaskOptions) -> list[Question]:
    """A task's questions under the options.

    Raises:
        UsageError: as :meth:`Task.load`, or the task has no prompt of that style.
    """
    if options.prompt_style == "paper":
        if options.prompt is not None:
            raise UsageError(
                "--prompt and --prompt-style paper both say what the prompt is; give one of them."
            )
        if not hasattr(task, "paper_prompt"):
            known = ", ".join(name for name in TASKS if hasattr(TASKS[name], "paper_prompt"))
            raise UsageError(
                f"The task {task.name!r} has no prompt in the paper's code; leave "
                f"--prompt-style paper away, or choose from {known}."
            )
    return task.load(options)


def get_task(name: str, **options: Any) -> Task:
    """A task by its name, or of the class that ``module:Class`` names.

    Args:
        name: one of :data:`TASKS` in any spelling, ``gym/FAMILY``, ``optimise/FAMILY``, or
            a class of the user's own (see :class:`Task`).
        options: what the task's class takes, as ``verifier="number"`` for ``jsonl``.

    Raises:
        UsageError: there is no such task, or it does not take the options.
    """
    name = task_name(name)
    base, slash, family = name.partition("/")
    if slash and base in ("gym", "optimise"):
        name, options = base, {**options, "family": family}
    kind = TASKS.find(name)
    taken = task_options(kind)
    any_other = any(p.kind is p.VAR_KEYWORD for p in signature(kind).parameters.values())
    unknown = [option for option in options if not any_other and option not in taken]
    if "verifier" in unknown:
        raise UsageError(
            f"The task {name!r} has a verifier of its own and does not take the option 'verifier' "
            f"({options['verifier']}); leave --verifier away, or put its questions into a file for "
            "--task jsonl."
        )
    if unknown:
        raise UsageError(
            f"The task {name!r} does not take the option {unknown[0]!r}; "
            f"it takes {', '.join(taken) or 'none'}."
        )
    try:
        return kind(**options)
    except TypeError as error:
        said = ", ".join(f"{option} = {value!r}" for option, value in options.items())
        raise UsageError(
            f"The task {name!r} cannot be made with {said or 'no option'}: {error}."
        ) from error


def task_options(kind: type[Task]) -> tuple[str, ...]:
    """The names of the options that a task's class takes."""
    parameters = signature(kind).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
