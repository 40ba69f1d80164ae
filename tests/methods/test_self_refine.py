"""Attempt, critique, refined attempt."""

from __future__ import annotations

from fttt.methods.self_refine import SelfRefine, SelfRefineSettings
from fttt.testing import play

METHOD = SelfRefine(
    SelfRefineSettings(
        critique_request="Review it.", refine_request="Refine it.", critique_tokens=9
    )
)

PROMPT = "<|im_start|>user\nWrite the number 7.<|im_end|>\n<|im_start|>assistant\n"


def say(text: str) -> str:
    return f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_each_refinement_sees_the_attempt_before_it_and_its_critique() -> None:
    script = ["one 1", "too low", "two 2", "still", "7"]
    scene = play(METHOD, script, trials=8)
    review, refine = say("Review it."), say("Refine it.")
    assert scene.engine.conversations == [
        PROMPT,
        PROMPT + "one 1" + review,
        PROMPT + "one 1" + review + "too low" + refine,
        PROMPT + "two 2" + review,
        PROMPT + "two 2" + review + "still" + refine,
    ]
    assert [trial.completion for trial in scene.trials] == ["one 1", "two 2", "7"]
    assert [trial.generation for trial in scene.trials] == [0, 2, 4]


def test_critiques_spend_tokens_but_no_trial_and_are_never_judged() -> None:
    scene = play(METHOD, lambda *_: "1", trials=3)
    assert len(scene.trials) == 3
    assert scene.usage.generations == 5
    assert scene.usage.verifier_calls == 3
    assert sum(trial.usage.generated_tokens for trial in scene.trials) == 10
    assert [request.max_new_tokens for request in scene.engine.generations] == [256, 9, 256, 9, 256]


def test_no_critique_is_written_after_the_last_trial() -> None:
    scene = play(METHOD, lambda *_: "1", trials=1)
    assert len(scene.engine.generations) == 1


def test_rows_hold_attempt_critique_and_refinement() -> None:
    assert METHOD.conversation(100) == (100, "Review it.", 9, "Refine it.", 100)
    assert METHOD.conversation(5) == (5, "Review it.", 5, "Refine it.", 5)


def test_the_critique_may_read_the_feedback_and_a_fresh_attempt_be_made_after_some() -> None:
    method = SelfRefine(
        SelfRefineSettings(
            critique_request="{feedback} Why?", refine_request="Refine it.", restart=2
        )
    )
    scene = play(method, ["one 1", "too low", "two 2", "six 6", "too low", "7"], trials=8)
    why, refine = say("Your answer 1 is incorrect. Why?"), say("Refine it.")
    again = say("Your answer 6 is incorrect. Why?")
    assert scene.engine.conversations == [
        PROMPT,
        PROMPT + "one 1" + why,
        PROMPT + "one 1" + why + "too low" + refine,
        PROMPT,
        PROMPT + "six 6" + again,
        PROMPT + "six 6" + again + "too low" + refine,
    ]
    assert method.conversation(100)[:3] == (100, "{feedback} Why?", 300)
