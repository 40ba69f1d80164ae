"""Towards the base model that has read the feedback, and towards what sets it apart from praise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.engine.request import ScoreRequest
from fttt.methods.self_distill import SelfDistill, SelfDistillSettings
from fttt.testing import play, tiny_tokenizer
from fttt.types import Completion, user

pytestmark = pytest.mark.usefixtures("one_thread")

FEEDBACK, PRAISE = "{feedback} Again.", "Well done. Again."
TOLD, PRAISED = user("Your answer is incorrect. Again."), user(PRAISE)


def wrong(_: str) -> bool:
    return False


def distill(**settings: Any) -> SelfDistill:
    values = {"dropout": 0.0, "lr": 1e-3, "feedback": FEEDBACK, "praise": PRAISE, **settings}
    return SelfDistill(SelfDistillSettings.model_validate(values))


def against(teacher: torch.Tensor, other: torch.Tensor | None, logs: torch.Tensor, k: int) -> float:
    """The loss against the top k of one prediction less another's, place by place."""
    total = 0.0
    for place in range(len(logs)):
        weights: dict[int, float] = {}
        tail = 0.0
        for rows, sign in ((teacher, 1), (other, -1)):
            if rows is None:
                continue
            top, ids = rows[place].exp().topk(k)
            tail += sign * (1 - float(top.sum()))
            for token, p in zip(ids.tolist(), top.tolist(), strict=True):
                weights[token] = weights.get(token, 0.0) + sign * p
        named = torch.tensor(list(weights))
        total -= sum(w * float(logs[place, token]) for token, w in weights.items())
        total -= tail * float((1 - logs[place, named].exp().sum()).log())
    return total / len(logs)


@pytest.mark.parametrize("form", ["feedback", "contrast"])
@pytest.mark.parametrize("level", ["token", "top-k"])
def test_the_loss_by_its_formula(
    form: str, level: str, play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    method = distill(form=form, level=level, teacher_tokens=6)
    run, recorded = play_on_tiny(method, tmp_path / "run", wrong, trials=3)
    for trial in (t for t in run.trials if t.trial == 0):
        attempt: Completion = run.histories[trial.question_id].generations[0].completion
        ids = torch.tensor(trial.token_ids)[:, None]

        def logs(*turns: Any, question: str = trial.question_id) -> torch.Tensor:
            found: torch.Tensor = reference.logs(question, turns, trial.token_ids)  # noqa: B023
            return found

        student, teacher = logs(), logs(attempt, TOLD)
        other = logs(attempt, PRAISED) if form == "contrast" else None
        if level == "top-k":
            wanted = against(teacher, other, student, 6)
        else:
            gap = (teacher - (student if other is None else other)).gather(1, ids)
            wanted = float(-(gap * student.gather(1, ids)).mean())
        assert trial.loss == pytest.approx(wanted, rel=2e-3, abs=1e-4)
    assert len(recorded.steps) == 4, "two questions, two attempts each to learn from"
    assert len({t.loss for t in run.trials if t.trial < 2}) == 4


def test_the_teacher_reads_attempt_and_feedback_and_the_student_does_not() -> None:
    scene = play(distill(), ["1", "7"], trials=4)
    one, two = map(read, scene.engine.scorings)
    turn = "1<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert one.endswith(turn.format("Your answer 1 is incorrect. Again."))
    assert two.endswith(turn.format("Well done. Again."))
    assert all(score.adapter is None for score in scene.engine.scorings)
    (lesson,) = scene.engine.trainings[0].lessons
    assert lesson.targets[0].after == len(scene.engine.generations[0].prompt_ids)
    assert len(scene.engine.generations) == 2, "nothing is written for the teacher"


def read(score: ScoreRequest) -> str:
    """What comes before the scored tokens, as text."""
    return str(tiny_tokenizer().decode(score.context))


def test_a_verdict_of_a_coin_swaps_feedback_and_praise() -> None:
    seen = set()
    for seed in range(8):
        scene = play(distill(), lambda *_: "1", trials=2, seed=seed, ablate="random-verdict")
        assert [t.verdict for t in scene.trials] == ["incorrect"] * 2, "the record stays true"
        seen.add("Well done" in read(scene.engine.scorings[0]))
    assert seen == {True, False}


def test_rows_hold_attempt_feedback_and_attempt() -> None:
    assert distill().conversation(50) == (50, FEEDBACK, 300, 50)
    assert distill(feedback="No.").conversation(50) == (50, PRAISE, 50)
