"""One conversation that grows by each wrong attempt."""

from __future__ import annotations

from fttt.methods.revision import Revision, RevisionSettings
from fttt.testing import play

METHOD = Revision(RevisionSettings(feedback="Wrong."))

PROMPT = "<|im_start|>user\nWrite the number 7.<|im_end|>\n<|im_start|>assistant\n"
WRONG = "<|im_end|>\n<|im_start|>user\nWrong.<|im_end|>\n<|im_start|>assistant\n"


def test_the_conversation_grows_by_attempt_and_feedback() -> None:
    scene = play(METHOD, ["one 1", "two 2", "7"], trials=8)
    assert scene.engine.conversations == [
        PROMPT,
        PROMPT + "one 1" + WRONG,
        PROMPT + "one 1" + WRONG + "two 2" + WRONG,
    ]
    assert [trial.verdict for trial in scene.trials] == ["incorrect", "incorrect", "correct"]


def test_a_cut_attempt_is_closed_before_the_user_speaks() -> None:
    scene = play(METHOD, ["1111111111", "7"], trials=2, max_new_tokens=4)
    assert scene.engine.conversations[1] == PROMPT + "1111" + WRONG


def test_the_oldest_turns_go_when_the_context_is_full() -> None:
    prompt = len(PROMPT.replace("<|im_start|>", "s").replace("<|im_end|>", "e"))
    wrong = len(WRONG.replace("<|im_start|>", "s").replace("<|im_end|>", "e"))
    room_for_two = prompt + 2 * (5 + wrong) + 16
    scene = play(
        METHOD,
        ["one 1", "two 2", "six 6", "7"],
        trials=4,
        max_new_tokens=16,
        max_length=room_for_two,
    )
    assert scene.engine.conversations[3] == PROMPT + "two 2" + WRONG + "six 6" + WRONG


def test_rows_are_sized_for_some_attempts() -> None:
    method = Revision(RevisionSettings(feedback="Wrong.", attempts=3))
    assert method.conversation(100) == (100, "Wrong.", 100, "Wrong.", 100)


def test_what_the_verifier_lets_the_model_know_may_be_said() -> None:
    method = Revision(RevisionSettings(feedback="{feedback} Try again."))
    scene = play(method, ["one 1", "7"], trials=2)
    said = WRONG.replace("Wrong.", "Your answer 1 is incorrect. Try again.")
    assert scene.engine.conversations[1] == PROMPT + "one 1" + said
    assert method.conversation(100) == (100, "{feedback} Try again.", 300) * 3 + (100,)


def test_the_conversation_may_begin_anew_or_keep_the_last_attempt_only() -> None:
    script = ["one 1", "two 2", "six 6", "7"]
    anew = Revision(RevisionSettings(feedback="Wrong.", restart=2))
    assert play(anew, script, trials=4).engine.conversations == [
        PROMPT,
        PROMPT + "one 1" + WRONG,
        PROMPT,
        PROMPT + "six 6" + WRONG,
    ]
    assert anew.conversation(100) == (100, "Wrong.", 100)
    last = Revision(RevisionSettings(feedback="Wrong.", last_only=True))
    assert play(last, script, trials=4).engine.conversations == [
        PROMPT,
        PROMPT + "one 1" + WRONG,
        PROMPT + "two 2" + WRONG,
        PROMPT + "six 6" + WRONG,
    ]
    assert last.conversation(100) == (100, "Wrong.", 100)


def test_a_constant_attempt_stands_in_for_the_models_own() -> None:
    scene = play(METHOD, ["one 1", "7"], trials=2, ablate="constant")
    assert scene.engine.conversations[1] == PROMPT + "I do not know." + WRONG
