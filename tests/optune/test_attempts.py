"""The examples that are made of a run's attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.methods.optune import OpTune, OpTuneSettings
from fttt.models.chat import ChatFormat
from fttt.optune.attempts import (
    AttemptExample,
    attempt_examples,
    check_attempts,
    conversation_ids,
    in_windows,
    with_ablation,
)
from fttt.testing import FakeKept, play, tiny_tokenizer
from fttt.training import gold_examples
from fttt.types import FinishReason, Question, Record, Trial, Usage

CHAT = ChatFormat(tiny_tokenizer())
QUESTIONS = [Question(f"q{n}", f"Number {n}?", str(n), f"It is {n}.") for n in range(3)]
GOLDS = {gold.question_id: gold for gold in gold_examples(QUESTIONS[:2], CHAT)}
NO = "No, wrong."


def trial(question: str, number: int, verdict: Any = "incorrect", text: str = "hm") -> Trial:
    ids = (*tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], 2)
    return Trial(question, number, number, text, ids, "stop", None, verdict, "", None, Usage())


def run_of(*trials: Trial) -> Any:
    records = [
        Record(q, tuple(t for t in trials if t.question_id == q.id), Usage()) for q in QUESTIONS
    ]
    return SimpleNamespace(
        path=Path("r"), records=records, trials=trials, model="smollm2-135m", task="tiny",
        method="sample",
    )  # fmt: skip


RUN = run_of(
    trial("q0", 0), trial("q0", 1, "correct"), trial("q0", 2, "unanswered"),
    trial("q1", 0, "correct"), trial("q1", 1), trial("q2", 0),
)  # fmt: skip


def keys(**more: Any) -> list[str]:
    found, _ = attempt_examples(RUN, GOLDS, CHAT, **({"feedback": NO, "max_length": 99} | more))
    return [example.key for example in found]


def test_wrong_attempts_or_all_and_at_most_so_many_of_each() -> None:
    assert keys() == ["q0#0", "q0#2", "q1#1"]  # the third question has no solution
    assert keys(attempts="all") == ["q0#0", "q0#1", "q0#2", "q1#0", "q1#1"]
    assert keys(attempts="all", max_attempts=2) == ["q0#0", "q0#1", "q1#0", "q1#1"]


def test_what_is_too_long_is_left_out_and_counted() -> None:
    long = run_of(trial("q0", 0, text="x" * 90), trial("q1", 0))
    found, too_long = attempt_examples(long, GOLDS, CHAT, feedback=NO, max_length=120)
    assert ([e.key for e in found], too_long) == (["q1#0"], 1)
    with pytest.raises(UsageError, match=r"No attempt .* \(2 are longer than 9 tokens"):
        attempt_examples(long, GOLDS, CHAT, feedback=NO, max_length=9)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_conversation_is_what_the_engine_is_given_at_test_time(
    finish: FinishReason, make_network: Callable[..., Path]
) -> None:
    settings = OpTuneSettings(checkpoint=str(make_network(feedback=NO))).settled()
    method = OpTune(OpTuneSettings.model_validate(settings.model_dump()))
    scene = play(method, ["33", "7"], trials=2, max_new_tokens=3 if finish == "stop" else 2)
    assert scene.trials[0].finish_reason == finish
    (request,) = scene.engine.trainings
    (target,) = request.targets
    assert isinstance(request.lessons[0].context, FakeKept)
    ids = conversation_ids(CHAT, "Write the number 7.", scene.trials[0], NO)
    assert ids == request.lessons[0].context.token_ids[: target.after] + target.token_ids
    assert target.weights == pytest.approx([1 / (len(ids) - 1)] * (len(ids) - 1))


def test_a_folder_of_another_model_task_or_method() -> None:
    check_attempts(RUN, "smollm2-135m", "tiny")
    with pytest.raises(UsageError, match=r"by the model 'smollm2-135m', not by 'owner/other'"):
        check_attempts(RUN, "owner/other", "tiny")
    with pytest.raises(UsageError, match=r"at the task 'tiny', not 'gsm8k'"):
        check_attempts(RUN, "smollm2-135m", "gsm8k")
    RUN.method = "revision"
    with pytest.raises(UsageError, match=r"made by 'revision'.*use a run of sample"):
        check_attempts(RUN, "smollm2-135m", "tiny")
    RUN.method = "sample"
    with pytest.raises(UsageError, match=r"the run has no trials yet"):
        check_attempts(run_of(), "smollm2-135m", "tiny")


def conversations(examples: Sequence[AttemptExample]) -> list[tuple[int, ...]]:
    return [e.conversation_ids for e in examples]


def test_ablations(make_examples: Callable[..., list[AttemptExample]]) -> None:
    examples = make_examples(7)
    assert with_ablation(examples, "none") == examples
    shuffled = with_ablation(examples, "shuffle-attempts")
    assert sorted(conversations(shuffled)) == sorted(conversations(examples))
    owner = {e.conversation_ids: e.gold.question_id for e in examples}
    assert all(owner[e.conversation_ids] != e.gold.question_id for e in shuffled)
    constant = with_ablation(examples, "constant-input")
    assert set(conversations(constant)) == {examples[0].conversation_ids}
    for changed in (shuffled, constant):
        assert [(e.key, e.gold) for e in changed] == [(e.key, e.gold) for e in examples]
    with pytest.raises(UsageError, match=r"2 of 3 attempts are at one of them"):
        with_ablation(examples[:3], "shuffle-attempts")


def test_windows_take_every_example_once_an_epoch(
    make_examples: Callable[..., list[AttemptExample]],
) -> None:
    examples = make_examples(7)
    endless = in_windows(examples, 3, seed=1)
    windows = [next(endless) for _ in range(9)]
    assert [len(w) for w in windows] == [3, 3, 1] * 3
    orders = [tuple(e.key for w in windows[i : i + 3] for e in w) for i in (0, 3, 6)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == sorted(e.key for e in examples) for order in orders)
    for first in range(6):
        later = in_windows(examples, 3, seed=1, first=first)
        assert [next(later) for _ in range(3)] == windows[first : first + 3]
