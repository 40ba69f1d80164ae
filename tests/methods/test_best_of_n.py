"""Independent samples until one verifies."""

from __future__ import annotations

from typing import Any

import pytest

from fttt.engine.request import GenerateRequest
from fttt.methods.base import MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.testing import play
from fttt.types import Question

METHOD = BestOfN(MethodSettings())


def test_samples_are_independent_and_stop_at_the_first_right_one() -> None:
    scene = play(METHOD, ["1", "2", "7", "7"], trials=4)
    assert [trial.verdict for trial in scene.trials] == ["incorrect", "incorrect", "correct"]
    assert len({request.prompt_ids for request in scene.engine.generations}) == 1
    assert len({request.noise_key for request in scene.engine.generations}) == 3
    assert {request.temperature for request in scene.engine.generations} == {0.6}
    assert {request.top_p for request in scene.engine.generations} == {0.95}


def test_the_budget_is_the_number_of_samples() -> None:
    scene = play(METHOD, lambda *_: "1", trials=5)
    assert len(scene.trials) == 5
    assert scene.usage.generations == 5
    assert scene.usage.verifier_calls == 5


def test_samples_depend_on_the_seed_and_the_question_only() -> None:
    def keys(seed: int, question: str = "one") -> list[int]:
        asked = Question(question, "Write the number 7.", "7")
        engine = play(METHOD, lambda *_: "1", trials=3, seed=seed, question=asked).engine
        return [request.noise_key for request in engine.generations]

    assert keys(42) == keys(42)
    assert not set(keys(42)) & set(keys(43))
    assert not set(keys(42)) & set(keys(42, "another"))


def temperatures(idle: int = 0, **flags: Any) -> list[float]:
    scene = play(METHOD, lambda *_: "1", idle=idle, **flags)
    assert [trial.trial for trial in scene.trials] == list(range(len(scene.trials)))
    return sorted(request.temperature for request in scene.engine.generations)


@pytest.mark.parametrize("idle", [0, 20])
def test_the_temperature_is_one_for_each_trial_or_rises_over_the_budget(idle: int) -> None:
    given = temperatures(idle, trials=5, temperature=(0.2, 0.6, 0.8))
    assert given == [0.2, 0.6, 0.8, 0.8, 0.8]
    over = temperatures(idle, trials=5, temperature="0.6..1.0")
    assert over == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    free = temperatures(idle, trials=2, temperature="0.6..1.0", unanswered="count")
    assert free == pytest.approx([0.6, 1.0])
    assert temperatures(idle, trials=1, temperature="0.6..1.0") == [0.6]


def test_answers_written_ahead_are_drawn_at_the_temperature_of_their_own_trial() -> None:
    def write(_: str, request: GenerateRequest) -> str:
        return str(request.noise_key % 5 * 10 + round(request.temperature * 10))

    alone = play(METHOD, write, trials=9, temperature="0.1..0.9")
    ahead = play(METHOD, write, trials=9, temperature="0.1..0.9", idle=50)
    assert [t.completion for t in alone.trials] == [t.completion for t in ahead.trials]
    assert [int(t.completion) % 10 for t in alone.trials] == list(range(1, 10))
