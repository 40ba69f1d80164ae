"""Sources of questions, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from fttt.errors import UsageError
from fttt.tasks.base import Task, TaskOptions

__all__ = ["TASKS", "Task", "TaskOptions", "get_task"]

_PLACES = {
    "arithmetic": "fttt.tasks.arithmetic:ArithmeticTask",
    "gsm8k": "fttt.tasks.gsm8k:GSM8KTask",
    "math500": "fttt.tasks.math500:Math500Task",
    "humaneval": "fttt.tasks.humaneval:HumanEvalTask",
    "mbpp": "fttt.tasks.mbpp:MBPPTask",
    "jsonl": "fttt.tasks.jsonl:JsonlTask",
}


class _Tasks(Mapping[str, type[Task]]):
    """Task classes by name; a task's module is imported when its class is looked up."""

    def __getitem__(self, name: str) -> type[Task]:
        module, _, attribute = _PLACES[name].partition(":")
        found: type[Task] = getattr(import_module(module), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


TASKS: Mapping[str, type[Task]] = _Tasks()


def get_task(name: str, **choices: Any) -> Task:
    """A task by its name.

    Args:
        name: one of :data:`TASKS`.
        choices: what the task's class takes, as ``verifier="number"`` for ``jsonl``.

    Raises:
        UsageError: there is no such task.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? The tasks are" if near else "choose from"
        raise UsageError(f"There is no task {name!r}; {hint} {', '.join(TASKS)}.")
    return TASKS[name](**choices)
