"""Known programs: a rehearsal, before any verdict is given, and how fast verdicts are here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from fttt.errors import RunError
from fttt.judge.problem import Judgement, Problem, StdinProblem, Submission

__all__ = ["JudgeRate", "measure", "rehearse"]

_PER_BOX = 60  # modules
_IMPORT_SECONDS = 60.0
"""For the standard library out here, some second on a machine with nothing else to do."""
# Importing these does something, or opens a window.
_LEFT_OUT = frozenset(("antigravity", "idlelib", "this", "tkinter", "turtle", "turtledemo"))
_ADD = Problem(
    prompt='def add(a, b):\n    """The sum of a and b."""\n',
    test="def check(candidate):\n    assert candidate(2, 3) == 5\n",
    entry_point="add",
)
_PRINT = StdinProblem(("2 3\n",), ("5\n",), prompt="a, b = map(int, input().split())\n")
_IMPORT = Problem(
    prompt="",
    test="def check(missing):\n    found = missing()\n    assert not found, found\n",
    entry_point="missing",
)
_IMPORT_ALL = """\
import importlib
def missing():
    found = []
    for name in {names}:
        try:
            importlib.import_module(name)
        except Exception:
            found.append(name)
    more = f" and {{len(found) - 3}} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
"""
_TRY_OUTSIDE = """\
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
found = []
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
        found.append(name)
    except Exception:
        pass
print(json.dumps(found))
"""

Judging = Callable[[Submission], Awaitable[Judgement]]


async def rehearse(judge: Judging) -> str:
    """Have known programs judged; which modules of the standard library submissions do without.

    Nothing is answered where a submission can import all that the interpreter can out here.
    Raises :class:`fttt.errors.RunError` where a right program does not pass or a wrong one does
    not fail.
    """
    for problem, form in ((_ADD, "    return {}\n"), (_PRINT, "print({})\n")):
        for word, body, status in (("right", "a + b", "passed"), ("wrong", "a - b", "failed")):
            judgement = await judge(Submission(problem, form.format(body)))
            if judgement.status == status:
                continue
            raise RunError(
                "the code judge's sandbox does not work on this machine: in its rehearsal, a "
                f"{word} program was judged {judgement.status!r} ({judgement.detail}); try another "
                "Python installation, and report this"
            )
    names = [
        name
        for name in sorted(sys.stdlib_module_names - _LEFT_OUT)
        if not name.startswith("_") and importlib.util.find_spec(name) is not None
    ]
    if await _missing(judge, names):
        # Some installations lack a library that one of their own modules wants.
        return await _missing(judge, await _importable(names))
    return ""


async def _missing(judge: Judging, names: list[str]) -> str:
    """Which of some modules a submission cannot import; a few a box, whatever its limits are."""
    found = []
    for begin in range(0, len(names), _PER_BOX):
        code = _IMPORT_ALL.format(names=names[begin : begin + _PER_BOX])
        judgement = await judge(Submission(_IMPORT, code))
        if not judgement.passed:
            words = judgement.detail.removeprefix("AssertionError: ").partition(" at line ")[0]
            found.append(words)
    return ", ".join(found)


async def _importable(names: list[str]) -> list[str]:
    """Those of some modules that this interpreter can import outside the sandbox."""
    options = ("-I", "-S", "-B", "-c", _TRY_OUTSIDE, json.dumps(names))
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *options), stdin=nothing, stdout=asyncio.subprocess.PIPE, stderr=nothing
    )
    output = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_IMPORT_SECONDS):
            output, _ = await process.communicate()
    if process.returncode is None:
        process.kill()
        await process.wait()
    found: list[str] = json.loads(output or b"[]")
    return found


_PROBLEM = replace(
    _ADD,
    test="def check(candidate):\n"
    "    for a in range(20):\n"
    "        assert candidate(a, 3) == a + 3\n",
)


@dataclass(frozen=True, slots=True)
class JudgeRate:
    """Verdicts a second and the time of one verdict, for so many clients at once."""

    clients: int
    verdicts: int
    per_second: float
    p50_ms: float
    p99_ms: float
    wrong: int


async def measure(judge: Judging, clients: int, seconds: float) -> JudgeRate:
    """Let each of ``clients`` submit right and wrong programs in turn for some seconds."""
    took: list[float] = []
    wrong = 0
    begin = time.perf_counter()

    async def client(first: int) -> None:
        nonlocal wrong
        number = first
        while time.perf_counter() - begin < seconds:
            right = number % 2 == 0
            body = f"    return a + b{'' if right else ' + 1'}\n"
            start = time.perf_counter()
            judgement = await judge(Submission(_PROBLEM, body))
            took.append((time.perf_counter() - start) * 1e3)
            wrong += judgement.passed != right
            number += 1

    await asyncio.gather(*map(client, range(clients)))
    elapsed = time.perf_counter() - begin
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
    return JudgeRate(clients, len(took), len(took) / elapsed, cuts[49], cuts[98], wrong)
