"""Gold solutions: who has them, how they read, what is held out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.errors import UsageError
from fttt.models import ChatFormat
from fttt.tasks import get_task
from fttt.tasks.task import TaskOptions
from fttt.testing import tiny_tokenizer
from fttt.training import check_trainable, gold_examples, held_out
from fttt.types import Question

IDS = st.lists(st.text(max_size=4), max_size=40)
SHARES = st.floats(0, 0.99)


def test_an_example_reads_as_the_chat_and_ends_its_turn() -> None:
    chat = ChatFormat(tiny_tokenizer())
    questions = get_task("arithmetic").load(TaskOptions(split="train"))[:3]
    for question, example in zip(questions, gold_examples(questions, chat), strict=True):
        text = chat.tokenizer.decode(example.prompt_ids + example.solution_ids)
        assert question.solution is not None
        assert text.endswith(f"assistant\n{question.solution}<|im_end|>")
        assert example.prompt_ids == chat.prompt_ids(question.prompt)


def test_questions_without_a_solution_are_left_out_or_refused() -> None:
    chat = ChatFormat(tiny_tokenizer())
    some = [Question("a", "1?"), Question("b", "2?", solution="2")]
    assert [e.question_id for e in gold_examples(some, chat)] == ["b"]
    with pytest.raises(UsageError, match="None of the 1 questions"):
        gold_examples(some[:1], chat)


@pytest.mark.parametrize(
    ("task", "split", "says"),
    [("humaneval", "train", "no training split"), ("gsm8k", "test", "choose from train")],
)
def test_nobody_trains_on_a_test_split(task: str, split: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_trainable(get_task(task), split)


@settings(max_examples=50, deadline=None)
@given(IDS, SHARES, st.integers(0, 9))
def test_what_is_held_out_is_a_share_in_any_order(ids: list[str], share: float, seed: int) -> None:
    out = held_out(ids, share, seed)
    assert out == held_out(ids[::-1] + ids, share, seed)
    assert out <= set(ids)
    distinct = len(set(ids))
    if share > 0 and distinct > 1:
        assert 1 <= len(out) < distinct
        assert abs(len(out) - share * distinct) <= 1
    else:
        assert not out


def test_what_is_held_out_is_drawn_by_the_seed() -> None:
    ids = [f"q/{n}" for n in range(40)]
    drawn = {held_out(ids, 0.25, seed) for seed in range(5)}
    assert len(drawn) == 5
