"""The command line, within the process that tests."""

from __future__ import annotations

__all__ = ["call"]


def call(*words: str) -> int:
    """Run ``fttt`` with these words, in a process that has loaded torch already.

    Returns:
        Its exit status: 0 done, 2 a usage error, 1 a failed run.
    """
    from fttt.cli import main

    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("a command line ends with an exit status")
