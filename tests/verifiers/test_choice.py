"""Which option a completion chooses: every way to say so, and texts that choose none."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.types import Question
from fttt.verifiers.choice import ChoiceVerifier, find_choice, read_options

PROMPT = """Which organelle makes most of a cell's ATP?

(A) the ribosome
(B) the mitochondrion
(C) 12 m/s
(D) a good guess

Think, then end with the line "The answer is (X)", where X is the letter of the right option."""

CHOOSE_B = [
    "The answer is (B)",
    "The answer is (B).",
    "the answer is B",
    "The answer is: B.",
    "**The answer is (B)**",
    "The answer is **(B)**.",
    "The correct answer is **B**, because it makes ATP.",
    "The answer is (b).",
    "Answer: B",
    "**Answer:** B",
    "Answer: b",
    "ANSWER: (B)",
    "Answer: **B) the mitochondrion**",
    'Answer: "B"',
    "Answer: `B`",
    "The answer is 'B'.",
    "The answer is [B]",
    "<answer>B</answer>",
    "<answer> (B) the mitochondrion </answer>",
    "### Final Answer\n\n**B**",
    "## Answer\n(B) the mitochondrion",
    "Final answer: option B.",
    "The final answer is $\\boxed{B}$.",
    "\\boxed{B}",
    "\\boxed{\\text{B}}",
    "\\boxed{\\textbf{(B)}}",
    "\\boxed{\\mathrm{B}}.",
    "\\boxed{(B)\\ \\text{the mitochondrion}}",
    "$$\\boxed{\\text{B. the mitochondrion}}$$",
    "\\boxed B",
    "The answer is $\\text{(B)}$.",
    "The answer is \\(B\\).",
    "Therefore, the answer is:\n\n(B) the mitochondrion",
    "The answer is option B.",
    "The answer is most likely (B).",
    "The answer is B: the mitochondrion.",
    "The answer is B the mitochondrion.",
    "The answer is B - the mitochondrion",
    "The answer is the mitochondrion.",
    "The answer is The Mitochondrion",
    "The answer is (B), since (A) makes proteins.",
    "The answer is (B). (A) makes proteins, (C) is a speed and (D) is a guess.",
    "The correct option is B.",
    "The correct answer choice is (B).",
    "So the right choice is (B), the mitochondrion.",
    "Option B is correct.",
    "(A) is wrong. Therefore (B) is the correct answer.",
    "I choose B.",
    "(B) is the answer.",
    "B is the answer, I think.",
    "So the answer would be B.",
    "(A) makes proteins.\nTherefore, B.",
    "The answer is (B) because option (C) is incorrect.",
    "The answer is B (the mitochondrion).",
    "The answer is Option B: A and C make no ATP",
    "The correct answer is:\n\nB) the mitochondrion\n\nThis is because it makes ATP.",
    "**Final Answer**\n\n\\boxed{B}",
    "Answer: B) the mitochondrion\n\nExplanation: A is wrong, since it makes proteins.",
    "I would go with option (B).",
    "B",
    "B.",
    "(B)",
    "**B**",
    "B) the mitochondrion",
    "(A) makes proteins.\n(C) is a speed.\n\nB",
    "First I thought the answer is (A). No, wait. The answer is (B).",
    "The answer is (A)?\n\nNo: it makes proteins. The answer is (B).",
    "<think>The answer is (A)</think>The answer is (B)",
    "</think>\n\nB",
    "Let's look at the options:\n(A) bad\n(B) good\n(C) bad\n(D) bad\nThe answer is (B)",
    "The answer is (B). I hope that helps!",
    "\u7b54\u6848\u662fB",
    "The answer is not (A) but (B).",
    "The answer isn't A, it's B.",
    "The answer is neither (A) nor (C); it is (B).",
    "The answer is: A is wrong, B is right.",
    "Answer: A and C are both wrong, so option B is correct",
    "(A) the ribosome is wrong. (B) the mitochondrion is the correct answer.",
    "(B) The mitochondrion is the correct answer. (A) the ribosome is not the correct answer.",
    "B. the mitochondrion is correct.",
    "The answer is B rather than A",
    "The best answer is B\nThe worst answer is A",
]

CHOOSE_NONE = [
    "",
    "I cannot answer this question.",
    "I'm sorry, but I can't help with that.",
    "None of the options is right.",
    "The answer is none of the above.",
    "The answer is unclear.",
    "The answer is (X)",
    "The answer is (E)",  # there is no such option
    "The answer is Z",
    "(A) the ribosome\n(B) the mitochondrion\n(C) 12 m/s\n(D) a good guess",
    "A\nB",
    "A. the ribosome\nB. the mitochondrion",
    "Options: A, B, C, D",
    "(A) the ribosome\n(B) the mitochondrion\nC.",
    "The options are (A), (B), (C) and (D).",
    "<think>The answer is (B)",
    "<think>The answer is (B)</think>",
    "Is the answer (B)?",
    "Is option B correct?",
    "If option B is correct, the cell makes ATP.",
    "Maybe the answer is (B).",
    "It is not true that (B) is the best.",
    "The answer is a matter of taste.",
    "The answer is A good question to ask.",
    "Be careful.",
    "B is for biology, which I like.",
    "Bananas",
    "Is (B) the answer?",
    "(B) is not the answer.",
    "Whether (B) is the answer is unclear.",
    "(B) something else entirely",
    "The answer is (B) is incorrect.",
    "The answer is B isn't right.",
    "Not even B is correct.",
    "Which is not the answer: (B)",
    "The answer is not (B) but unknown.",
    'Think, then end with the line "The answer is (X)", where X is the letter of the right option.',
]

CHOOSE_SEVERAL = [
    "The answer is (A) or (B).",
    "The answer is A and B.",
    "The answer is both A and B.",
    "The answer is A, B, C, D",
    "The answer is (A)(B)(C)(D)",
    "The answer is (A), (B), (C) and (D).",
    "\\boxed{A, B}",
    "\\boxed{A} or \\boxed{B}",
    "Answer: A/B",
    "The answer is either (A) or (B).",
]

CHOOSE_ANOTHER = [
    "The answer is (A)",
    "The answer is (B). No, wait, I forgot something. The answer is (C).",
    "The answer is (A). (B) is wrong.",
    "Option A is correct, option B is not correct.",
    "The answer is (D), not (B).",
    "\\boxed{C}",
    "The answer is 12 m/s",
    "The answer is a good guess",
    "The answer is (D) rather than (B)",
    "The answer is A; B is wrong",
    "The answer is A, B is wrong",
    "The answer is not (B) but (C).",
    "(B) the mitochondrion is wrong. (C) 12 m/s is correct.",
    "The answer is C (not B)",
]


def choose(text: str, *, cut: bool = False) -> tuple[str, ...] | None:
    return find_choice(text, prompt=PROMPT, cut=cut)


@pytest.mark.parametrize("text", CHOOSE_B)
def test_it_chooses_b(text: str) -> None:
    assert choose(text) == ("B",)


@pytest.mark.parametrize("text", [*CHOOSE_NONE, PROMPT])
def test_it_chooses_none(text: str) -> None:
    assert choose(text) is None


@pytest.mark.parametrize("text", CHOOSE_SEVERAL)
def test_it_chooses_several(text: str) -> None:
    found = choose(text)
    assert found is not None
    assert len(found) > 1


@pytest.mark.parametrize("text", CHOOSE_ANOTHER)
def test_it_chooses_another(text: str) -> None:
    found = choose(text)
    assert found is not None
    assert len(found) == 1
    assert found != ("B",)


@pytest.mark.parametrize(
    "text", ["The answer is B", "Answer: B", "The answer is", "\\boxed{B", "B"]
)
def test_a_letter_at_the_length_limit_may_be_the_beginning_of_a_word(text: str) -> None:
    assert choose(text, cut=True) is None


@pytest.mark.parametrize("text", ["The answer is (B)", "\\boxed{B}", "The answer is (B), which ma"])
def test_a_closed_letter_counts_at_the_length_limit(text: str) -> None:
    assert choose(text, cut=True) == ("B",)


def test_ten_options_and_the_word_i() -> None:
    prompt = "\n".join(f"{letter}. thing {n}" for n, letter in enumerate("ABCDEFGHIJ"))
    assert find_choice("The answer is (J).", prompt=prompt) == ("J",)
    assert find_choice("The answer is I.", prompt=prompt) == ("I",)
    assert find_choice("The answer is I think unknown", prompt=prompt) is None
    assert find_choice("The answer is (K).", prompt=prompt) is None
    assert find_choice("The answer is thing 9.", prompt=prompt) == ("J",)


def test_without_options_in_the_prompt_the_letters_go_to_j() -> None:
    assert find_choice("The answer is (J)") == ("J",)
    assert find_choice("The answer is (K)") is None


def test_options_are_read_from_the_last_list_of_a_prompt() -> None:
    few_shot = "Q: one\n(A) x\n(B) y\nA: (B)\n\nQ: two\nA. 1\nB. 2\nC. 3\n"
    assert read_options(few_shot) == {"A": "1", "B": "2", "C": "3"}
    assert read_options("A. only one") == {}
    assert read_options("no list") == {}


def verify(text: str, gold: str = "B") -> tuple[str, str | None]:
    verdict = asyncio.run(ChoiceVerifier().verify(Question("q", PROMPT, gold), text))
    return verdict.outcome, verdict.extracted


def test_a_gold_that_is_no_letter_is_a_failure_of_the_verifier() -> None:
    question = Question("q", PROMPT, "42")
    verdict = asyncio.run(ChoiceVerifier().verify(question, "The answer is (B)."))
    assert (verdict.outcome, verdict.failed) == ("incorrect", True)


def test_verdicts() -> None:
    assert verify("The answer is (B)") == ("correct", "B")
    assert verify("The answer is (B)", "(b)") == ("correct", "B")
    assert verify("The answer is (A)") == ("incorrect", "A")
    assert verify("The answer is (A) or (B)") == ("incorrect", "A, B")
    assert verify("No idea.") == ("unanswered", None)
    assert verify("The answer is (B)", "mitochondrion")[0] == "incorrect"


def test_feedback_holds_the_chosen_letter_only() -> None:
    question = Question("q", PROMPT, "B")
    verdict = asyncio.run(ChoiceVerifier().verify(question, "The answer is (C)"))
    assert verdict.feedback == "Your answer C is incorrect."


@pytest.mark.parametrize(
    "text",
    [
        "The answer is (" * 20_000,
        "(A) or " * 30_000,
        "\\text{" * 40_000,
        "B\n" * 60_000,
        "The answer is A" + " and B" * 400,
        "The answer isn't A " * 3_000,
    ],
)
def test_whatever_was_written_is_read_in_bounded_time(text: str) -> None:
    begin = time.process_time()
    choose(text)
    assert time.process_time() - begin < 5


@given(st.text(max_size=300))
def test_no_text_breaks_the_search(text: str) -> None:
    found = choose(text)
    assert found is None or set(found) <= set("ABCD")
