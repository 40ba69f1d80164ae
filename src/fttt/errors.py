"""The error policy.

- What the user typed or brought is wrong: :class:`UsageError`, before any model is loaded. The
  command line prints its one sentence and exits with 2.
- A run failed after it had begun (no memory, no space left, the judge is down): :class:`RunError`.
  The command line prints its one sentence, says how to resume, and exits with 1. Where resuming
  would fail again (:class:`DivergedError`), it does not offer it.
- A verifier that raised or hung is neither: it is a fact about one trial, recorded in its
  verdict's ``detail``, and the run continues.
- Anything else is a defect of ours and travels as it is; ``--debug`` shows its traceback.

A message is one sentence that names what failed, the value, what is allowed, and the next step.
"""

from __future__ import annotations

__all__ = ["DivergedError", "FTTTError", "RunError", "StoppedError", "UsageError", "first_line"]


class FTTTError(Exception):
    """Any error that this package raises on purpose."""

    exit_code = 1


class UsageError(FTTTError):
    """The request cannot be carried out as it was made; nothing was started."""

    exit_code = 2


class RunError(FTTTError):
    """A run failed after it had begun; what was finished is on disk."""

    exit_code = 1


class StoppedError(RunError):
    """Ctrl-C or SIGTERM: stopped cleanly, and can be resumed."""

    exit_code = 130


class DivergedError(RunError):
    """Losses or outputs became NaN or infinite; resuming would fail again."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
