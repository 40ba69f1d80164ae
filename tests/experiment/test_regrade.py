"""Verdicts again, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fttt.config import resolve
from fttt.errors import UsageError
from fttt.experiment.plan import plan_run, settle
from fttt.experiment.regrade import regrade
from fttt.store import GenerationEvent, Run, RunWriter
from fttt.types import Completion, Trial, Usage, Verdict


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two questions of two trials; the second trial of the first was judged wrongly."""
    plan = plan_run(settle(resolve({"method": "best-of-n", "data": {"limit": 2}})))
    writer = RunWriter.create(
        tmp_path / "run",
        config=plan.config.to_toml(),
        environment={"decided_by": "first"},
        questions=plan.questions,
    )
    for question in plan.questions:
        for number in range(2):
            right = question is plan.questions[0] and number == 1
            text = f"The final answer is {question.gold if right else 'unknown'}."
            completion = Completion(text, (1, 2), "stop", number, Usage(generations=1))
            writer.generation(GenerationEvent(question.id, number, completion))
            writer.verdict(question.id, number, Verdict("unanswered"))
            writer.trial(
                Trial(
                    question.id,
                    number,
                    number,
                    text,
                    (1, 2),
                    "stop",
                    None,
                    "unanswered",
                    "",
                    None,
                    Usage(generated_tokens=2, generations=1),
                )
            )
        writer.done(question.id)
    return writer.finish()


def test_verdicts_are_made_anew_and_the_old_folder_stays(run: Run, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    new, changes = regrade(run, tmp_path / "new")
    assert [(c.before.verdict, c.after.verdict, c.after.trial) for c in changes] == [
        ("unanswered", "correct", 1)
    ]
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    assert new.summary["solved"] == 1
    assert new.summary["usage"] == run.summary["usage"]
    assert new.questions == run.questions
    assert new.environment["regraded_from"] == str(run.path)
    history = new.histories[run.questions[0].id]
    assert history.done
    assert history.generations == run.histories[run.questions[0].id].generations
    assert [verdict.outcome for verdict in history.verdicts.values()] == ["unanswered", "correct"]


def test_an_answer_that_was_cut_off_stays_cut_off(run: Run, tmp_path: Path) -> None:
    file = run.path / "trials.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    gold = run.questions[0].gold
    for line in lines:
        line |= {"completion": f"The final answer is {gold}", "finish_reason": "length"}
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _, changes = regrade(Run.open(run.path), tmp_path / "new")
    assert changes == []


def test_grading_twice_changes_nothing(run: Run, tmp_path: Path) -> None:
    once, _ = regrade(run, tmp_path / "once")
    twice, changes = regrade(once, tmp_path / "twice")
    assert changes == []
    assert twice.trials == once.trials


def test_the_copy_of_an_unfinished_run_is_unfinished(run: Run, tmp_path: Path) -> None:
    (run.path / "summary.json").unlink()
    events = run.path / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    assert '"done"' in lines[-1]
    events.write_text("".join(lines[:-1]))
    new, changes = regrade(Run.open(run.path), tmp_path / "new")
    assert len(changes) == 1
    assert new.owed == (run.questions[1].id,)
    assert not new.finished
    assert new.summary["solved"] == 1


def test_the_copy_has_the_answers_whose_trials_had_not_ended(run: Run, tmp_path: Path) -> None:
    (run.path / "summary.json").unlink()
    question = run.questions[0].id
    writer = RunWriter(run.path)
    late = GenerationEvent(question, 2, Completion("4", (3,), "stop", 2, Usage(0, 1, 0, 1)))
    writer.generation(late)
    writer.close()
    events = run.path / "events.jsonl"
    done = {"event": "done", "question_id": question, "at": 100.0}
    events.write_text(events.read_text() + json.dumps(done) + "\n")
    new, _ = regrade(Run.open(run.path), tmp_path / "new")
    assert len(new.trials) == len(run.trials)
    assert new.histories[question].generations[2] == late
    assert 100 <= new.seconds < 110  # the clock is copied, too


def test_a_folder_that_is_taken_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("fttt.experiment.regrade._judge")  # and nothing is judged before
    with pytest.raises(UsageError, match="is not empty"):
        regrade(run, run.path)


def test_a_run_of_an_unknown_task_is_refused(run: Run, tmp_path: Path) -> None:
    path = run.path / "config.toml"
    path.write_text(path.read_text().replace('"arithmetic"', '"elsewhere"'))
    with pytest.raises(UsageError, match="no task 'elsewhere'"):
        regrade(Run.open(run.path), tmp_path / "new")
    assert json.loads((run.path / "summary.json").read_text())["solved"] == 0
