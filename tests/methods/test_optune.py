"""OpTune: which trials are edited, and what each change is predicted from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fttt.engine.request import WeightDeltaSpec
from fttt.methods.optune import OpTune, OpTuneSettings
from fttt.testing import Scene, play, tiny_tokenizer

PlayOpTune = Callable[..., Scene]


@pytest.fixture
def play_optune(make_network: Callable[..., Path]) -> PlayOpTune:
    def run(script: Any, trials: int, schedule: str = "alternate") -> Scene:
        settings = OpTuneSettings.model_validate(
            {"checkpoint": str(make_network()), "schedule": schedule}
        )
        return play(OpTune(settings.settled()), script, trials=trials)

    return run


def edited(scene: Scene) -> list[bool]:
    return [request.adapter is not None for request in scene.engine.generations]


def test_even_trials_run_the_base_model_and_odd_ones_the_change_of_the_one_before(
    play_optune: PlayOpTune,
) -> None:
    scene = play_optune(["1", "2", "3", "4", "7"], trials=8)
    assert edited(scene) == [False, True, False, True, False]
    assert [trial.loss is not None for trial in scene.trials] == [True, False, True, False, False]
    assert [trial.verdict for trial in scene.trials] == ["incorrect"] * 4 + ["correct"]
    (slot,) = scene.engine.slots
    assert [request.adapter for request in scene.engine.trainings] == [slot, slot]
    assert slot.closed


def test_a_change_comes_from_question_attempt_and_feedback_together(
    play_optune: PlayOpTune,
) -> None:
    scene = play_optune(["1", "2", "7"], trials=8)
    (request,) = scene.engine.trainings
    attempt = (*scene.engine.generations[0].prompt_ids, *tiny_tokenizer()("1")["input_ids"], 2)
    (lesson,) = request.lessons
    assert lesson.context is scene.engine.kept[0]  # what the layers below gave is in its row
    assert scene.engine.kept[0].token_ids == attempt
    # The next trial of the base model may continue from it; nothing is learned from edited ones.
    assert [r.keep for r in scene.engine.generations] == [True, False, True]
    assert [r.awaited for r in scene.engine.generations] == [True, False, True]
    assert scene.engine.generations[2].reuse is scene.engine.kept[0]
    (target,) = lesson.targets
    assert target.after == 1
    assert tiny_tokenizer().decode(attempt[:1] + target.token_ids) == (
        "<|im_start|>user\nWrite the number 7.<|im_end|>\n<|im_start|>assistant\n1<|im_end|>"
        "\n<|im_start|>user\nWrong.<|im_end|>\n"
    )
    assert target.weights == pytest.approx([1 / len(target.token_ids)] * len(target.token_ids))
    assert scene.trials[0].usage.trained_tokens == len(target.token_ids)


def test_accumulating_every_wrong_trial_adds_a_change(play_optune: PlayOpTune) -> None:
    scene = play_optune(["1", "2", "3", "7"], trials=8, schedule="accumulate")
    assert edited(scene) == [True] * 4
    assert [trial.loss for trial in scene.trials] == [1.0, 0.5, pytest.approx(1 / 3), None]
    assert [r.lessons[0].context for r in scene.engine.trainings] == scene.engine.kept[:3]
    spec = scene.engine.slots[0].spec
    assert isinstance(spec, WeightDeltaSpec)
    assert spec.accumulate
    assert spec.layers == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


@pytest.mark.parametrize("schedule", ["alternate", "accumulate"])
def test_nothing_is_predicted_after_the_last_trial(play_optune: PlayOpTune, schedule: str) -> None:
    scene = play_optune(["1", "2", "3"], trials=3, schedule=schedule)
    trained = [trial.loss is not None for trial in scene.trials]
    assert trained == [True, schedule == "accumulate", False]
