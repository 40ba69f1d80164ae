from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.function import FunctionVerifier
from fttt.verifiers.verifier import Verifier

QUESTION = Question("q", "What is 6 * 7?", {"answer": [42, "forty-two"]}, "6 * 7 = 42")


def judge(check: Callable[..., Any], *completions: str, **options: Any) -> list[Verdict]:
    async def run() -> list[Verdict]:
        verifier = FunctionVerifier(check, **options)
        assert isinstance(verifier, Verifier)
        verdicts = await asyncio.gather(*(verifier.verify(QUESTION, c) for c in completions))
        await verifier.close()
        return verdicts

    return asyncio.run(run())


@pytest.mark.parametrize("time_limit", [100.0, None])
def test_truth_decides(time_limit: float | None) -> None:
    word = "42"
    verdicts = judge(lambda text: word in text, "It is 42.", "It is 41.", time_limit=time_limit)
    assert [verdict.outcome for verdict in verdicts] == ["correct", "incorrect"]


@pytest.mark.parametrize("time_limit", [100.0, None])
def test_a_raise_is_an_incorrect_verdict(time_limit: float | None) -> None:
    def check(text: str) -> bool:
        raise ValueError(f"cannot read {text}")

    (verdict,) = judge(check, "42", time_limit=time_limit)
    assert verdict.outcome == "incorrect"
    assert verdict.detail == "the verifier raised ValueError: cannot read 42"
    assert verdict.failed


def test_a_hang_is_an_incorrect_verdict() -> None:
    def check(text: str) -> bool:
        while "hang" in text:
            pass
        return True

    verdicts = judge(check, "hang", "fine", "hang", "fine", time_limit=2.0, workers=2)
    assert [verdict.correct for verdict in verdicts] == [False, True, False, True]
    assert verdicts[0].detail == "the verifier took longer than its limit of 2 s"
    assert [verdict.failed for verdict in verdicts] == [True, False, True, False]


def test_an_exit_is_an_incorrect_verdict() -> None:
    (verdict,) = judge(lambda text: exit(0), "42")
    assert verdict.outcome == "incorrect"
    assert "SystemExit" in verdict.detail


def test_the_question_comes_second_where_it_is_asked_for() -> None:
    def check(text: str, question: Question) -> bool:
        assert question.prompt == QUESTION.prompt
        assert question.solution == QUESTION.solution
        assert isinstance(question.gold, dict)
        return text in map(str, question.gold["answer"])

    verdicts = judge(check, "42", "forty-two", "41")
    assert [verdict.correct for verdict in verdicts] == [True, True, False]


def test_more_arguments_may_have_defaults_and_others_are_refused() -> None:
    assert judge(lambda text, question=None, flag=True: flag, "42")[0].correct
    with pytest.raises(UsageError, match=r"check\(completion\)"):
        FunctionVerifier(lambda: True)
    with pytest.raises(UsageError, match="takes"):
        FunctionVerifier(lambda a, b, c: True)


def test_a_coroutine_function_will_do() -> None:
    async def check(text: str) -> bool:
        await asyncio.sleep(0)
        return text == "42"

    assert [verdict.correct for verdict in judge(check, "42", "41")] == [True, False]


def test_a_verdict_is_taken_as_it_is() -> None:
    def check(text: str) -> Verdict:
        if not text:
            return Verdict("unanswered", detail="empty")
        return Verdict("correct", extracted="42", detail="by hand")

    given, empty = judge(check, "42", "")
    assert (given.outcome, given.extracted, given.detail) == ("correct", "42", "by hand")
    assert empty.outcome == "unanswered"


def test_a_score_and_feedback_are_taken_as_they_are() -> None:
    def check(text: str) -> Verdict:
        return Verdict("incorrect", "41", "it is 42", feedback="Too low.", score=float(text))

    near, never = judge(check, "0.75", "nan")
    assert (near.score, near.feedback) == (0.75, "Too low.")
    assert (never.outcome, never.score) == ("incorrect", None)
    assert "give a finite number" in never.detail
    assert "finite" not in never.feedback  # an error of the verifier is for people


def test_feedback_is_made_of_the_answer_alone() -> None:
    (verdict,) = judge(lambda text: False, "I say 41", extract=lambda text: text[-2:])
    assert verdict.feedback == "Your answer 41 is incorrect."


def test_a_number_is_a_score_of_which_one_is_correct() -> None:
    low, whole, cost, none = judge(lambda text: float(text), "0.3", "1.0", "-2.5", "nan")
    assert (low.outcome, low.score) == ("incorrect", 0.3)
    assert (whole.outcome, whole.score) == ("correct", 1.0)
    assert (cost.outcome, cost.score) == ("incorrect", -2.5)
    assert (none.outcome, none.score) == ("incorrect", None)
    assert none.detail == "the verifier returned nan, which is no score"


def test_a_match_is_true_and_a_text_is_no_truth_value() -> None:
    assert judge(lambda text: re.search("4.", text), "42")[0].correct
    (verdict,) = judge(lambda text: "incorrect", "42")
    assert verdict.outcome == "incorrect"
    assert "no truth value" in verdict.detail


def test_without_a_limit_it_sees_live_state() -> None:
    seen: list[str] = []

    def check(text: str) -> bool:
        seen.append(text)
        return threading.current_thread() is not threading.main_thread()

    assert judge(check, "42", time_limit=None)[0].correct
    assert seen == ["42"]


def test_beside_threads_and_torch() -> None:
    """The fork works where the caller has run threads of its own and of torch."""
    torch = pytest.importorskip("torch")
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait) for _ in range(4)]
    for other in others:
        other.start()
    torch.ones(256, 256) @ torch.ones(256, 256)
    try:
        assert judge(lambda text: text == "42", *["42"] * 20) != []
        assert all(verdict.correct for verdict in judge(lambda text: text == "42", *["42"] * 20))
    finally:
        stop.set()
        for other in others:
            other.join()


def test_votes_need_a_function_of_their_own() -> None:
    verifier = FunctionVerifier(bool, time_limit=None)
    assert verifier.extract(QUESTION, "42") is None
    verifier = FunctionVerifier(bool, time_limit=None, extract=lambda text: text.strip())
    assert verifier.extract(QUESTION, " 42 ") == "42"
