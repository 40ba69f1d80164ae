"""The verifier protocol, and the verifiers that ``--verifier`` names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.code import CodeVerifier
from fttt.verifiers.command import CommandVerifier
from fttt.verifiers.function import FunctionVerifier
from fttt.verifiers.math import MathVerifier
from fttt.verifiers.number import NumberVerifier
from fttt.verifiers.regex import RegexVerifier
from fttt.verifiers.verifier import (
    CHOICES,
    Verifier,
    choose_verifier,
    extract_answer,
    split_choice,
    verify_completion,
)

QUESTION = Question("q", "", "7")


class Plain:
    """A user's verifier, as the pages show it."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        return Verdict("correct", completion)

    def extract(self, question: Question, completion: str) -> str | None:
        return completion

    async def close(self) -> None:
        pass


class Asking(Plain):
    async def verify(self, question: Question, completion: str, *, cut: bool = False) -> Verdict:
        return Verdict("unanswered" if cut else "correct")

    def extract(self, question: Question, completion: str, *, cut: bool = False) -> str | None:
        return None if cut else completion


class Forwarding(Asking):
    async def verify(self, *told: Any, **more: Any) -> Verdict:
        return await super().verify(*told, **more)


def judged(verifier: Verifier, *, cut: bool) -> tuple[str, str | None]:
    verdict = asyncio.run(verify_completion(verifier, QUESTION, "7", cut=cut))
    return verdict.outcome, extract_answer(verifier, QUESTION, "7", cut=cut)


def test_only_a_verifier_that_asks_is_told() -> None:
    for verifier in (Plain(), Asking(), Forwarding()):
        assert judged(verifier, cut=False) == ("correct", "7")
    assert judged(Plain(), cut=True) == ("correct", "7")
    assert judged(Asking(), cut=True) == judged(Forwarding(), cut=True) == ("unanswered", None)


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ("number", NumberVerifier),
        ("number-strict", NumberVerifier),
        ("math", MathVerifier),
        ("math-strict", MathVerifier),
        ("regex", RegexVerifier),
        ("regex:^a:b$", RegexVerifier),
        ("command:test 1 = 1", CommandVerifier),
        ("python:os.path:exists", FunctionVerifier),
        ("code", CodeVerifier),
    ],
)
def test_each_choice(choice: str, kind: type) -> None:
    verifier = choose_verifier(choice, time_limit=3.0)
    assert isinstance(verifier, kind)
    asyncio.run(verifier.close())


def test_the_rule_of_mathematics() -> None:
    for choice, rule in (("math", "equivalence"), ("math-strict", "strict")):
        verifier = choose_verifier(choice)
        assert isinstance(verifier, MathVerifier)
        assert verifier.rule == rule


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("numbers", "The verifiers are number, number-strict, math"),
        ("", "choose from"),
        ("number:3", "takes no value"),
        ("command:", "incomplete"),
        ("command", "incomplete"),
        ("python:", "incomplete"),
        ("python:os", "incomplete"),
        ("python:os:no_such", "has no verifier function 'no_such'"),
        ("python:os:sep", "is no verifier function but '/'"),
        ("python:no_such_module_7:f", "cannot be imported"),
        ("regex:(", "no regular expression"),
    ],
)
def test_what_cannot_be_chosen(choice: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_verifier(choice)


def test_every_kind_is_described() -> None:
    for kind in CHOICES:
        value = ":x" if kind in ("command", "python", "reward", "llm") else ""
        assert split_choice(kind + value)[0] == kind
        assert CHOICES[kind]


def test_a_module_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_check_7.py").write_text(
        "def right(text, question):\n    return text == question.gold\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    async def run() -> list[bool]:
        verifier = choose_verifier("python:my_check_7:right")
        question = Question("q", "", "42")
        found = [(await verifier.verify(question, text)).correct for text in ("42", "41")]
        await verifier.close()
        return found

    assert asyncio.run(run()) == [True, False]


LOOKALIKES = {
    "i": "\u0131İᵢⁱ", "s": "\u017f", "k": "\u212a", "0": "０٠⓪", "1": "¹₁①❶፩", "2": "²₂②❷፪",
    "5": "⁵₅❺", "/": "\u2044\u2215", "-": "\u2212⁻", "(": "⁽\uff08", " ": "\u00a0\u200b",
}  # fmt: skip
ANSWERS = (
    "The final answer is 5 million", "\\boxed{\\frac12}", "\\boxed{5\\text{ kilometers}}",
    "The final answer is negative 5 percent", "\\boxed{2^{10}}", "The final answer is 1/2 dozen",
    "The final answer is ¹/₁₂₃₄₅₆₇₈₉₀", "\\boxed{x_{1} = 2}", "\\boxed{5!}", "It is 7:05 p.m.",
)  # fmt: skip


@given(st.sampled_from(ANSWERS), st.data())
def test_no_character_of_a_completion_makes_a_verifier_raise(
    text: str, data: st.DataObject
) -> None:
    """Letters and digits that look, or count for Python, like those of a number are none."""
    at = data.draw(st.lists(st.integers(0, len(text) - 1), max_size=6))
    written = list(text)
    for place in at:
        others = LOOKALIKES.get(written[place])
        written[place] = data.draw(st.sampled_from(others)) if others else written[place]
    completion = "".join(written)
    for verifier in (NumberVerifier(), MathVerifier()):
        verifier.extract(QUESTION, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "The final answer is 5 m\u0131llion",
        "The final answer is 5 mİllion",
        "The final answer is ¹/₁₂₃₄₅₆₇₈₉₀",
        "\\boxed{\\frac❶2}",
        "\\boxed{\\frac፩2}",
    ],
)
def test_signs_that_are_no_digits_or_letters_of_a_number_are_judged(completion: str) -> None:
    async def outcomes() -> list[str]:
        found = []
        for verifier in (NumberVerifier(), MathVerifier()):
            found.append((await verifier.verify(QUESTION, completion)).outcome)
            await verifier.close()
        return found

    assert "correct" not in asyncio.run(outcomes())
