"""What methods may know of a question and of a verdict."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import fttt.methods
from fttt.methods.base import Method
from fttt.methods.policy import Policy
from fttt.methods.self_distill import SelfDistill
from fttt.methods.unlearn import Unlearn, UnlearnSettings
from fttt.testing import play, tiny_tokenizer


def test_no_method_reads_what_may_hold_the_gold_answer() -> None:
    """``Verdict.feedback`` is for models; ``detail`` and the question's gold are for people."""
    folder = Path(fttt.methods.__file__).parent
    read = {
        (path.name, node.attr)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert ("fttt.py", "correct") in read  # or this test sees nothing
    assert not [(file, name) for file, name in read if name in ("detail", "gold", "solution")]


THOUGHT = "<think>\nIs it 1?\n</think>\n\n2"


@pytest.mark.parametrize("kind", [Unlearn, Policy, SelfDistill])
def test_a_learner_trains_on_thoughts_or_on_answers_alone(kind: type[Method]) -> None:
    def weights(**settings: Any) -> tuple[float, ...]:
        method = kind(kind.Settings.model_validate(settings))
        scene = play(method, lambda *_: THOUGHT, trials=8, template="qwen3")
        assert {trial.thought for trial in scene.trials} == {"Is it 1?"}
        return scene.engine.trainings[0].lessons[0].targets[0].weights

    ids = tiny_tokenizer("qwen3")(THOUGHT, add_special_tokens=False)["input_ids"]
    whole, answer = weights(), weights(train_on_thoughts=False)
    assert len(whole) == len(answer) == len(ids) + 1
    assert len(set(whole)) == 1
    assert answer[:-2] == (0.0,) * (len(ids) - 1)
    assert sum(answer) == pytest.approx(sum(whole)), "both are means over what is trained on"


def test_an_attempt_that_only_thinks_teaches_no_answer() -> None:
    method = Unlearn(UnlearnSettings(train_on_thoughts=False))
    scene = play(method, lambda *_: "<think>7", trials=3, template="qwen3")
    assert scene.engine.trainings == []
    assert [(t.verdict, t.extracted) for t in scene.trials] == [("unanswered", None)] * 3
