"""A corpus of honest and hostile submissions, each with the verdict that it must get."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fttt.judge import sandbox as module
from fttt.judge.confinement import Limits
from fttt.judge.problem import Judgement, Problem, Submission
from fttt.judge.sandbox import Sandbox

CORPUS = tomllib.loads(Path(__file__).with_name("corpus.toml").read_text())
SUBMISSIONS: list[dict[str, Any]] = CORPUS["submission"]
# Small, so that those who run out of something do it soon.
LIMITS = Limits(
    wall_seconds=3, waiting_seconds=200, cpu_seconds=1, slowest=1, memory_bytes=256 << 20
)


def submission(entry: dict[str, Any]) -> Submission:
    return Submission(Problem.from_json(CORPUS["problems"][entry["problem"]]), entry["code"])


def judge_all(entries: list[dict[str, Any]]) -> dict[str, Judgement]:
    """All of them judged side by side, so that each has hostile neighbours."""

    async def judge() -> list[Judgement]:
        sandbox = Sandbox(workers=3, limits=LIMITS)
        try:
            return await asyncio.gather(*(sandbox.judge(submission(s)) for s in entries))
        finally:
            await sandbox.close()

    results = asyncio.run(judge())
    return {entry["name"]: result for entry, result in zip(entries, results, strict=True)}


@pytest.fixture(scope="module")
def judgements() -> dict[str, Judgement]:
    return judge_all(SUBMISSIONS)


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({entry["name"] for entry in SUBMISSIONS}) == len(SUBMISSIONS) >= 100


@pytest.mark.parametrize("entry", SUBMISSIONS, ids=lambda entry: entry["name"])
def test_each_gets_its_verdict(entry: dict[str, Any], judgements: dict[str, Judgement]) -> None:
    judgement = judgements[entry["name"]]
    assert judgement.status in entry["expect"], judgement
    assert judgement.seconds < LIMITS.wall_seconds + LIMITS.waiting_seconds + 30


COUNTED = [entry for entry in SUBMISSIONS if entry.get("counted")]


def test_where_there_are_no_control_groups_the_limits_hold_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.Groups, "make", lambda *_: module.Groups.without("not in this test"))
    for name, judgement in judge_all(COUNTED).items():
        (entry,) = (entry for entry in COUNTED if entry["name"] == name)
        assert judgement.status in entry["expect"], f"{name}: {judgement}"


FORGERS = [entry for entry in SUBMISSIONS if entry.get("fools_exec")]


@pytest.mark.parametrize("entry", FORGERS, ids=lambda entry: entry["name"])
def test_the_forgers_do_fool_a_judge_in_one_process(entry: dict[str, Any]) -> None:
    """Otherwise the corpus would show nothing."""
    wanted = submission(entry)
    problem = wanted.problem
    program = f"{problem.prompt}{wanted.completion}\n{problem.test}\ncheck({problem.entry_point})"
    run = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; exec(sys.stdin.read(), {}); print('PASSED')"],
        input=program,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.endswith("PASSED\n"), run.stderr


ODD = {
    "empty": "",
    "a NUL": "def add(a, b):\n    return a + b\0",
    "a lone surrogate": "def add(a, b):\n    return '\ud800' and a + b",
    "ten megabytes": "x = 1\n" * (10_000_000 // 6),
    "a million brackets": "(" * 900_000,
    "ten thousand blocks": "".join(" " * i + "if 1:\n" for i in range(200)),
    "a very long line": "def add(a, b): return a + b" + " + 0" * 200_000,
    "only a byte order mark": "\ufeff",
    "latin-1 declared": "# -*- coding: latin-1 -*-\ndef add(a, b):\n    return 'é' and a - b",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_hardly_a_program_fails_with_a_reason(name: str) -> None:
    async def judge() -> Judgement:
        sandbox = Sandbox(workers=1, limits=LIMITS)
        try:
            problem = Problem("", "def check(f):\n    assert f(1, 2) == 3\n", "add")
            judgement = await sandbox.judge(Submission(problem, ODD[name]))
            after = await sandbox.judge(Submission(problem, "def add(a, b): return a + b"))
            assert after.passed, "the sandbox still works"
            return judgement
        finally:
            await sandbox.close()

    judgement = asyncio.run(judge())
    assert judgement.status in ("failed", "memory", "timeout")
    assert judgement.detail
