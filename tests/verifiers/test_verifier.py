"""The verifier protocol, and the verifiers that ``--verifier`` names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

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
        value = ":x" if kind in ("command", "python") else ""
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
