"""Independent samples until one verifies."""

from __future__ import annotations

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
