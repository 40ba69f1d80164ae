"""A run as a log that Inspect itself reads; what needs no Inspect is in the command's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.report.inspect_log import write_inspect_log
from fttt.store import Run, RunWriter
from fttt.types import Question, Trial, Usage

logs: Any = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed (325 MB)")

QUESTIONS = [Question("q/0", "What is 1 + 1?", "2"), Question("q/1", "Write f.", {"test": "f()"})]


def trial(question: str, number: int, verdict: Any, **more: Any) -> Trial:
    usage = Usage(5, 3, 2, 1, 1, 0.5)
    return Trial(
        question, number, number, f"answer {number}", (4,), "stop", None, verdict, "why", 0.5,
        usage, **more,
    )  # fmt: skip


def write_run(folder: Path, *, finished: bool) -> Run:
    config = {
        "method": "fttt", "task": "jsonl", "model": "tiny", "seed": 7, "budget": {"trials": 3},
        "sampling": {"temperature": 0.6, "max_new_tokens": 9},
    }  # fmt: skip
    writer = RunWriter.create(folder, config=config, environment={}, questions=QUESTIONS)
    writer.trial(trial("q/0", 0, "unanswered", thought="Hm.", thought_tokens=1))
    writer.trial(trial("q/0", 1, "correct"))
    writer.trial(trial("q/1", 0, "incorrect", score=0.25, tests_passed=1, tests_total=4))
    if finished:
        for question in QUESTIONS:
            writer.done(question.id)
        writer.finish()
    writer.close()
    return Run.open(folder)


@pytest.mark.parametrize("ending", [".eval", ".json"])
def test_inspect_reads_what_was_written(tmp_path: Path, ending: str) -> None:
    run = write_run(tmp_path / "run", finished=True)
    out = tmp_path / "logs" / f"run{ending}"
    assert write_inspect_log(run, out) == 3
    log = logs.read_eval_log(str(out))
    assert (log.status, log.eval.task, log.eval.model, log.eval.solver) == (
        "success", "jsonl", "tiny", "fttt",
    )  # fmt: skip
    assert (log.eval.config.epochs, log.eval.model_generate_config.seed) == (3, 7)
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    found = {(sample.id, sample.epoch): sample for sample in log.samples}
    assert {place: sample.scores["verdict"].value for place, sample in found.items()} == {
        ("q/0", 1): "N",
        ("q/0", 2): "C",
        ("q/1", 1): "I",
    }
    first, code = found["q/0", 1], found["q/1", 1]
    assert (first.input, first.target) == ("What is 1 + 1?", "2")
    assert first.output.completion == "answer 0"  # its thought apart
    assert first.output.usage.reasoning_tokens == 1
    assert first.messages[1].content[0].reasoning == "Hm."
    assert code.scores["score"].value == 0.25
    assert code.target == '{"test": "f()"}'
    assert code.output.usage.output_tokens == 3


def test_an_unfinished_run_is_one_that_has_started(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    write_inspect_log(run, tmp_path / "log.eval")
    assert logs.read_eval_log(str(tmp_path / "log.eval")).status == "started"
    with pytest.raises(UsageError, match=r"does not end as a log .* ends with \.eval or \.json"):
        write_inspect_log(run, tmp_path / "log.txt")
