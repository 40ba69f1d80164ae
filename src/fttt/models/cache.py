"""Where this package keeps what it can make again: the checks of models that passed."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(kind: str) -> Path:
    """A folder of ``$FTTT_CACHE``, or of the user's cache; it need not be there yet."""
    chosen = os.environ.get("FTTT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fttt" / kind
