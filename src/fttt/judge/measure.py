"""How fast the embedded judge is on this machine."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass

from fttt.judge.problem import Problem, Submission
from fttt.judge.sandbox import Sandbox

__all__ = ["JudgeRate", "measure"]

_PROBLEM = Problem(
    prompt='def add(a, b):\n    """The sum of a and b."""\n',
    test="def check(candidate):\n"
    "    for a in range(20):\n"
    "        assert candidate(a, 3) == a + 3\n",
    entry_point="add",
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


async def measure(sandbox: Sandbox, clients: int, seconds: float) -> JudgeRate:
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
            judgement = await sandbox.judge(Submission(_PROBLEM, body))
            took.append((time.perf_counter() - start) * 1e3)
            wrong += judgement.passed != right
            number += 1

    await asyncio.gather(*map(client, range(clients)))
    elapsed = time.perf_counter() - begin
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
    return JudgeRate(clients, len(took), len(took) / elapsed, cuts[49], cuts[98], wrong)
