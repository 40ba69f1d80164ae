"""A new learner is one file: four of them, each against its mathematics and through a kill."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.config import resolve
from fttt.engine.request import TrainRequest
from fttt.experiment.executor import make_engine
from fttt.experiment.plan import Plan, settle
from fttt.methods import Method, find_method
from fttt.store import Run
from fttt.testing import call, save_tiny_model
from fttt.types import Completion, Question, Trial, user

pytestmark = pytest.mark.usefixtures("one_thread")

LEARNERS = Path(__file__).parent / "learners"
NAMES = {
    "self_distill": "SelfDistill",
    "unlearn": "Unlearn",
    "group_policy": "GroupPolicy",
    "shared_successes": "SharedSuccesses",
}
TELL = user("Your answer is incorrect. Try again.")


def test_a_learner_is_a_file_of_seventy_lines_that_knows_only_methods_and_types() -> None:
    files = sorted(LEARNERS.glob("*.py"))
    assert {file.stem for file in files} == set(NAMES)
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) <= 70
        ours = [line for line in text.splitlines() if "fttt" in line and "import" in line]
        assert {line.split()[1] for line in ours} <= {"fttt.methods", "fttt.types"}


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Method]:
    def make(name: str, **settings: Any) -> Method:
        monkeypatch.syspath_prepend(LEARNERS)
        kind = find_method(f"{name}:{NAMES[name]}")
        return kind(kind.Settings.model_validate({"dropout": 0.0, "lr": 1e-3, **settings}))

    return make


def wrong(_: str) -> bool:
    return False


def first_trials(run: Run) -> list[Trial]:
    return sorted((t for t in run.trials if t.trial == 0), key=lambda t: t.question_id)


def test_self_distillation_is_cross_entropy_against_what_the_told_model_predicts(
    learner: Callable[..., Method], play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    run, _ = play_on_tiny(learner("self_distill"), tmp_path / "run", wrong)
    for trial in first_trials(run):
        events = run.histories[trial.question_id].generations
        again: Completion = events[1].completion
        attempt = replace(events[0].completion)
        teacher = reference.logs(trial.question_id, (attempt, TELL), again.token_ids)
        top, ids = teacher.topk(8)
        logs = reference.logs(trial.question_id, (), again.token_ids)
        known = (top.exp() * logs.gather(1, ids)).sum(-1)
        rest = (1 - logs.gather(1, ids).exp().sum(-1)).log() * (1 - top.exp().sum(-1))
        assert trial.loss == pytest.approx(float(-(known + rest).mean()), rel=1e-3)


def test_pushing_down_is_the_unlikelihood_of_the_probable_tokens(
    learner: Callable[..., Method], play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    run, recorded = play_on_tiny(learner("unlearn"), tmp_path / "run", wrong)
    for trial in first_trials(run):
        logs = reference.logs(trial.question_id, (), trial.token_ids)
        p = logs.gather(1, torch.tensor(trial.token_ids)[:, None])[:, 0].exp()
        assert 0 < (p > 0.1).sum() < len(p), "some tokens are probable, and some are not"
        wanted = torch.where(p > 0.1, -(1 - p).log(), 0.0).mean()
        assert trial.loss == pytest.approx(float(wanted), rel=1e-3)
        assert trial.divergence is not None
        assert 0 < trial.divergence < 1
        assert trial.usage.scored_tokens > len(p)  # for the mask, and for the divergence
    assert all(
        request.lessons[0].targets[0].form == "unlikelihood" for request, _ in recorded.steps
    )


def test_a_group_is_pushed_by_its_advantages_in_one_step(
    learner: Callable[..., Method], play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    run, recorded = play_on_tiny(learner("group_policy"), tmp_path / "run", wrong, trials=8)
    assert len(recorded.steps) == 2, "one step a question, on four attempts"
    for question in ("q0", "q1"):
        group = [t for t in run.trials if t.question_id == question and t.trial < 4]
        scores = [t.score or 0.0 for t in group]
        advantages = [s - (sum(scores) - s) / 3 for s in scores]
        assert sum(advantages) == pytest.approx(0, abs=1e-9)
        wanted = sum(a * reference.nll(t) for a, t in zip(advantages, group, strict=True))
        assert group[-1].loss == pytest.approx(wanted, rel=1e-3, abs=1e-4)
        assert [t.loss for t in group[:-1]] == [None] * 3


def test_the_shared_adapter_imitates_what_was_solved(
    learner: Callable[..., Method], play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    right: list[str] = []

    def every_other(completion: str) -> bool:
        right.append(completion)
        return len(right) in {
            2,
            3,
        }  # in the first wave one of two questions, in the second the other

    run, recorded = play_on_tiny(
        learner("shared_successes"), tmp_path / "run", every_other, trials=6
    )
    solved = [t for t in run.trials if t.verdict == "correct"]
    assert len(solved) == 2
    request, trained = recorded.steps[0]
    assert len(request.lessons) == 1
    first = next(t for t in solved if t.trial == 0)
    assert trained.loss == pytest.approx(reference.nll(first), rel=1e-3)


@pytest.mark.parametrize("name", ["self_distill", "unlearn", "group_policy"])
def test_the_loss_falls(
    name: str, learner: Callable[..., Method], play_on_tiny: Any, sharp_model: Any, tmp_path: Path
) -> None:
    """The very examples of a step, learned again and again by one adapter."""
    method = learner(name, lr=5e-3)
    _, recorded = play_on_tiny(method, tmp_path / "run", wrong, trials=8)
    request = recorded.steps[0][0]
    lessons = tuple(
        replace(lesson, context=lesson.context if isinstance(lesson.context, tuple)
                else lesson.context.token_ids)
        for lesson in request.lessons
    )  # fmt: skip
    values = {"method": "fttt", "task": "arithmetic", "sampling": {"max_new_tokens": 12}}
    plan = Plan(settle(resolve(values), method=method), ())
    question = Question("q", "Question 0?")
    engine = make_engine([replace(plan, questions=(question,))], sharp_model())

    async def learn() -> list[float]:
        slot = await engine.open_adapter(method.settings.adapter(), 1)  # type: ignore[attr-defined]
        losses = [(await engine.train(TrainRequest(slot, lessons))).loss for _ in range(5)]
        await engine.close()
        return losses

    losses = asyncio.run(learn())
    assert all(after < before for before, after in pairwise(losses)), losses


QUESTIONS, TRIALS = 4, 8
KILL_AFTER = {"self_distill": 12, "unlearn": 9, "group_policy": 21, "shared_successes": 9}
"""Lines of the journal."""


def flags(name: str, model: Path, out: Path) -> list[str]:
    data = model / "questions.jsonl"
    lines = [json.dumps({"id": f"q{n}", "question": f"Question {n}?"}) for n in range(QUESTIONS)]
    data.write_text("\n".join(lines) + "\n")
    return [
        *(BUILT_IN[name][0] if name in BUILT_IN else [f"{name}:{NAMES[name]}"]),
        *("--model", str(model), "--device", "cpu"),
        *("--task", "jsonl", "--data-dir", str(data), "--verifier", "regex:[a-c]"),
        *("--trials", str(TRIALS), "--max-new-tokens", "24", "--temperature", "1", "--top-p", "1"),
        *([] if name == "memory" else ["--set", "lr=1e-2"]),
        *("--out", str(out)),
    ]


def facts(run: Run) -> list[tuple[Any, ...]]:
    return [
        (t.question_id, t.trial, t.token_ids, t.verdict, t.loss and round(t.loss, 4), t.reset)
        for t in sorted(run.trials, key=lambda t: (t.question_id, t.trial))
    ]


BUILT_IN = {
    "bounded-unlearn": (["unlearn", "--set", "bound=0.05"], 9),
    "policy": (["policy", "--set", "kl=0.1", "--set", "novelty=0.5"], 21),
    "policy-shared": (["policy", "--shared"], 21),
    "self-distill": (["self-distill", "--set", "bound=2.0"], 15),
    "shuffled": (["unlearn", "--ablate", "shuffle"], 21),
    "memory": (["memory"], 13),
}
"""Words of a command line, and lines of the journal."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(NAMES), *BUILT_IN])
def test_killed_and_resumed_a_learner_makes_the_same_trials(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_run: Callable[..., Any]
) -> None:
    monkeypatch.syspath_prepend(LEARNERS)
    model = save_tiny_model(tmp_path / "tiny")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    lines = BUILT_IN[name][1] if name in BUILT_IN else KILL_AFTER[name]
    assert call("run", *flags(name, model, whole)) == 0
    run = Run.open(whole)
    assert any(t.verdict == "correct" for t in run.trials)
    assert any(t.verdict == "incorrect" for t in run.trials)

    code, said = stop_run(["run", *flags(name, model, torn)], lines, cwd=LEARNERS)
    assert code == -signal.SIGKILL, said
    assert len(Run.open(torn).trials) < len(run.trials)

    assert call("run", "--resume", str(torn)) == 0
    assert facts(Run.open(torn)) == facts(run)
    if name == "bounded-unlearn":
        assert {t.reset for t in run.trials} == {True, False}
    events = [json.loads(line) for line in (torn / "events.jsonl").read_text().splitlines()]
    made = [(e["question_id"], e["generation"]) for e in events if e["event"] == "generation"]
    assert len(made) == len(set(made)), "nothing was generated twice"
    assert math.isfinite(sum(t.loss or 0.0 for t in run.trials))
