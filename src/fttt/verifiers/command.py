"""A shell command as a verifier: its exit status is the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict
from typing import Any

from fttt.errors import UsageError
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.base import feedback_on
from fttt.verifiers.pool import JobError, WorkerPool

__all__ = ["CommandVerifier", "run"]

_SHOWN = 500
"""Characters of the command's output that a verdict's detail keeps: its end."""

_NOT_RUN = (126, 127)
"""The shell's exit statuses for a program that is missing or may not be executed."""
_PROGRAM = re.compile(r"[\w./+-]+")
"""A first word that names a program or a builtin, and is no shell syntax."""


class CommandVerifier:
    """Runs a command for each completion: exit status 0 is correct, any other incorrect.

    The completion is on standard input. The environment is the caller's, and besides:
    ``FTTT_QUESTION_ID``, ``FTTT_QUESTION`` (the prompt), ``FTTT_GOLD`` (the gold answer; JSON where
    it is no text) and ``FTTT_SOLUTION`` (empty where there is none). The end of what the command
    prints becomes the verdict's detail. When it ends or its time is up, everything that it started
    is killed, daemons included.
    """

    def __init__(
        self, command: str, *, time_limit: float = 30.0, workers: int | None = None
    ) -> None:
        """Take a command line, run by ``/bin/sh``.

        Raises:
            UsageError: it is empty, not a line of shell, or its program does not exist.
        """
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"The verifier command {command!r} cannot be read: {error}.") from None
        if not words:
            raise UsageError(
                "The verifier command is empty; give a command line such as ./check.sh."
            )
        if _PROGRAM.fullmatch(words[0]) and not _exists(words[0]):
            raise UsageError(
                f"The verifier command {command!r} starts with {words[0]!r}, which is no program "
                "here; check its path and that it may be executed."
            )
        self._command = command
        self._pool = WorkerPool(
            "fttt.verifiers.command:run", time_limit=time_limit, workers=workers
        )

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Run the command."""
        start = time.perf_counter()
        request = {"command": self._command, "completion": completion, **asdict(question)}
        try:
            status, detail = await self._pool.run(request)
            if status in _NOT_RUN:
                detail = f"the command could not be run: {detail}"
            elif status != 0 and not detail:
                detail = f"the command ended with exit status {status}"
        except JobError as failure:
            status, detail = 1, f"the command {failure}"
        outcome: Outcome = "correct" if status == 0 else "incorrect"
        seconds = time.perf_counter() - start
        return Verdict(outcome, None, detail, seconds, feedback_on(outcome, None))

    def extract(self, question: Question, completion: str) -> str | None:
        """Nothing: a command says whether, not what."""
        return None

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()


def run(request: Any) -> tuple[int, str]:
    """The worker's job: run the command; its exit status and the end of its output."""
    gold = request["gold"]
    added = {
        "FTTT_QUESTION_ID": request["id"],
        "FTTT_QUESTION": request["prompt"],
        "FTTT_GOLD": gold if isinstance(gold, str) else json.dumps(gold),
        "FTTT_SOLUTION": request["solution"] or "",
    }
    with tempfile.TemporaryFile() as given:
        given.write(request["completion"].encode(errors="replace"))
        given.seek(0)
        process = subprocess.Popen(
            ["/bin/sh", "-c", request["command"]],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {name: _clean(value) for name, value in added.items()},
        )
    tail = bytearray()
    reader = threading.Thread(target=_keep_tail, args=(process, tail), daemon=True)
    reader.start()
    status = process.wait()
    reader.join(0.2)  # something in the background may hold the pipe open: the worker kills it
    return status, bytes(tail).decode(errors="replace").strip()[-_SHOWN:]


def _keep_tail(process: subprocess.Popen[bytes], tail: bytearray) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):
        while data := os.read(process.stdout.fileno(), 65536):
            tail += data
            del tail[: -4 * _SHOWN]


def _exists(program: str) -> bool:
    """Whether the shell finds a program, a builtin or a keyword of this name."""
    asked = ["/bin/sh", "-c", 'command -v -- "$1"', "sh", program]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def _clean(value: str) -> str:
    """``value`` as an environment variable can hold it."""
    return value.replace("\0", "").encode(errors="replace").decode()
