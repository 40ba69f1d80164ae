"""Feedback that tells nothing: what a learner is shown, what stays on record, and what resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fttt.config import resolve
from fttt.errors import UsageError
from fttt.experiment.plan import plan_run, settle
from fttt.experiment.runner import Cell
from fttt.experiment.session import partner, random_verdict
from fttt.store import Run
from fttt.testing import FakeEngine, tiny_tokenizer
from fttt.types import Completion, Question, Verdict

LEARNERS = ("fttt", "unlearn", "policy", "self-distill", "memory", "revision", "self-refine")


def test_every_question_has_a_partner_of_its_own() -> None:
    for count in (2, 3, 7):
        questions = [Question(f"q{n}", "?") for n in range(count)]
        for key in range(-3, 9):
            found = [partner(question, questions, key).id for question in questions]
            assert sorted(found) == sorted(q.id for q in questions)
            assert all(one != q.id for one, q in zip(found, questions, strict=True))


def test_a_coin_has_two_sides_and_a_score_between_0_and_1() -> None:
    attempt = Completion("It is 3", (1,), "stop", 0)
    said = [
        random_verdict(attempt, Verdict("incorrect", "3", "gold 7", score=0.25), key).verdict
        for key in range(-(2**33), 2**33, 2**30 + 1)
    ]
    assert {v.outcome for v in said} == {"correct", "incorrect"}
    assert all(v.score is not None and 0 <= v.score < 1 for v in said)
    assert {v.feedback for v in said} == {f"Your answer 3 is {v.outcome}." for v in said}
    assert not any(v.detail for v in said)


def facts(run: Run) -> list[tuple[Any, ...]]:
    return [
        (t.question_id, t.trial, t.token_ids, t.verdict, t.loss, t.usage.generations)
        for t in run.trials
    ]


@pytest.mark.parametrize("method", LEARNERS)
def test_another_questions_attempt_is_learned_from_and_a_resumed_run_is_the_same(
    method: str, plan: Callable[..., Any], play_all: Callable[..., list[Run]], tmp_path: Path
) -> None:
    made = plan(method, trials=8, count=3, ablate="shuffle")
    engines: list[FakeEngine] = []
    (whole,) = play_all([Cell(made, tmp_path / "whole")], engines)
    wrong = [t for t in whole.trials if t.verdict != "correct"]
    own = {q.id: q.prompt for q in whole.questions}
    asked: dict[str, set[str]] = {}
    for question_id, history in whole.histories.items():
        foreign = [e.completion for e in history.generations.values() if e.trial is None]
        if method != "self-refine":
            assert all(n.generation in history.verdicts for n in foreign), "judged as theirs"
        asked[question_id] = {c.text for c in foreign}
    assert any(asked.values())
    for request in engines[0].trainings:
        for lesson in request.lessons:
            said = read(lesson)
            assert any(prompt in said for prompt in own.values())
    assert wrong

    torn = tmp_path / "torn"
    play_all([Cell(made, torn)])
    for name, keep in (("events.jsonl", 9), ("trials.jsonl", 2)):
        lines = (torn / name).read_text().splitlines(keepends=True)
        (torn / name).write_text("".join(lines[:keep]))
    (torn / "summary.json").unlink()
    (again,) = play_all([Cell(made, torn, resume=True)])
    assert facts(again) == facts(whole)


def test_a_learner_is_shown_what_is_put_there_and_the_record_stays_true(
    plan: Callable[..., Any], play_all: Callable[..., list[Run]], tmp_path: Path
) -> None:
    shown: dict[str, list[str]] = {}
    for ablate in (None, "constant", "random-verdict"):
        engines: list[FakeEngine] = []
        flags = {} if ablate is None else {"ablate": ablate}
        made = plan("fttt", trials=6, count=4, **flags)
        (run,) = play_all([Cell(made, tmp_path / str(ablate))], engines)
        assert {t.verdict for t in run.trials} <= {"correct", "incorrect", "unanswered"}
        judged = {q.id: q.gold for q in run.questions}
        for trial in run.trials:
            right = trial.extracted == str(judged[trial.question_id])
            assert (trial.verdict == "correct") == right
        shown[str(ablate)] = [
            str(tiny_tokenizer().decode(lesson.targets[0].token_ids))
            + ("I do not know." if "I do not know." in read(lesson) else "")
            for request in engines[0].trainings
            for lesson in request.lessons
        ]
    assert all("incorrect" in text for text in shown["None"])
    assert all("I do not know." in text for text in shown["constant"])
    assert {"is correct" in text for text in shown["random-verdict"]} == {True, False}


def read(lesson: Any) -> str:
    """A lesson's context, as text."""
    context = lesson.context if isinstance(lesson.context, tuple) else lesson.context.token_ids
    return str(tiny_tokenizer().decode(context))


def test_what_a_method_does_not_have_is_refused() -> None:
    def config(method: str, ablate: str, **flags: Any) -> Any:
        return resolve({"method": method, "ablate": ablate, **flags})

    with pytest.raises(
        UsageError, match=r"'best-of-n' cannot be run with --ablate shuffle; it has no"
    ):
        settle(config("best-of-n", "shuffle"))
    with pytest.raises(UsageError, match="its ablations are shuffle, constant"):
        settle(config("revision", "random-verdict"))
    with pytest.raises(UsageError, match="--ablate cannot be 'noise'"):
        settle(config("fttt", "noise"))
    with pytest.raises(UsageError, match="and the run asks one; ask two or more"):
        plan_run(settle(config("fttt", "shuffle", data={"limit": 1})))


def test_the_run_keeps_its_ablation(
    plan: Callable[..., Any], play_all: Callable[..., list[Run]], tmp_path: Path
) -> None:
    (run,) = play_all([Cell(plan("unlearn", ablate="constant"), tmp_path / "run")])
    assert run.config["ablate"] == "constant"
    assert "ablate" not in plan("unlearn").config.to_toml()
    assert json.loads((run.path / "summary.json").read_text())["method"] == "unlearn"
