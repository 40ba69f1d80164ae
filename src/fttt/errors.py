"""The error policy.

- What the user typed or brought is wrong: :class:`UsageError`, before any model is loaded. The
  command line prints its one sentence and exits with 2.
- The run could not go on (no memory, no space left, the judge is down): :class:`RunError`. The
  command line prints its one sentence, says how to resume, and exits with 1. Where going on would
  end in the same way (:class:`DivergedError`), it offers nothing of the kind.
- A verifier that raised or hung is neither: it is a fact about one trial, recorded in its
  verdict's ``detail``, and the run goes on.
- Anything else is a defect of ours and travels as it is; ``--debug`` shows its traceback.

A message is one sentence that names what failed, the value, what is allowed, and the next step.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["DivergedError", "FTTTError", "RunError", "UsageError", "cannot_write", "is_a_file"]


class FTTTError(Exception):
    """Any error that this package raises on purpose."""

    exit_code = 1


class UsageError(FTTTError):
    """The request cannot be carried out as it was made; nothing was started."""

    exit_code = 2


class RunError(FTTTError):
    """A run that had begun could not go on; what was finished is on disk."""

    exit_code = 1


class DivergedError(RunError):
    """Losses or outputs are no numbers any more; going on would end in the same way."""


def cannot_write(folder: Path, error: OSError) -> RunError:
    """The error of an output folder that cannot be made or written."""
    return RunError(
        f"Cannot write the output folder {str(folder)!r}: {error.strerror}; "
        "name another with --out."
    )


def is_a_file(path: Path) -> UsageError:
    """The error of an output folder that is a file."""
    return UsageError(f"--out {str(path)!r} is a file; name a folder.")
