"""Greedy decoding: one trial at temperature 0."""

from __future__ import annotations

from fttt.methods.base import MethodSettings
from fttt.methods.greedy import Greedy
from fttt.testing import play


def test_one_trial_at_temperature_zero_whatever_the_budget() -> None:
    scene = play(Greedy(MethodSettings()), ["I think 7"], trials=1)
    (request,) = scene.engine.generations
    assert request.temperature == 0.0
    assert not request.keep
    assert scene.engine.conversations == [
        "<|im_start|>user\nWrite the number 7.<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert [trial.verdict for trial in scene.trials] == ["correct"]


def test_the_run_is_told_what_greedy_fixes() -> None:
    assert Greedy.fixed == {"trials": 1, "temperature": 0.0}
