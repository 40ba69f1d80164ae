"""Feedback-based test-time training: one step on the feedback turn after each wrong attempt."""

from __future__ import annotations

import pytest

from fttt.engine.request import LoRASpec
from fttt.errors import UsageError
from fttt.methods.fttt import FTTT, FTTTSettings
from fttt.testing import FakeKept, play, tiny_tokenizer
from fttt.types import Question

METHOD = FTTT(FTTTSettings(feedback="Wrong."))
TURN = "\n<|im_start|>user\nWrong.<|im_end|>\n"


def text(ids: tuple[int, ...]) -> str:
    return str(tiny_tokenizer().decode(ids))


def test_each_wrong_attempt_is_trained_on_and_the_right_one_is_not() -> None:
    scene = play(METHOD, ["1", "2", "7"], trials=8)
    engine = scene.engine
    assert [trial.verdict for trial in scene.trials] == ["incorrect", "incorrect", "correct"]
    assert len(engine.trainings) == 2
    assert [trial.loss for trial in scene.trials] == [1.0, 0.5, None]
    assert len({request.prompt_ids for request in engine.generations}) == 1  # always a fresh answer


def test_every_attempt_is_written_under_the_questions_own_weights() -> None:
    engine = play(METHOD, ["1", "7"], trials=8).engine
    (slot,) = engine.slots
    assert [request.adapter for request in engine.generations] == [slot, slot]
    assert all(request.keep for request in engine.generations)
    assert slot.spec == LoRASpec()
    assert slot.closed


def test_the_loss_is_the_mean_over_the_feedback_turn_after_kept_keys_and_values() -> None:
    engine = play(METHOD, ["1", "7"], trials=8).engine
    (request,) = engine.trainings
    (lesson,) = request.lessons
    assert lesson.context is engine.kept[0]
    assert engine.kept[0].token_ids == (
        *engine.generations[0].prompt_ids,
        *tiny_tokenizer()("1")["input_ids"],
        2,
    )
    (target,) = lesson.targets
    assert text(target.token_ids) == TURN  # the attempt has ended its turn itself
    assert target.weights == pytest.approx([1 / len(target.token_ids)] * len(target.token_ids))
    assert target.after is None


def test_an_attempt_that_was_cut_is_closed_by_the_turn() -> None:
    engine = play(METHOD, ["111111", "7"], trials=8, max_new_tokens=3).engine
    assert text(engine.trainings[0].lessons[0].targets[0].token_ids) == "<|im_end|>" + TURN


def test_keys_and_values_are_let_go_after_every_trial() -> None:
    engine = play(METHOD, lambda *_: "1", trials=4).engine
    assert len(engine.kept) == 4
    assert all(kept.closed for kept in engine.kept)


def test_the_weights_are_seeded_by_run_and_question() -> None:
    def seed_of(seed: int, question: str = "one") -> int:
        asked = Question(question, "Write the number 7.", "7")
        return play(METHOD, ["7"], trials=1, seed=seed, question=asked).engine.slots[0].seed

    assert seed_of(1) == seed_of(1)
    assert len({seed_of(1), seed_of(2), seed_of(1, "another")}) == 3


def test_settings_reach_the_adapter() -> None:
    settings = FTTTSettings(lr=1e-3, rank=2, alpha=4, dropout=0, targets=("k_proj",))
    engine = play(FTTT(settings), ["7"], trials=1).engine
    assert engine.slots[0].spec == LoRASpec(
        rank=2, alpha=4.0, dropout=0.0, targets=("k_proj",), lr=1e-3
    )


def test_reflection_adds_the_critique_of_the_base_model() -> None:
    settings = FTTTSettings(
        feedback="Wrong.", reflection=True, critique_request="Why?", critique_tokens=30
    )
    scene = play(FTTT(settings), ["1", "it is not 1", "7"], trials=8)
    attempt, critique, second = scene.engine.generations
    assert critique.adapter is None  # the base model writes it
    assert critique.max_new_tokens == 30
    assert scene.engine.conversations[1] == (
        text(attempt.prompt_ids)
        + "1<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert second.prompt_ids == attempt.prompt_ids
    (request,) = scene.engine.trainings
    (fixed,), (written,) = (lesson.targets for lesson in request.lessons)
    assert text(fixed.token_ids) == TURN
    assert text(written.token_ids) == (
        "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nit is not 1<|im_end|>"
    )
    loud = [weight for weight in written.weights if weight]
    ids = (*tiny_tokenizer()("it is not 1")["input_ids"], 2)
    assert written.token_ids[-len(ids) :] == ids
    assert loud == pytest.approx([1 / len(ids)] * len(ids))
    assert written.weights[: -len(ids)] == (0.0,) * (len(written.weights) - len(ids))
    assert all(isinstance(lesson.context, FakeKept) for lesson in request.lessons)
    assert [trial.generation for trial in scene.trials] == [0, 2]
    assert scene.trials[0].usage.generations == 2


@pytest.mark.parametrize("on_thoughts", [True, False])
def test_the_thought_of_a_critique_is_trained_on_or_left_out(on_thoughts: bool) -> None:
    settings = FTTTSettings(reflection=True, train_on_thoughts=on_thoughts)
    wrote = "<think>\nHm.\n</think>\n\n"
    scene = play(FTTT(settings), ["1", wrote + "No.", "7"], trials=2, template="qwen3")
    (_, written) = (lesson.targets[0] for lesson in scene.engine.trainings[0].lessons)
    loud = sum(1 for weight in written.weights if weight)
    ids = tiny_tokenizer("qwen3")(wrote, add_special_tokens=False)["input_ids"]
    assert loud == len("No.") + 1 + on_thoughts * len(ids)
    assert sum(written.weights) == pytest.approx(1)
    scene = play(FTTT(settings), ["1", "<think>Hm", "7"], trials=2, template="qwen3")
    assert len(scene.engine.trainings[0].lessons) == 1 + on_thoughts  # no text, nothing of it


def test_leaving_out_thoughts_that_nobody_trains_on_is_refused() -> None:
    with pytest.raises(UsageError, match="does nothing without --reflection"):
        FTTTSettings(train_on_thoughts=False).settled()


@pytest.mark.parametrize("reflection", [False, True])
def test_nothing_is_learned_after_the_last_trial(reflection: bool) -> None:
    method = FTTT(FTTTSettings(feedback="Wrong.", reflection=reflection))
    scene = play(method, lambda *_: "1", trials=3)
    assert [trial.loss is None for trial in scene.trials] == [False, False, True]
    assert len(scene.engine.trainings) == 2
    assert len(scene.engine.generations) == (5 if reflection else 3)  # no critique of the last one


def test_an_unanswered_trial_that_is_free_is_learned_from() -> None:
    scene = play(METHOD, ["?", "1", "?", "2"], trials=2, unanswered="retry")
    assert [trial.loss is None for trial in scene.trials] == [False, False, False, True]


def test_rows_hold_a_critique_only_where_one_is_written() -> None:
    assert METHOD.conversation(100) == (100,)
    settings = FTTTSettings(reflection=True, critique_request="Why?", critique_tokens=30)
    assert FTTT(settings).conversation(100) == (100, "Why?", 30)
