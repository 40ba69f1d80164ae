"""The benchmarks' own solutions pass in the sandbox as they do under a plain ``exec``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fttt.tasks.humaneval import HumanEvalTask
from fttt.tasks.mbpp import MBPPTask
from fttt.tasks.task import TaskOptions
from fttt.types import Question

DATA = Path(
    os.environ.get("FTTT_DATASETS", Path(__file__).parents[2].parent / "shared" / "datasets")
)
pytestmark = pytest.mark.skipif(
    not (DATA / "mbpp").is_dir(), reason="the benchmarks' folder is not there (FTTT_DATASETS)"
)


def failing(task: HumanEvalTask | MBPPTask, questions: list[Question]) -> dict[str, str]:
    """The questions whose own solution does not pass, and why."""

    async def judge() -> dict[str, str]:
        verifier = task.verifier()
        try:
            verdicts = await asyncio.gather(
                *(verifier.verify(question, question.solution or "") for question in questions)
            )
        finally:
            await verifier.close()
        pairs = zip(questions, verdicts, strict=True)
        return {question.id: verdict.detail for question, verdict in pairs if not verdict.correct}

    return asyncio.run(judge())


def test_all_of_humaneval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OJ_API", raising=False)
    task = HumanEvalTask()
    questions = task.load(TaskOptions(data_dir=DATA))
    assert len(questions) == 164
    assert failing(task, questions) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in the benchmark's own programs
def test_all_of_mbpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OJ_API", raising=False)
    task = MBPPTask()
    questions = [
        question
        for split in task.splits
        for question in task.load(TaskOptions(data_dir=DATA, split=split))
    ]
    assert len(questions) == 974
    assert failing(task, questions) == {}
