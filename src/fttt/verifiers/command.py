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
from pathlib import Path
from typing import Any

from fttt.errors import RunError, UsageError
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.verifier import timed_verdict
from fttt.verifiers.worker_pool import JobError, WorkerPool

__all__ = ["CommandVerifier", "run"]

_SHOWN = 500
"""Characters of the command's output that a verdict's detail keeps: its end."""

_NOT_RUN = (126, 127)
"""The shell's exit statuses for a program that is missing or may not be executed."""
_LONG = 100_000
"""Bytes of a text that fits an environment variable; the kernel's limit is 131,072."""
_GOLD_FILE = "FTTT_GOLD_FILE"
_PROGRAM = re.compile(r"[\w./+-]+")
"""A first word that is the name of a program or a builtin, and no shell syntax."""


class CommandVerifier:
    """Runs a command for each completion: exit status 0 is correct, any other incorrect.

    The completion is on standard input. The environment is the caller's without keys, tokens and
    passwords (see :mod:`fttt.verifiers.worker_pool`), with these additions:
    ``FTTT_QUESTION_ID``, ``FTTT_QUESTION`` (the prompt), ``FTTT_GOLD`` (the gold answer; JSON where
    it is no text) and ``FTTT_SOLUTION`` (empty where there is none). ``FTTT_QUESTION_FILE``,
    ``FTTT_GOLD_FILE`` and ``FTTT_SOLUTION_FILE`` name files with the same texts, of any length; a
    text of more than 100,000 bytes is in its file only, since the kernel limits the size of an
    environment. The end of the command's output becomes the verdict's detail. When the command ends
    or its time is up, every process that it started is killed, daemons included.
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
        """Run the command.

        Raises:
            RunError: it cannot be started, or the gold answer is too long for its variable and the
                command does not name the file.
        """
        start, failed = time.perf_counter(), False
        gold = question.gold if isinstance(question.gold, str) else json.dumps(question.gold)
        if len(gold.encode(errors="replace")) > _LONG and _GOLD_FILE not in self._command:
            # Without its variable, a command such as grep "$FTTT_GOLD" would find everything right.
            raise RunError(
                f"The gold answer of question {question.id!r} has {len(gold)} characters, too many "
                f"for the variable FTTT_GOLD; let the verifier command read the file ${_GOLD_FILE}."
            )
        try:
            with tempfile.TemporaryDirectory(prefix="fttt-question-") as folder:
                request = {
                    "command": self._command,
                    "completion": completion,
                    "variables": _variables(question, gold, Path(folder)),
                }
                status, detail = await self._pool.run(request)
            if status is None:
                raise RunError(f"The verifier command could not be started: {detail}.")
            if status in _NOT_RUN:
                failed = True
                detail = f"the command could not be run: {detail}"
            elif status != 0 and not detail:
                detail = f"the command ended with exit status {status}"
        except JobError as failure:
            status, detail, failed = 1, f"the command {failure}", True
        outcome: Outcome = "correct" if status == 0 else "incorrect"
        return timed_verdict(start, outcome, None, detail, failed=failed)

    def extract(self, question: Question, completion: str) -> str | None:
        """Always ``None``: a command extracts no answer."""
        return None

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()


def _variables(question: Question, gold: str, folder: Path) -> dict[str, str]:
    """The variables of the command's environment; writes the files that they name."""
    variables = {"FTTT_QUESTION_ID": _clean(question.id)}
    texts = {"QUESTION": question.prompt, "GOLD": gold, "SOLUTION": question.solution or ""}
    for name, text in texts.items():
        file = folder / name.lower()
        file.write_bytes(text.encode(errors="replace"))
        variables[f"FTTT_{name}_FILE"] = str(file)
        if file.stat().st_size <= _LONG:
            variables[f"FTTT_{name}"] = _clean(text)
    return variables


def run(request: Any) -> tuple[int | None, str]:
    """The worker's job: run the command; its exit status and the end of its output.

    Without a status the command could not be started; then the text is the reason.
    """
    with tempfile.TemporaryFile() as given:
        given.write(request["completion"].encode(errors="replace"))
        given.seek(0)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", request["command"]],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | request["variables"],
            )
        except OSError as error:
            return None, str(error)
    tail = bytearray()
    reader = threading.Thread(target=_keep_tail, args=(process, tail), daemon=True)
    reader.start()
    status = process.wait()
    reader.join(0.2)  # a background process may hold the pipe open: the worker kills it
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
