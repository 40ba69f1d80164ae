"""Groups of attempts: rewards, advantages, the anchor, and one adapter for all questions."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

import fttt
from fttt.config import build, resolve
from fttt.engine.request import LoRASpec
from fttt.errors import UsageError
from fttt.experiment.executor import make_engine
from fttt.experiment.plan import Plan, settle
from fttt.methods.policy import (
    Policy,
    PolicySettings,
    advantages,
    entropic,
    leave_one_out,
    rewards,
)
from fttt.testing import play, tiny_model
from fttt.types import Completion, Judged, Outcome, Question, Verdict

pytestmark = pytest.mark.usefixtures("one_thread")


def wrong(_: str) -> bool:
    return False


def policy(**settings: Any) -> Policy:
    return Policy(PolicySettings.model_validate({"dropout": 0.0, "lr": 1e-3, **settings}))


def judged(outcome: Outcome, score: float | None = None) -> Judged:
    return Judged(Completion("", (1,), "stop", 0), Verdict(outcome, score=score))


def test_rewards_are_scores_or_successes() -> None:
    assert rewards([judged("correct"), judged("incorrect"), judged("unanswered")]) == [1, 0, 0]
    costs = [judged("incorrect", -8.0), judged("incorrect"), judged("incorrect", -3.0)]
    assert rewards(costs) == [-8.0, -8.0, -3.0], "what has no score is not the best of all"


def test_advantages_by_their_formulas() -> None:
    earned = [0.0, 0.25, 0.5, 1.0]
    assert leave_one_out(earned) == pytest.approx([-7 / 12, -1 / 4, 1 / 12, 3 / 4])
    assert leave_one_out([1.0]) == [0.0]
    grpo = advantages(earned, PolicySettings(advantage="grpo"))
    assert sum(grpo) == pytest.approx(0)
    assert sum(a * a for a in grpo) / 4 == pytest.approx(1)
    ngrpo = PolicySettings(advantage="ngrpo")
    assert advantages([0.0] * 4, ngrpo) == pytest.approx([-1 / math.sqrt(4)] * 4)
    assert advantages([0.0, 1.0], ngrpo) == pytest.approx([-math.sqrt(2), 1 / math.sqrt(2)])
    assert advantages([5.0, 5.0], PolicySettings(advantage="ngrpo", best=1.0)) == [0.0, 0.0]
    for kind in ("rloo", "grpo", "entropic"):
        assert advantages([0.3] * 3, PolicySettings(advantage=kind)) == pytest.approx([0.0] * 3)


def test_the_entropic_weights_seek_the_best_and_are_as_far_from_equal_as_they_may_be() -> None:
    for earned in ([0.0, 0.1, 0.3, 0.35, 0.9], [-900.0, -20.0, 3.0, 4.0, 900.0]):
        found = entropic(earned)
        assert sum(found) == pytest.approx(0)
        assert found == sorted(found)
        q = [(1 + a) / len(found) for a in found]
        assert math.log(len(q)) + sum(x * math.log(x) for x in q if x) == pytest.approx(math.log(2))
    tied = entropic([1.0, 1.0, 1.0, 0.0])  # never as far as ln 2: all is on the best
    assert tied == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1])
    e = [math.exp(2 * r) for r in (0.0, 1.0)]
    assert entropic([0.0, 1.0], beta=2) == pytest.approx([2 * x / sum(e) - 1 for x in e])


@pytest.mark.parametrize("kind", ["rloo", "ngrpo", "entropic"])
def test_a_step_is_the_advantages_and_the_anchor(
    kind: Any, play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    method = policy(advantage=kind, kl=0.5, teacher_tokens=6)
    run, recorded = play_on_tiny(method, tmp_path / "run", wrong, trials=8)
    assert len(recorded.steps) == 2, "one step a question, on four attempts"
    for question in ("q0", "q1"):
        group = [t for t in run.trials if t.question_id == question and t.trial < 4]
        weights = advantages([t.score or 0.0 for t in group], method.settings)
        wanted = 0.0
        for trial, weight in zip(group, weights, strict=True):
            logs = reference.logs(question, (), trial.token_ids)
            top = logs.topk(6)[0]  # before the first step the model is its own anchor
            rest = 1 - top.exp().sum(-1)
            anchor = -((top.exp() * top).sum(-1) + rest * rest.log()).mean()
            wanted += (weight * reference.nll(trial) + 0.5 * float(anchor)) / 4
        assert group[-1].loss == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_what_was_said_before_earns_less() -> None:
    scene = play(
        policy(group=2, advantage="rloo", novelty=1.0), ["1", "1", "1", "2", "3", "3"], trials=6
    )
    weights = [
        [round(lesson.targets[0].weights[0] * len(lesson.targets[0].token_ids), 6)
         for lesson in request.lessons]
        for request in scene.engine.trainings
    ]  # fmt: skip
    gap = 1 - 1 / math.sqrt(3)  # a third "1" against a first "2"
    assert weights == [[pytest.approx(-gap / 2, abs=1e-5), pytest.approx(gap / 2, abs=1e-5)]]


def test_a_question_of_its_own_adapter_ends_at_its_first_success() -> None:
    scene = play(policy(), ["1", "2", "3", "4", "5", "7", "7", "7"], trials=16)
    assert [t.verdict for t in scene.trials] == ["incorrect"] * 5 + ["correct"]
    assert len(scene.engine.trainings) == 1
    assert scene.engine.slots[0].spec == LoRASpec(lr=1e-3, dropout=0.0)


def test_one_adapter_of_all_questions_learns_from_successes_too(
    play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    seen: list[str] = []

    def second(completion: str) -> bool:
        seen.append(completion)
        return len(seen) == 2

    method = policy(shared=True, rank=2, alpha=4.0)
    run, recorded = play_on_tiny(method, tmp_path / "run", second, trials=12)
    (solved,) = (t for t in run.trials if t.verdict == "correct")
    group = [t for t in run.trials if t.question_id == solved.question_id]
    assert len(group) == 4, "the whole group is judged, and the question ends with it"
    assert len([t for t in run.trials if t.question_id != solved.question_id]) == 12
    request, trained = recorded.steps[0]
    assert len(request.lessons) == 8, "the groups of both questions"
    wanted = 0.0
    for question in ("q0", "q1"):
        own = [t for t in run.trials if t.question_id == question and t.trial < 4]
        weights = leave_one_out([t.score or 0.0 for t in own])
        wanted += sum(w * reference.nll(t) for w, t in zip(weights, own, strict=True)) / 4 / 2
    assert trained.loss == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_defaults_depend_on_whose_the_adapter_is() -> None:
    def settled(**settings: Any) -> Any:
        return settle(resolve({"method": "policy", "settings": settings})).settings

    own, shared = settled(), settled(shared=True, rank=8)
    assert (own.advantage, own.rank, own.targets) == ("ngrpo", 4, ("q_proj", "v_proj"))
    assert (shared.advantage, shared.rank, shared.alpha) == ("rloo", 8, 32.0)
    assert (shared.dropout, shared.targets) == (0.0, ("all-linear",))
    config = settle(resolve({"method": "policy", "settings": {"shared": True}})).config
    assert settle(config).config == config
    assert Policy(shared).shared
    assert not Policy(own).shared


@pytest.mark.parametrize(
    ("settings", "trials", "match"),
    [
        ({"group": 8}, 4, "group of 8 attempts is larger than the budget of 4 trials; give --t"),
        ({"shared": True, "bound": 1.0}, 8, "bound cannot be 1.0 where the adapter is shared"),
        ({"group": 1}, 8, "'group' in the settings"),
        ({"advantage": "best"}, 8, "'advantage' in the settings"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], trials: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        settle(
            resolve({"method": "policy", "settings": settings, "budget": {"trials": trials}}),
        )


class NoNumber:
    """A verifier whose score is not a number."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        return Verdict("incorrect", score=float("nan"))

    def extract(self, question: Question, completion: str) -> str | None:
        return completion

    async def close(self) -> None:
        pass


