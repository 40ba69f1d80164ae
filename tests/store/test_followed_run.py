"""A run folder that is read while it grows: it says what reading the whole would say."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.files import held_files
from fttt.store import FollowedRun, GenerationEvent, Run, RunWriter
from fttt.types import Completion, Outcome, Question, Trial, Usage, Verdict

QUESTIONS = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1)) for n in range(4)]


def create(path: Path, decided_by: str = "first") -> RunWriter:
    config = {
        "method": "fttt", "task": "toy", "model": "tiny", "seed": 1,
        "budget": {"trials": 3, "unanswered": "count"},
    }  # fmt: skip
    environment = {"decided_by": decided_by}
    return RunWriter.create(path, config=config, environment=environment, questions=QUESTIONS)


def write(writer: RunWriter, question: str, number: int, outcome: Outcome = "incorrect") -> None:
    """A trial, a critique after it and a verdict with feedback before."""
    text = f"Attempt {number} \ud800"
    answer = Completion(text, (1, 2), "stop", 2 * number, Usage(9, 2, generations=1))
    writer.generation(GenerationEvent(question, number, answer))
    writer.verdict(question, 2 * number, Verdict(outcome, "7", "no", 0.1, f"hint {number}"))
    critique = Completion(f"critique {number}", (3,), "stop", 2 * number + 1)
    writer.generation(GenerationEvent(question, None, critique))
    writer.trial(
        Trial(
            question, number, 2 * number, text, (1, 2), "stop", "7", outcome, "no", 0.5,
            Usage(9, 3, 1, 2, 1, 0.2), score=number / 2,
        )
    )  # fmt: skip


def read_all(run: FollowedRun, most: int = 1 << 20) -> int:
    """Read to the end; the number of reads that it took."""
    reads = 0
    while run.look(held_files()):
        run.read(most)
        reads += 1
    return reads


@pytest.mark.parametrize("decided_by", ["first", "vote"])
def test_what_is_followed_equals_what_is_read_whole(tmp_path: Path, decided_by: str) -> None:
    writer = create(tmp_path / "run", decided_by)
    run = FollowedRun(tmp_path / "run")
    read_all(run)
    assert [question.id for question in run.questions] == ["q0", "q1", "q2", "q3"]
    for n, question in enumerate(QUESTIONS):
        for number in (1, 0, 2)[: n + 1]:  # out of order, as they may end
            write(writer, question.id, number, "correct" if number == n == 2 else "incorrect")
            read_all(run)
        if n < 3:
            writer.done(question.id)
    read_all(run)
    writer.close()
    whole = Run.open(tmp_path / "run")
    assert (run.trials, run.done, run.tokens) == (9, 3, 27)
    assert run.solved == whole.summarize()["solved"]
    partial = run.partial(["q0", "q2", "q3"])
    assert partial.owed == ("q3",)
    bare = [(t.question_id, t.trial, t.verdict, t.score, t.usage) for t in partial.trials]
    full = [t for t in whole.trials if t.question_id != "q1"]
    assert bare == [(t.question_id, t.trial, t.verdict, t.score, t.usage) for t in full]
    assert not any(t.completion or t.token_ids for t in partial.trials)


def test_texts_are_read_when_a_question_is_opened(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    for number in (0, 1):
        write(writer, "q1", number)
        write(writer, "q2", number)
    writer.close()
    run = FollowedRun(tmp_path / "run")
    assert read_all(run, most=300) > 3  # in slices, which change nothing
    texts = run.texts(1)
    assert texts.question == QUESTIONS[1]
    assert texts.trials == tuple(
        t for t in Run.open(tmp_path / "run").trials if t.question_id == "q1"
    )
    assert texts.critiques == ((1, "critique 0"), (3, "critique 1"))
    assert texts.feedback == {0: "hint 0", 2: "hint 1"}
    assert run.texts(3).trials == ()


def test_running_stopped_resumed_finished(tmp_path: Path) -> None:
    if held_files() is None:
        pytest.skip("needs /proc/locks")
    folder = tmp_path / "run"
    writer = create(folder)
    run = FollowedRun(folder)
    write(writer, "q0", 0)
    read_all(run)
    assert run.state == "running"
    writer.close()
    run.look(held_files())
    assert run.state == "stopped"
    assert run.seconds_left is None
    with (folder / "trials.jsonl").open("ab") as file:
        file.write(b'{"question_id": "torn')
    read_all(run)  # ends, although the line is not whole
    assert run.trials == 1
    writer = RunWriter(folder)
    for question in QUESTIONS:
        for number in range(3):
            if (question.id, number) != ("q0", 0):
                write(writer, question.id, number)
        writer.done(question.id)
    read_all(run)
    assert (run.state, run.trials, run.epoch) == ("running", 12, 0)
    writer.finish()
    run.look(held_files())
    assert run.state == "finished"
    assert run.summary == Run.open(folder).summary
    assert run.broken == ""


def test_where_locks_do_not_tell_a_run_is_stopped_when_it_is_quiet(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    run = FollowedRun(tmp_path / "run")
    run.look(None)
    assert run.state == "running"
    for path in (tmp_path / "run").iterdir():
        os.utime(path, (time.time() - 1000,) * 2)
    run.look(None)
    assert run.state == "stopped"


def test_a_run_that_was_killed_before_is_stopped_at_once(tmp_path: Path) -> None:
    if held_files() is None or not os.major(tmp_path.stat().st_dev):
        pytest.skip("needs /proc/locks and a temporary folder on a disk")
    create(tmp_path / "run").close()
    run = FollowedRun(tmp_path / "run")
    run.look(held_files())
    assert run.state == "stopped"


def test_time_left_is_what_the_budget_still_grants(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    run = FollowedRun(tmp_path / "run")
    write(writer, "q0", 0, "correct")
    writer.done("q0")
    write(writer, "q1", 0)
    read_all(run)
    run.clock = 10.0
    assert run.seconds_left == pytest.approx((2 + 3 + 3) * 10 / 2)
    assert run.tokens_per_second == pytest.approx(6 / 10)
    writer.close()


def test_another_run_in_the_same_folder_is_read_from_its_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writer = create(folder)
    write(writer, "q0", 0)
    writer.close()
    run = FollowedRun(folder)
    read_all(run)
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="no run folder"):
        run.look(None)
    create(folder).close()
    read_all(run)
    assert run.epoch > 0
    assert (run.trials, len(run.questions)) == (0, 4)


def test_foreign_lines_are_passed_over_and_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writer = create(folder)
    write(writer, "q0", 0)
    writer.close()
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"question_id": "nobody"}\n{"question_id": "q0"}\n')
    run = FollowedRun(folder)
    read_all(run)
    assert run.trials == 1
    assert "foreign line" in run.broken


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        FollowedRun(tmp_path)
