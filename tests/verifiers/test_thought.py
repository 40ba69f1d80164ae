"""Where a thought ends, and what is none."""

from __future__ import annotations

import pytest

from fttt.verifiers.thought import after_thought


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("It is 5.", "It is 5."),
        ("<think>Is it 4?</think>It is 5.", "It is 5."),
        ("Is it 4?\n</think>\n\nIt is 5.", "\n\nIt is 5."),  # the template opened it
        ("<Thinking>4</Thinking>5<thinking>6</thinking>7", "7"),
        ("[THINK]4[/THINK]5", "5"),
        ("◁think▷4◁/think▷5", "5"),
        ("<seed:think>4</seed:think>5", "5"),
        ("<|begin_of_thought|>4<|end_of_thought|>5", "5"),
        ("<scratchpad>4", None),
        ("Sure. <think> Is it 4?", None),
        ("<think>a</think>```python\nx = 1\n```", "```python\nx = 1\n```"),
        ("<think>", None),
        ("  <think>\nIs it 4? The answer is 4.", None),
        ("<think>4</think>It is 5.\n<think>Or is it", None),
        ("", ""),
    ],
)
def test_what_follows_the_last_thought_is_said(completion: str, said: str | None) -> None:
    assert after_thought(completion) == said


@pytest.mark.parametrize(
    "text",
    [
        "Put it between <think> tags.",
        "Close it by `</think>` at the end.",
        're.sub("<think>.*</think>", "", text)',
        "text.split('</think>')[-1]",
    ],
)
def test_a_tag_that_is_spoken_of_is_no_thought(text: str) -> None:
    assert after_thought(text) == text