def test_a_score_that_is_not_a_number_is_a_wrong_verdict_and_no_reward() -> None:
    scene = play(policy(advantage="rloo"), lambda *_: "1", trials=8, verifier=NoNumber())
    assert {(t.verdict, t.score) for t in scene.trials} == {("incorrect", None)}
    assert "the score of a verdict is nan" in scene.trials[0].detail
    assert not scene.engine.trainings


def test_a_bad_list_of_targets_is_named() -> None:
    with pytest.raises(UsageError, match="'targets' in the settings"):
        build(PolicySettings, {"targets": []}, "the settings")


def test_one_question_alone_has_room_for_its_group_and_for_the_shared_weights() -> None:
    model = tiny_model()
    result = fttt.solve(
        "Question?",
        verify=_wrong,
        model=model,
        method="policy",
        trials=12,
        max_new_tokens=8,
        settings={"shared": True, "advantage": "ngrpo"},
    )
    assert len(result.trials) == 12
    sampling = {"max_new_tokens": 8}
    settled = settle(resolve({"method": "policy", "settings": {"group": 6}, "sampling": sampling}))
    engine = make_engine([Plan(settled, (Question("q", "Question?"),))], model)
    assert (engine.plan.batch_size, engine.plan.slots) == (6, 1)  # type: ignore[attr-defined]
    asyncio.run(engine.close())


def _wrong(_: str) -> bool:
    return False
