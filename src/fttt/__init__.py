"""Solve hard problems by trying, being told what was wrong, and learning from it.

What this module exports is public; nothing else is, but for :mod:`fttt.testing`.
"""

from fttt.errors import FTTTError, RunError, UsageError
from fttt.methods.base import Attempt, LoRASettings, Method, MethodSettings, Session
from fttt.solve import Result, solve
from fttt.store import Run
from fttt.tasks.task import Task, TaskOptions
from fttt.types import (
    Completion,
    Feedback,
    Question,
    Record,
    Trial,
    Usage,
    Verdict,
)
from fttt.verifiers.function import FunctionVerifier
from fttt.verifiers.verifier import Verifier

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "Completion",
    "FTTTError",
    "Feedback",
    "FunctionVerifier",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Question",
    "Record",
    "Result",
    "Run",
    "RunError",
    "Session",
    "Task",
    "TaskOptions",
    "Trial",
    "Usage",
    "UsageError",
    "Verdict",
    "Verifier",
    "__version__",
    "solve",
]
