"""Run folders: what is written comes back; broken and foreign ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fttt.errors import RunError, UsageError
from fttt.store import GenerationEvent, Run, RunWriter, fingerprint
from fttt.types import Completion, Question, Trial, Usage, Verdict

CONFIG = {
    "method": "fttt",
    "model": "tiny",
    "task": "toy",
    "seed": 7,
    "budget": {"trials": 4, "unanswered": "count"},
}
QUESTIONS = (Question("q/0", "One?\nTwo?", "1"), Question("q/1", "Zwölf?", {"test": "x"}))


def create(path: Path) -> RunWriter:
    return RunWriter.create(
        path, config=CONFIG, environment={"decided_by": "first"}, questions=QUESTIONS
    )


def trial(question: str, number: int, verdict: str = "incorrect", **changes: object) -> Trial:
    fields: dict[str, object] = {
        "question_id": question,
        "trial": number,
        "generation": number,
        "completion": f"answer {number}",
        "token_ids": (1, 2, 3),
        "finish_reason": "stop",
        "extracted": str(number),
        "verdict": verdict,
        "detail": "",
        "loss": 0.5,
        "usage": Usage(4, 3, 2, 1, 1, 0.25),
    }
    return Trial(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    usage = Usage(prompt_tokens=9, generated_tokens=2, generations=1)
    completion = Completion("text", (5, 6), "stop", 0, usage, thought="Hm.", thought_tokens=1)
    verdict = Verdict("incorrect", "5", "expected 6", 0.5, "5 is incorrect", 0.25, 1, 4)
    writer.generation(GenerationEvent("q/0", 0, completion))
    writer.verdict("q/0", 0, verdict)
    ended = trial("q/0", 0, completion="text", token_ids=(5, 6), failed=True)
    ended = replace(ended, thought="Hm.", thought_tokens=1)
    writer.trial(ended)
    writer.trial(trial("q/1", 0, "correct"))
    writer.done("q/1")
    writer.close()

    run = Run.open(tmp_path / "run")
    assert (run.method, run.model, run.task, run.seed) == ("fttt", "tiny", "toy", 7)
    assert run.trial_budget == 4
    assert run.questions == QUESTIONS
    assert run.trials == (ended, trial("q/1", 0, "correct"))
    assert [record.solved for record in run.records] == [False, True]
    assert run.records[0].usage == Usage(4, 3, 2, 1, 1, 0.25)
    history = run.histories["q/0"]
    assert history.generations[0].completion == completion
    assert history.verdicts[0] == verdict
    assert not history.done
    assert run.histories["q/1"].done
    assert not run.finished


@pytest.mark.parametrize(
    ("detail", "failed"),
    [
        ("the judge could not judge it: the tests define no check", True),
        ("the verifier raised ValueError: no", True),
        ("the regular expression 'a' took longer than its limit of 5 s", True),
        ("failed: AssertionError", False),
        ("timeout: the submission took too long", False),
    ],
)
def test_lines_without_the_field_say_by_their_words_whether_the_verifier_failed(
    tmp_path: Path, detail: str, failed: bool
) -> None:
    writer = create(tmp_path / "run")
    writer.trial(trial("q/0", 0, detail=detail))
    writer.close()
    assert [t.failed for t in Run.open(tmp_path / "run").trials] == [False]
    path = tmp_path / "run" / "trials.jsonl"
    line = json.loads(path.read_text())
    del line["failed"]
    path.write_text(json.dumps(line) + "\n")
    assert [t.failed for t in Run.open(tmp_path / "run").trials] == [failed]


def test_an_unknown_verdict_is_one_sentence(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.trial(trial("q/0", 0, "maybe"))
    writer.close()
    with pytest.raises(
        UsageError, match=r"line 1 of trials.jsonl is no trial .the verdict 'maybe' is none"
    ):
        _ = Run.open(tmp_path / "run").trials


def answer(question: str, number: int, trial: int | None = 0) -> GenerationEvent:
    usage = Usage(prompt_tokens=4, generated_tokens=3, generations=1)
    text = f"answer {number}"
    return GenerationEvent(question, trial, Completion(text, (1, 2, 3), "stop", number, usage))


def test_what_an_answer_says_is_kept_once(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.generation(answer("q/0", 0))
    writer.generation(answer("q/0", 1, None))  # a critique, which is no trial
    writer.verdict("q/0", 0, Verdict("incorrect"))
    kept = Run.open(tmp_path / "run").histories  # a killed run has all of it
    assert kept["q/0"].generations == {0: answer("q/0", 0), 1: answer("q/0", 1, None)}
    writer.trial(trial("q/0", 0))
    writer.done("q/0")
    run = writer.finish()
    assert run.histories["q/0"].generations == kept["q/0"].generations
    assert not (run.path / "pending.jsonl").exists()
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [event.get("text") for event in events] == [None, "answer 1", None, None]
    assert ["token_ids" in event for event in events] == [False, True, False, False]


def test_an_answer_without_a_trial_stays_pending(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.generation(answer("q/0", 0))
    writer.close()
    writer = RunWriter(tmp_path / "run")
    assert writer.finish().histories["q/0"].generations == {0: answer("q/0", 0)}


def test_a_finished_runs_trials_are_those_of_its_file(tmp_path: Path) -> None:
    first = create(tmp_path / "run")
    first.trial(trial("q/1", 0))
    first.close()
    writer = RunWriter(tmp_path / "run")
    usage = Usage(4, 3, 2, 1, 1, 1 / 3)
    said = Completion('so "5"\u2028\ud800', (1, 2, 3), "length", 0)
    writer.generation(GenerationEvent("q/0", 0, said))
    writer.generation(GenerationEvent("q/0", 1, replace(said, generation=1)))
    for number, text in enumerate((said.text, "another")):  # the second is not what was generated
        ended = trial("q/0", number, completion=text, token_ids=said.token_ids, usage=usage)
        writer.trial(replace(ended, finish_reason="length", divergence=0.1))
    run = writer.finish()
    again = Run.open(tmp_path / "run")
    assert [one.completion for one in run.trials] == [said.text, "another", "answer 0"]
    assert run.trials == again.trials
    assert run.records == again.records
    assert run.summarize() == again.summarize()


def test_an_answer_that_a_power_cut_took_was_never_made(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    for number in range(2):
        writer.generation(answer("q/0", number, number))
        writer.verdict("q/0", number, Verdict("incorrect"))
    writer.trial(trial("q/0", 0))
    writer.trial(trial("q/0", 1))
    writer.done("q/0")
    writer.close()
    (tmp_path / "run" / "pending.jsonl").unlink()
    lines = (tmp_path / "run" / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "trials.jsonl").write_text(lines[0])
    history = Run.open(tmp_path / "run").histories["q/0"]
    assert list(history.generations) == list(history.verdicts) == [0]
    assert not history.done
    writer = RunWriter(tmp_path / "run")
    writer.generation(answer("q/0", 1, 1))
    writer.verdict("q/0", 1, Verdict("correct"))
    assert Run.open(tmp_path / "run").histories["q/0"].verdicts[1] == Verdict("correct")
    writer.close()


def test_the_lines_have_the_contracts_fields(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.trial(trial("q/0", 0))
    writer.close()
    line = json.loads((tmp_path / "run" / "trials.jsonl").read_text())
    assert list(line) == [
        "question_id", "trial", "generation", "completion", "token_ids", "finish_reason",
        "extracted", "verdict", "score", "tests_passed", "tests_total", "detail", "failed",
            "loss", "usage",
    ]  # fmt: skip
    assert line["usage"] == {
        "prompt_tokens": 4,
        "generated_tokens": 3,
        "trained_tokens": 2,
        "generations": 1,
        "verifier_calls": 1,
        "seconds": 0.25,
        "scored_tokens": 0,
        "verifier_tokens": 0,
    }
    question = json.loads((tmp_path / "run" / "questions.jsonl").read_text().splitlines()[0])
    assert question["id"] == "q/0"
    assert question["sha256"] == fingerprint(QUESTIONS[0])


def test_scores_are_kept_and_summed_up(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    made = (
        trial("q/0", 0, score=0.25, tests_passed=1, tests_total=4),
        trial("q/0", 1, score=0.75, tests_passed=3, tests_total=4),
        trial("q/0", 2, "unanswered"),
        trial("q/1", 0, "correct", score=1.0, tests_passed=2, tests_total=2),
    )
    for each in made:
        writer.trial(each)
    run = writer.finish()
    assert run.trials == made
    assert [record.score for record in run.records] == [0.75, 1.0]
    assert run.summary["score"] == 0.875


def test_a_folder_of_version_0_1_is_read(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.generation(GenerationEvent("q/0", 0, Completion("text", (5,), "stop", 0)))
    writer.verdict("q/0", 0, Verdict("incorrect", "5", "expected 6", 0.5))
    writer.trial(trial("q/0", 0))
    writer.close()
    for name in ("events.jsonl", "trials.jsonl"):
        path = tmp_path / "run" / name
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for field in ("score", "tests_passed", "tests_total", "feedback"):
                line.pop(field, None)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    RunWriter(tmp_path / "run").close()
    run = Run.open(tmp_path / "run")
    assert run.trials == (trial("q/0", 0),)
    assert run.histories["q/0"].verdicts[0] == Verdict("incorrect", "5", "expected 6", 0.5)
    assert "score" not in run.summary


def test_fingerprints_tell_prompts_and_golds_apart() -> None:
    base = Question("a", "p", "g")
    assert fingerprint(base) == fingerprint(Question("b", "p", "g", "solution"))
    assert fingerprint(base) != fingerprint(Question("a", "p2", "g"))
    assert fingerprint(base) != fingerprint(Question("a", "p", "g2"))
    problem = {"prompt": "p", "test": "t", "entry_point": "f"}
    assert fingerprint(Question("a", "p", problem)) == fingerprint(
        Question("a", "p", {**problem, "visible": "t"})
    )
    assert fingerprint(Question("a", "p", problem)) != fingerprint(
        Question("a", "p", {**problem, "test": "u"})
    )


def test_finish_writes_the_summary(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.trial(trial("q/0", 0, "unanswered"))
    writer.trial(trial("q/0", 1, "correct"))
    writer.trial(trial("q/1", 0))
    run = writer.finish()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert run.finished
    assert run.summary == summary
    assert summary["questions"] == 2
    assert summary["solved"] == 1
    assert summary["accuracy"] == 0.5
    assert summary["ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert summary["accuracy_at"] == {"1": 0.0, "2": 0.5, "4": 0.5}
    assert summary["trials_total"] == 3
    assert summary["trials_mean"] == 1.5
    assert summary["unanswered"] == 1
    assert summary["usage"]["generated_tokens"] == 9
    assert summary["method"] == "fttt"


def test_a_second_process_reads_the_history_and_cuts_torn_lines(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    writer.trial(trial("q/0", 0))
    writer.trial(trial("q/0", 1))
    writer.done("q/0")
    writer.close()
    path = tmp_path / "run" / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert Run.open(tmp_path / "run").trials == (trial("q/0", 0),)
    again = RunWriter(tmp_path / "run")
    assert again.written("q/0") == {0}
    assert again.history("q/0").done
    assert not again.history("q/1").done
    again.trial(trial("q/0", 1))
    again.close()
    assert Run.open(tmp_path / "run").trials == (trial("q/0", 0), trial("q/0", 1))


def test_trials_are_ordered_by_question_then_number(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    for question, number in [("q/1", 1), ("q/1", 0), ("q/0", 0)]:
        writer.trial(trial(question, number))
    writer.close()
    found = [(t.question_id, t.trial) for t in Run.open(tmp_path / "run").trials]
    assert found == [("q/0", 0), ("q/1", 0), ("q/1", 1)]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty; name another with --out\.$"):
        create(tmp_path)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        create(tmp_path / "other.txt")


def test_an_unwritable_place_is_a_run_error() -> None:
    with pytest.raises(RunError, match="Cannot write"):
        create(Path("/proc/nowhere/run"))


def test_missing_foreign_and_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        Run.open(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"holds no config\.toml"):
        Run.open(tmp_path)
    create(tmp_path / "run").close()
    (tmp_path / "run" / "config.toml").write_text("method = ")
    with pytest.raises(UsageError, match="is broken"):
        Run.open(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text('method = "fttt"\n')
    with pytest.raises(UsageError, match="has no 'model'"):
        Run.open(tmp_path / "run")


def test_a_foreign_trial_is_named(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / "trials.jsonl").write_text('{"question_id": "other"}\n{"x": 1}\n')
    with pytest.raises(UsageError, match=r"line 1 of trials.jsonl is no trial"):
        _ = Run.open(tmp_path / "run").trials
    (tmp_path / "run" / "trials.jsonl").unlink()
    (tmp_path / "run" / "events.jsonl").write_text('{"event": "done"}\n{"x": 1}\n')
    with pytest.raises(UsageError, match=r"events.jsonl .* holds a foreign line"):
        _ = Run.open(tmp_path / "run").histories


def test_a_folder_that_could_not_be_opened_is_let_go(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    trials = tmp_path / "run" / "trials.jsonl"
    trials.write_text('{"question_id": "other"}\n{"x": 1}\n')
    with pytest.raises(UsageError, match="is no trial"):
        RunWriter(tmp_path / "run")
    trials.write_text("")
    RunWriter(tmp_path / "run").close()


def test_the_clock_continues_where_it_stopped(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    path = tmp_path / "run" / "events.jsonl"
    path.write_text('{"event":"done","question_id":"q/0","at":100.5}\n')
    assert Run.open(tmp_path / "run").seconds == 100.5
    writer = RunWriter(tmp_path / "run")
    assert writer.seconds >= 100.5
    writer.close()


def test_a_question_whose_trials_a_power_cut_took_is_owed_again(tmp_path: Path) -> None:
    writer = create(tmp_path / "run")
    for number in range(2):
        completion = Completion("text", (5,), "stop", number)
        writer.generation(GenerationEvent("q/0", number, completion))
        writer.verdict("q/0", number, Verdict("incorrect"))
    writer.trial(trial("q/0", 0))
    writer.done("q/0")
    writer.close()
    again = RunWriter(tmp_path / "run")
    assert not again.history("q/0").done
    again.trial(trial("q/0", 1))
    again.close()
    once_more = RunWriter(tmp_path / "run")
    assert once_more.history("q/0").done
    once_more.close()


def test_a_beginning_that_was_killed_leaves_the_place_free(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    for name in ("config.toml", "events.jsonl", "trials.jsonl"):
        (tmp_path / "run" / name).unlink()
    create(tmp_path / "run").close()
    with pytest.raises(UsageError, match="is not empty"):
        create(tmp_path / "run")
