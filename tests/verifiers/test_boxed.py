from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.verifiers.boxed import find_answer, last_boxed


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
    ],
)
def test_the_last_box(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


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
