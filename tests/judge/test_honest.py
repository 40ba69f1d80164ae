"""What honest programs return, are handed and are, each with wrong ones beside it."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fttt.judge.problem import Judgement, Problem, Submission
from fttt.judge.sandbox import Sandbox

CASES: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("honest.toml").read_text())[
    "case"
]


def problem(case: dict[str, Any]) -> Problem:
    return Problem(case.get("prompt", ""), case["test"], case["entry_point"])


@pytest.fixture(scope="module")
def judgements() -> dict[str, list[Judgement]]:
    """Each case's right program first, then its wrong ones; all judged side by side."""

    async def judge_all() -> list[list[Judgement]]:
        sandbox = Sandbox(workers=3)

        async def one(case: dict[str, Any]) -> list[Judgement]:
            programs = [case["right"], *case["wrong"]]
            submissions = [Submission(problem(case), program) for program in programs]
            return await asyncio.gather(*map(sandbox.judge, submissions))

        try:
            return await asyncio.gather(*map(one, CASES))
        finally:
            await sandbox.close()

    found = asyncio.run(judge_all())
    return {case["name"]: each for case, each in zip(CASES, found, strict=True)}


def test_there_are_many_and_their_names_are_unique() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) >= 60
    assert all(case["wrong"] for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_right_program_passes_and_the_wrong_ones_fail(
    case: dict[str, Any], judgements: dict[str, list[Judgement]]
) -> None:
    right, *wrong = judgements[case["name"]]
    assert right.passed, right
    assert right.tests_passed == right.tests_total > 0
    for judgement in wrong:
        assert judgement.status == "failed", judgement
        assert judgement.tests_passed < judgement.tests_total
