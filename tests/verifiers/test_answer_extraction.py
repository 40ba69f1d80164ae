from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers import answer_extraction
from fttt.verifiers.answer_extraction import (
    after_thought,
    boxed_answer,
    find_candidates,
    last_boxed,
)
from fttt.verifiers.math.answer_finder import find_answer


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        (r"\fbox{C}", "C"),
        (r"\boxed 5$ is it", "5"),
        (r"\boxed{7} and then \boxed{", "7"),
        (r"\boxed{7} and then \boxed{}", "7"),
        (r"\boxed {x}", "x"),
        (r"\boxedtext{x}", None),
        (r"\boxed{\boxed{3}}", "3"),
        ("nothing", None),
        (r"\boxed{", None),
        (r"\boxed{}", None),
        (r"\boxed{4}, marked with \boxed notation", "4"),
        (r"\boxed{4}, in a `\boxed` as asked", "4"),
        (r"\boxed{4} is in a \boxed{}", "4"),
        (r"\boxed{4}, as \boxed{answer} is asked for", "4"),
        (r"\boxed{4}, in \boxed{\text{your answer}}", "4"),
        (r"\boxed{4}, not \boxed{...}", "4"),
        (r"\boxed C$", "C"),
    ],
)
def test_the_last_box(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{2}$ and $\boxed{3}", "2, 3"),
        (r"\boxed{2}, \boxed{3}", "2, 3"),
        (r"x = \boxed{2}$ or $x = \boxed{3}$.", "2, 3"),
        (r"\(\boxed{(1,2)}\), \(\boxed{(2,1)}\)", "(1,2), (2,1)"),
        (r"\boxed{1\frac12},$ or $\boxed{\frac{3}{2}}$ inches", r"\frac{3}{2}"),
        (r"\boxed{2}, so \boxed{3}", "3"),
        (r"\boxed{2}. And \boxed{3}", "3"),
        ("none", None),
    ],
)
def test_boxes_side_by_side_are_one_answer(text: str, boxed: str | None) -> None:
    assert boxed_answer(text) == boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is 4, no: \boxed{5}", "5"),
        ("The final answer is $x+1$.", "x+1"),
        ("The final answer is 42. I hope it is correct.", "42"),
        ("So the answer is 2.5.", "2.5"),
        ("Answer: \\(\\frac{1}{2}\\)", r"\frac{1}{2}"),
        ("The final answer is\n\n\\[ 7 \\]", "7"),
        ("**The answer is:** 12", "12"),
        ("#### 18", "18"),
        ("0.5", "0.5"),
        (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        (r"(3, \pi/2)", r"(3, \pi/2)"),
        ("I do not know.", None),
        ("We get 5 because of the rule.", None),
        ("", None),
        ("no", None),
        ("No.", None),
        ("so 5", None),
        ("2ab", "2ab"),
        ("x=ab", "x=ab"),
        ("The final answer is", None),
        ("<answer>$70$</answer> (checked in 2 ways)", "70"),
        ("[ANSWER] x+1 [/ANSWER]", "x+1"),
        ("**Final Answer**\n\n$x+1$\n\n(checked twice)", "x+1"),
        ("### Answer\n28", "28"),
        ("## Final Answer:\n\n\\[\nx^2\n\\]", "x^2"),
        ("\u2705 Final Answer: **28**", "28"),
        ("**Answer: 3/4**", "3/4"),
        ("So it is east.\n\nAnswer: east", "east"),
        ("Final Answer: The largest $n$ is 28.", "28"),
        ("Final Answer: The volume of $PQRS$ is $60$.", "60"),
        ("The answer is 42 because the triangle is right-angled.", "42"),
        ("The answer is $\\frac{5}{2}$ because of $x$.", r"\frac{5}{2}"),
        ("The answer is $x = 4$ or $x = 6$.", "x = 4, x = 6"),
        ("The answer is $5$ million.", "5 million"),
        ("The answer is $50$\\%, or one half.", r"50 \%"),
        (r"\boxed{4}. No, wait: the answer is $5$.", "5"),
        (r"\boxed{4}. The final answer is $5$.", "5"),
        (r"\boxed{4}. This answer is correct.", "4"),
        ('I end with "The final answer is N".', None),
        ("The answer is [number].", None),
        ("So the answer is then \\[ 289 - 225 = 89 - 25 = 64, \\]as before.", "64"),
        ("The answer is $9 \\cdot 2 = 18$.", "18"),
        ("We may check our answer: $9 = 4 + 5$. It is \\boxed{4}.", "4"),
        ("It is \\boxed{4}. We may check our answer: $9 = 4 + 5$.", "4"),
        ("It is \\boxed{4}, and the answer is in the list of $9$.", "4"),
        ("It is \\boxed{4}. The answer is $\\boxed{}$.", "4"),
        ("So we have it:\n$x^2$", "x^2"),
        ("So we have it: $x^2$.\nThat is all there is.", None),
        ("<think>The answer is $4$.</think> The answer is $5$.", "5"),
        ("The answer is $4$.\n<think>Or is it", None),
        ("#### $x+1$", "x+1"),
        ("\\boxed{\\text{The answer is } 5}", "\\text{The answer is } 5"),
        ("The answer is <think> $3$", None),
        ("#### 1. Factor it\n", None),
        ("It is \\boxed{4}.\n**Assessment of Given Answers:**\n- 9 is a multiple of 3.", "4"),
        ("It is \\boxed{4}. The provided answers are 7, 8, and 9, which are too large.", "4"),
        (
            "It is \\boxed{4}.\nThe mistakes in these two answers are:\n- 62: This is too large.",
            "4",
        ),
        ("It is \\boxed{4}. The mistake in them is clear. The correct answer is 5.", "5"),
        ("\\boxed{4}\n1. **Answer: 7**\n   - It is odd.\n2. **Answer: 9**\n   - It is odd.", "4"),
        ("\\boxed{4}\n\n5. **Answer:** $5$", "5"),
        ("1. The answer is $4$.\n2. The answer is $5$.", "5"),
        ("The answer is the number of ways, which is:\n\\[\n 12 \n\\]", "12"),
        ("The answer is the symmetry argument:", None),
        ("The correct answer is Angela with an average speed of 4 km/h.", "Angela"),
        ("**Answer:** Evelyn, since her speed is the greatest of all of the students.", "Evelyn"),
        ("The answer is not known because the graph of the speeds is missing.", None),
        ("The correct answer should be 1, as shown above.", "1"),
    ],
)
def test_the_answer_of_a_completion(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


@given(st.text(alphabet="\\boxed{}$ answeris5\n", max_size=200))
def test_no_text_is_too_strange(text: str) -> None:
    found = find_answer(text)
    assert found is None or found


@given(st.text(alphabet="abc123+-^_ ", min_size=1).filter(str.strip), st.integers(0, 5))
def test_a_box_gives_back_what_was_put_into_it(inside: str, depth: int) -> None:
    content = "{" * depth + inside + "}" * depth
    assert last_boxed(f"We see \\boxed{{{content}}} here.") == content.strip()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is $x+1", None),
        ("The answer is x+1", None),
        ("The answer is $x+1$", "x+1"),
        ("The answer is $x+1$. Now we", "x+1"),
        ("The answer is 42 because the triangle", "42"),
        (r"\boxed{4}. No, it is \boxed{5", None),
        (r"\boxed{4}. Let me check", "4"),
        ("x+1", None),
        ("**Final Answer**\n\nFirst,\nwe", None),
        ("The answer is $5$.\n" * 3 + "The answer is", "5"),
        (r"\boxed{4}. The answer here is that they", "4"),
        (r"\boxed{4}. The mistake in the given answers is that they suggest a root", "4"),
        (r"\boxed{4}. Therefore, the correct answer is", None),
        (r"Final answer: Since the angle $x$ is the same as the angle between", None),
        (r"Final answer: It is $x$ since the angle between", "x"),
    ],
)
def test_an_answer_that_was_cut_off(text: str, answer: str | None) -> None:
    assert find_answer(text, cut=True) == answer


