"""Solve hard problems by trying, being told what was wrong, and learning from it.

What this module exports is public; nothing else is, but for :mod:`fttt.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fttt.errors import FTTTError, RunError, UsageError
    from fttt.methods.base import Attempt, Group, LoRASettings, Method, MethodSettings, Session
    from fttt.solving import Result, solve, solve_many
    from fttt.store import Run
    from fttt.tasks.task import Task, TaskOptions
    from fttt.types import (
        Completion,
        Example,
        Judged,
        Question,
        Record,
        Scores,
        Step,
        Teacher,
        Text,
        Trial,
        Turn,
        Usage,
        Verdict,
        assistant,
        system,
        user,
    )
    from fttt.verifiers.combined import all_of, any_of, weighted
    from fttt.verifiers.function import FunctionVerifier
    from fttt.verifiers.llm_judge import LLMVerifier
    from fttt.verifiers.reward import RewardVerifier
    from fttt.verifiers.verifier import Verifier

__version__ = "0.1.0"

_MODULES = {
    "fttt.errors": "FTTTError RunError UsageError",
    "fttt.methods.base": "Attempt Group LoRASettings Method MethodSettings Session",
    "fttt.solving": "Result solve solve_many",
    "fttt.store": "Run",
    "fttt.tasks.task": "Task TaskOptions",
    "fttt.types": "Completion Example Judged Question Record Scores Step Teacher Text Trial "
    "Turn Usage Verdict assistant system user",
    "fttt.verifiers.combined": "all_of any_of weighted",
    "fttt.verifiers.function": "FunctionVerifier",
    "fttt.verifiers.llm_judge": "LLMVerifier",
    "fttt.verifiers.reward": "RewardVerifier",
    "fttt.verifiers.verifier": "Verifier",
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names.split()}
"""The module of each name, imported when the name is first used: every worker process and every
command imports this package, and few need all of it."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fttt' has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "Attempt",
    "Completion",
    "Example",
    "FTTTError",
    "FunctionVerifier",
    "Group",
    "Judged",
    "LLMVerifier",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Question",
    "Record",
    "Result",
    "RewardVerifier",
    "Run",
    "RunError",
    "Scores",
    "Session",
    "Step",
    "Task",
    "TaskOptions",
    "Teacher",
    "Text",
    "Trial",
    "Turn",
    "Usage",
    "UsageError",
    "Verdict",
    "Verifier",
    "__version__",
    "all_of",
    "any_of",
    "assistant",
    "solve",
    "solve_many",
    "system",
    "user",
    "weighted",
]
