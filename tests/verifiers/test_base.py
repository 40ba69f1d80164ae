"""Verifiers that ask whether a completion was cut off, and those that do not."""

from __future__ import annotations

import asyncio
from typing import Any

from fttt.types import Question, Verdict
from fttt.verifiers.base import Verifier, extract_answer, verify_completion

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
