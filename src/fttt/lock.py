"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

from fttt.errors import UsageError

__all__ = ["hold"]


def hold(handle: int, folder: Path) -> None:
    """Keep other processes out of ``folder`` until ``handle`` is closed, however that comes.

    On a file system without locks nothing keeps them out.

    Args:
        handle: a descriptor of a file in the folder, or of the folder itself.
        folder: its name, for the sentence.

    Raises:
        UsageError: another process holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"The folder {str(folder)!r} is in use by another process; wait for it or stop it "
            "first."
        ) from error
    except OSError:
        pass  # a file system without locks: ENOLCK, ENOTSUP or ENOSYS, as it likes
