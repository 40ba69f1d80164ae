"""What a model may be shown of a verdict, over all tasks and their verifiers."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fttt.tasks import Task, TaskOptions, get_task
from fttt.tasks.gold_check import wrong_answers, wrong_programs
from fttt.tasks.task import fenced
from fttt.types import Question, Verdict
from fttt.verifiers.verifier import feedback_on

EACH = 25


def judged(task: Task, cases: Sequence[tuple[Question, str]]) -> list[Verdict]:
    async def judge() -> list[Verdict]:
        verifier = task.verifier()
        try:
            return await asyncio.gather(*(verifier.verify(q, text) for q, text in cases))
        finally:
            await verifier.close()

    return asyncio.run(judge())


def check_answers(task: Task, questions: Sequence[Question]) -> None:
    """The same wrong answer gets the same feedback, whatever the gold answer is."""
    cases, other_golds = [], []
    for question in questions:
        for answer in wrong_answers(str(question.gold))[:2]:
            for text in (f"The final answer is \\boxed{{{answer}}}.", f"The answer is {answer}"):
                cases.append((question, text))
                other_golds.append((replace(question, gold=f"{answer}00017"), text))
        cases.append((question, "I do not know."))
        other_golds.append((replace(question, gold="17"), "I do not know."))
    verdicts, others = judged(task, cases), judged(task, other_golds)
    for (question, text), verdict, other in zip(cases, verdicts, others, strict=True):
        assert verdict.feedback, (question.id, text)
        if verdict.outcome == other.outcome:
            assert verdict.feedback == other.feedback, (question.id, text)
    assert (
        sum(a.outcome == b.outcome for a, b in zip(verdicts, others, strict=True)) > len(cases) / 2
    )


def test_arithmetic() -> None:
    task = get_task("arithmetic")
    check_answers(task, task.load(TaskOptions())[:EACH])


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
def test_numbers_and_mathematics(name: str, datasets: Path) -> None:
    task = get_task(name)
    check_answers(task, task.load(TaskOptions(data_dir=datasets))[:EACH])


def test_your_own_questions(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(1111, 1121)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for verifier in ("number", "math", "math-strict"):
        task = get_task("jsonl", verifier=verifier)
        check_answers(task, task.load(TaskOptions(data_dir=path)))
    for verifier in ("regex", "command:echo $FTTT_GOLD; false"):
        task = get_task("jsonl", verifier=verifier)
        questions = task.load(TaskOptions(data_dir=path))
        for verdict in judged(task, [(question, "I say 7") for question in questions]):
            assert verdict.detail
            assert verdict.feedback == "Your answer is incorrect."


def hidden_tests(question: Question) -> list[str]:
    """The values and lines of tests that a prompt does not show."""
    assert isinstance(question.gold, Mapping)
    tree = ast.parse(str(question.gold["test"]))
    parts = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    parts += [
        ast.unparse(node)
        for test in ast.walk(tree) if isinstance(test, ast.Assert)
        for node in ast.walk(test) if isinstance(node, ast.Constant | ast.List | ast.Tuple)
    ]  # fmt: skip
    shown = re.sub(r"\s|[\"']", "", question.prompt)
    return [p for p in parts if len(p) > 4 and re.sub(r"\s|[\"']", "", p) not in shown]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in the benchmark's own programs
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_programs(name: str, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OJ_API", raising=False)
    task = get_task(name)
    questions = task.load(TaskOptions(data_dir=datasets))
    if name == "mbpp":  # few have hidden tests at all
        questions = [q for q in questions if q.gold["test"] != q.gold["visible"]]  # type: ignore
    cases = []
    for question in questions[::13][:6]:
        program = str(question.solution).removeprefix("```python\n").removesuffix("\n```")
        thief = re.sub(r"^def (\w+)\(.*$", r"def \1(*given, **named):\n    raise KeyError(given)",
                       program, flags=re.MULTILINE)  # fmt: skip
        cases += [(question, fenced(code)) for code in (*wrong_programs(program), thief, "x = (")]
        cases += [(question, str(question.solution)), (question, "I do not know.")]
    for (question, text), verdict in zip(cases, judged(task, cases), strict=True):
        assert verdict.feedback
        for hidden in hidden_tests(question):
            assert hidden not in verdict.feedback, (question.id, text)
    assert sum(verdict.correct for verdict in judged(task, cases[4::6])) == len(cases) // 6


def test_a_long_answer_is_cut() -> None:
    assert len(feedback_on("incorrect", "7" * 10_000)) < 300
