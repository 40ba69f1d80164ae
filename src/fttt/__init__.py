"""Solve hard problems by trying, being told what was wrong, and learning from it.

What this module exports is public; nothing else is, but for :mod:`fttt.testing`.
"""

from fttt.errors import FTTTError, RunError, UsageError
from fttt.methods.base import Attempt, Group, LoRASettings, Method, MethodSettings, Session
from fttt.solve import Result, solve
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
from fttt.verifiers.function import FunctionVerifier
from fttt.verifiers.verifier import Verifier

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "Completion",
    "Example",
    "FTTTError",
    "FunctionVerifier",
    "Group",
    "Judged",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Question",
    "Record",
    "Result",
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
    "assistant",
    "solve",
    "system",
    "user",
]
