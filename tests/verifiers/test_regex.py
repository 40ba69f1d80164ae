from __future__ import annotations

import asyncio

import pytest

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.regex import RegexVerifier
from fttt.verifiers.verifier import Verifier

QUESTION = Question("q", "")


def judge(
    pattern: str | None, cases: list[tuple[str, str]], time_limit: float = 100.0
) -> list[Verdict]:
    """Verdicts on (gold, completion)."""

    async def run() -> list[Verdict]:
        verifier = RegexVerifier(pattern, time_limit=time_limit)
        assert isinstance(verifier, Verifier)
        verdicts = [await verifier.verify(Question("q", "", gold), text) for gold, text in cases]
        assert verifier.extract(QUESTION, "x") is None
        await verifier.close()
        return verdicts

    return asyncio.run(run())


def test_the_gold_is_the_pattern_or_one_is_given() -> None:
    verdicts = judge(
        None, [(r"\b4[0-9]\b", "It is 42."), (r"^42$", "It is 42."), ("(?i)YES", "yes")]
    )
    assert [verdict.correct for verdict in verdicts] == [True, False, True]
    assert verdicts[0].extracted == "42"
    assert "no match" in verdicts[1].detail
    assert [v.correct for v in judge(r"^\d+$", [("", "42"), ("", "x")])] == [True, False]


def test_a_catastrophic_pattern_costs_its_limit() -> None:
    slow, fine = judge(None, [(r"^(a+)+$", "a" * 60 + "b"), ("b$", "ab")], time_limit=2.0)
    assert slow.outcome == "incorrect"
    assert "took longer than its limit of 2 s" in slow.detail
    assert (slow.failed, fine.failed) == (True, False)
    assert fine.correct


def test_a_bad_pattern_is_said() -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        RegexVerifier("(")
    (verdict,) = judge(None, [("(", "x")])
    assert verdict.outcome == "incorrect"
    assert "unterminated" in verdict.detail
