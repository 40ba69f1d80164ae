"""A program that reads standard input and prints: run as a process of its own, on files.

What it should print is nowhere in the box: the service compares when the box has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
from types import ModuleType
from typing import Any, NoReturn

from .solver import describe
from .tester import line_of

__all__ = ["run_program"]

_WORDS = 4000
"""Bytes in which a program's process says why it failed."""


def run_program(submission: int, given: int, printed: int, answer: int) -> None:
    """Run a submission (a JSON file descriptor) from ``given`` to ``printed``.

    It is ``{"source", "lines"}``, where ``lines`` are those before the problem's own ending.

    Writes ``{"status", "detail"}`` to ``answer``: ``passed`` where it ended by itself without an
    error. The box ends with this process, and with it what the program has left running.
    """
    read, write = os.pipe()
    program = os.fork()
    if program == 0:
        for fd, standard in ((given, 0), (printed, 1)):
            os.dup2(fd, standard)
            os.close(fd)
        os.close(answer)
        os.close(read)
        _run(submission, write)
    _, status = os.waitpid(program, 0)
    os.set_blocking(read, False)
    try:
        words = os.read(read, _WORDS)
    except BlockingIOError:  # it was silent, and something that it started holds the pipe
        words = b""
    os.write(answer, f"{json.dumps(_verdict(status, words))}\n".encode("ascii"))


def _verdict(status: int, words: bytes) -> dict[str, Any]:
    """What the end of a program means; the words are its own, and decide nothing but a detail."""
    if os.WIFSIGNALED(status):
        ending = os.WTERMSIG(status)
        if ending == signal.SIGXCPU:
            return {"status": "timeout", "detail": "the submission used up its processor time"}
        detail = f"the program was ended by signal {ending}"
        return {"status": "failed", "detail": detail, "signal": ending}
    code = os.WEXITSTATUS(status)
    if code == 0:
        return {"status": "passed", "detail": ""}
    said = words.decode("utf-8", "replace")
    memory = said.partition(":")[0] == "MemoryError"
    detail = said or f"the program ended with status {code}"
    return {"status": "memory" if memory else "failed", "detail": detail}


def _run(submission: int, words: int) -> NoReturn:
    """The life of the program's process."""
    status = 1
    source, own = "", 0
    try:
        with os.fdopen(submission, "rb") as file:
            program = json.load(file)
        source, own = program["source"], program["lines"]
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        sys.argv[:] = [""]
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        code = compile(source, "<submission>", "exec", dont_inherit=True)
        # Whatever its status, LiveCodeBench takes an exit for the program's end.
        with contextlib.suppress(SystemExit):
            exec(code, module.__dict__)
        _finish(module)
        status = 0
    except BaseException as error:
        text = ": ".join(describe(error))
        number = line_of(error, "<submission>")
        if 0 < number <= own:
            # Without its number, which counts what the problem puts before the program.
            text += f" at the line: {source.splitlines()[number - 1].strip()[:200]}"
        os.write(words, text.encode("utf-8", "replace")[:_WORDS])
    finally:
        os._exit(status)


def _finish(module: ModuleType) -> None:
    """What the interpreter does at its end: threads, exit functions, and what is not yet written.

    The interpreter itself does not end here, since this process is a copy of the zygote.
    """
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    module.__dict__.clear()  # files that the program has opened are written when they go
    gc.collect()
    assert sys.__stdout__ is not None
    sys.__stdout__.flush()