QUESTION = "A box holds 12 red pens, and the answer is 3 for a box of blue ones. How many are red?"


@pytest.mark.parametrize(
    "echo",
    [
        QUESTION,
        QUESTION.removesuffix(" How many are red?"),
        "A box holds 12 red pens",
        "red pens, and the answer is 3 for a box",
    ],
)
def test_the_question_repeated_is_no_answer(echo: str) -> None:
    assert list(find_candidates(echo, prompt=QUESTION)) == []
    assert list(find_candidates(f"{echo}\nThe answer is 3", prompt=QUESTION)) != []


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


WORDS = (
    "The final answer is 5.", "answer:", "final", "ans", "#### 5", "答案是5", "means", "5", "\n",
    ".", "maybe", "Check", "gue\u017fs", "if", "an", "not", "the", "my", "mistake in", "two",
    "words", "No", "cannot", "don't", "how many", "find", "\u0130", "\u212a", "é", ",", "so",
    "\\boxed{7}",
)  # fmt: skip


@given(
    st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from(["", " ", "\n"]), st.booleans()
)
def test_what_a_word_rules_out_no_pattern_finds(words: list[str], space: str, cut: bool) -> None:
    text = space.join(words)
    quick = list(find_candidates(text, cut=cut))

    def hints(text: str) -> list[int]:
        return [match.start() for match in answer_extraction._HINT.finditer(text)]

    class Every:
        def isdisjoint(self, words: list[str]) -> bool:
            return False

    with (
        patch.object(answer_extraction, "_hints", hints),
        patch.object(answer_extraction, "_NOT_YET_FAR", Every()),
        patch.object(answer_extraction, "_DOUBTFUL", Every()),
    ):
        assert quick == list(find_candidates(text, cut=cut))
