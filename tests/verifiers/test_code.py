"""Verdicts of programs, their scores, and what a model may read of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fttt.errors import RunError
from fttt.judge.problem import Judgement, StdinProblem, Submission, TestFailure
from fttt.types import JSON, Question, Verdict
from fttt.verifiers.code import CodeVerifier
from fttt.verifiers.verifier import Verifier

PROMPT = 'import math\n\n\ndef area(r):\n    """Return the area."""\n'
TEST = (
    "def check(candidate):\n"
    "    assert abs(candidate(1) - 3.14159) < 0.01\n"
    "    assert candidate(0) == 0\n"
    "    assert round(candidate(20)) == 1257, 'twenty makes 1257'\n"
)
VISIBLE = "def check(candidate):\n    area = candidate\n    assert area(0) == 0\n"
GOLD: dict[str, JSON] = {"prompt": PROMPT, "test": TEST, "entry_point": "area"}
BODY = "    return math.pi * r * r\n"
WHOLE = "def area(r):\n    return 3.14159 * r * r\n"


class Recorder:
    """A judge that says what it was told to, one answer after another, or is down."""

    def __init__(self, *answers: Judgement | RunError) -> None:
        self.answers = answers
        self.seen: list[Submission] = []
        self.closed = 0

    async def judge(self, submission: Submission) -> Judgement:
        answer = self.answers[min(len(self.seen), len(self.answers) - 1)]
        self.seen.append(submission)
        if isinstance(answer, RunError):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed += 1


def verify(judge: Recorder, completion: str, gold: JSON = GOLD) -> Verdict:
    verifier = CodeVerifier(judge=judge)
    return asyncio.run(verifier.verify(Question("q", "", gold), completion))


def block(code: str) -> str:
    return f"```python\n{code}```"


def test_verdicts_carry_what_the_judge_said() -> None:
    judge = Recorder(Judgement("passed", "", 0.5, 3, 3))
    assert verify(judge, block(WHOLE)) == Verdict(
        "correct", WHOLE, "", 0.5, "Your answer is correct.", 1.0, 3, 3
    )
    failed = verify(Recorder(Judgement("timeout", "too slow", 9.0, 1, 4)), block(WHOLE))
    assert failed == Verdict(
        "incorrect", WHOLE, "timeout: too slow", 9.0,
        "Your answer is incorrect: the program takes too long.", 0.25, 1, 4,
    )  # fmt: skip


def test_a_program_that_fails_outside_of_its_tests_has_not_the_full_score() -> None:
    verdict = verify(Recorder(Judgement("failed", "broke off", 0.1, 2, 2)), block(WHOLE))
    assert (verdict.score, verdict.tests_passed) == (0.0, 2)


def test_a_judge_without_counts_gives_a_score_of_all_or_nothing() -> None:
    for status, score in (("passed", 1.0), ("failed", 0.0)):
        verdict = verify(Recorder(Judgement(status)), block(WHOLE))  # type: ignore[arg-type]
        assert (verdict.score, verdict.tests_passed, verdict.tests_total) == (score, None, None)


def test_what_the_judge_cannot_judge_is_no_fault_of_the_program() -> None:
    verdict = verify(Recorder(Judgement("error", "the box was lost")), block(WHOLE))
    assert (verdict.outcome, verdict.score) == ("incorrect", None)
    assert verdict.detail == "the judge could not judge it: the box was lost"
    assert verdict.feedback == "Your answer could not be checked."
    broken = verify(Recorder(Judgement("passed")), block(WHOLE), {"prompt": ""})
    assert broken.detail.startswith("the judge could not judge it: the problem")
    assert 'no field "test"' in broken.detail


def test_prose_is_unanswered_and_not_judged() -> None:
    judge = Recorder(Judgement("passed"))
    for text in ("I do not know.", "", "   \n", "```python\n```", f"<think>{block(WHOLE)}"):
        verdict = verify(judge, text)
        assert (verdict.outcome, verdict.score) == ("unanswered", 0.0)
        assert verdict.feedback == "No answer was found in your response."
    assert judge.seen == []


def test_a_base_model_goes_on_in_mid_function() -> None:
    judge = Recorder(Judgement("passed"))
    assert verify(judge, BODY).correct
    assert judge.seen[0].completion == BODY


def test_an_import_from_the_future_stands_before_the_prompt() -> None:
    judge = Recorder(Judgement("passed"))
    assert verify(judge, block(f"from __future__ import annotations\n{WHOLE}")).correct
    problem = judge.seen[0].problem
    assert problem.prompt == f"from __future__ import annotations\n{PROMPT}"
    assert replace(problem, prompt=PROMPT).to_json().items() >= GOLD.items()


def test_a_judge_that_is_down_is_no_verdict() -> None:
    with pytest.raises(RunError, match="down"):
        verify(Recorder(RunError("down")), block(WHOLE))


def test_programs_that_differ_in_layout_vote_together() -> None:
    question = Question("q", "", GOLD)
    verifier = CodeVerifier()
    spaced = block(f"{WHOLE.replace('*', ' * ')}\n\n# That is all.\n")
    assert verifier.extract(question, spaced) == verifier.extract(question, block(WHOLE))
    assert verifier.extract(question, block(WHOLE)) != verifier.extract(question, BODY)
    assert verifier.extract(question, BODY) == BODY
    assert verifier.extract(question, "none") is None
    assert verifier.extract(Question("q", "", "no problem"), block(WHOLE)) is None


HIDDEN = TestFailure(2, 4, "assert round(candidate(20)) == 1257", "AssertionError: twenty 1257")
SHOWN = TestFailure(0, 3, "assert area(0) == 0", "AssertionError")
FAILED = Judgement("failed", "AssertionError: twenty 1257", 0.5, 2, 3, (HIDDEN,))


def test_feedback_is_what_the_visible_tests_show() -> None:
    gold = {**GOLD, "visible": VISIBLE}
    judge = Recorder(FAILED, Judgement("failed", "AssertionError", 0.25, 0, 1, (SHOWN,)))
    verdict = verify(judge, block(WHOLE), gold)
    assert [seen.problem.test for seen in judge.seen] == [TEST, VISIBLE]
    assert judge.seen[0].completion == judge.seen[1].completion
    assert "visible" not in judge.seen[0].problem.to_json()
    assert (verdict.seconds, verdict.tests_passed, verdict.tests_total) == (0.75, 2, 3)
    assert "1257" in verdict.detail
    assert verdict.feedback == (
        "Your answer is incorrect. The program fails\n"
        "```python\nassert area(0) == 0\n```\nAssertionError"
    )


def test_feedback_where_the_visible_tests_pass() -> None:
    verdict = verify(
        Recorder(FAILED, Judgement("passed")), block(WHOLE), GOLD | {"visible": VISIBLE}
    )
    assert verdict.feedback == (
        "Your answer is incorrect: the program passes the tests that you know, not all."
    )


def test_feedback_without_visible_tests_tells_whether_the_program_runs_at_all() -> None:
    judge = Recorder(FAILED, Judgement("passed"))
    assert verify(judge, block(WHOLE)).feedback == (
        "Your answer is incorrect: the program fails a test."
    )
    assert "assert" not in judge.seen[1].problem.test
    broken = Recorder(FAILED, Judgement("failed", "NameError: name 'radius' is not defined"))
    assert verify(broken, block(WHOLE)).feedback == (
        "Your answer is incorrect: NameError: name 'radius' is not defined"
    )


def test_a_program_whose_tests_are_all_visible_is_run_once() -> None:
    shown = replace(FAILED, failures=(SHOWN,))
    judge = Recorder(shown)
    assert "assert area(0) == 0" in verify(judge, block(WHOLE), GOLD | {"visible": TEST}).feedback
    assert len(judge.seen) == 1


THIEVES = {
    "what it was called with, in an exception": "def area(*r):\n    raise KeyError(r)\n",
    "what it was called with, by and by": (
        "seen = []\ndef area(r):\n    seen.append(r)\n    raise ValueError(repr(seen))\n"
    ),
    "what it was called with, printed": "def area(r):\n    print(r)\n    return 0\n",
    "nothing of it": "def area(r):\n    return 0\n",
    "it breaks off": "import os\ndef area(r):\n    os._exit(int(r))\n",
}


def test_no_program_gets_hidden_tests_into_its_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hidden tests are, the same program gets the same feedback."""
    monkeypatch.delenv("OJ_API", raising=False)
    other = TEST.replace("20", "30").replace("1257", "2827")

    async def judge(test: str) -> list[Verdict]:
        verifier = CodeVerifier()
        question = Question("q", "", GOLD | {"test": test, "visible": VISIBLE})
        texts = [block(code) for code in THIEVES.values()]
        found = await asyncio.gather(*(verifier.verify(question, text) for text in texts))
        await verifier.close()
        return found

    for verdict, second in zip(asyncio.run(judge(TEST)), asyncio.run(judge(other)), strict=True):
        assert verdict.outcome == second.outcome == "incorrect"
        assert verdict.feedback == second.feedback
        for hidden in ("20", "1257", "candidate"):
            assert hidden not in verdict.feedback


def test_the_embedded_judge_starts_by_itself_and_closes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OJ_API", raising=False)

    async def judge() -> list[Verdict]:
        verifier = CodeVerifier()
        assert isinstance(verifier, Verifier)
        question = Question("q", "", GOLD)
        wrong = WHOLE.replace("3.14159", "3")
        texts = [block(code) for code in (WHOLE, wrong)]
        found = await asyncio.gather(*(verifier.verify(question, text) for text in texts))
        await verifier.close()
        await verifier.close()
        return found

    right, wrong = asyncio.run(judge())
    assert (right.outcome, right.score, right.tests_passed) == ("correct", 1.0, 3)
    assert (wrong.outcome, wrong.tests_passed, wrong.tests_total) == ("incorrect", 1, 3)
    assert wrong.score == pytest.approx(1 / 3)


STDIN: dict[str, JSON] = {"inputs": ["1\n", "2\n"], "outputs": ["2", "4"], "visible": 1}
DOUBLE = "print(2 * int(input()))\n"


def test_a_program_that_prints_is_sent_with_its_inputs() -> None:
    judge = Recorder(Judgement("passed", "", 0.5, 2, 2))
    verdict = verify(judge, block(DOUBLE), STDIN)
    assert (verdict.outcome, verdict.score, verdict.tests_total) == ("correct", 1.0, 2)
    assert judge.seen == [Submission(StdinProblem(("1\n", "2\n"), ("2", "4")), DOUBLE)]


def test_only_tests_that_may_be_shown_are_in_feedback_on_output() -> None:
    shown = TestFailure(0, 0, "1\n", "line 1 is '1', expected '2'")
    hidden = TestFailure(1, 0, "2\n", "line 1 is '2', expected '4'")
    both = verify(Recorder(Judgement("failed", "d", 0, 0, 2, (shown, hidden))), DOUBLE, STDIN)
    assert "Input:\n```\n1\n```\nline 1 is '1', expected '2'" in both.feedback
    assert "4" not in both.feedback
    one = verify(Recorder(Judgement("failed", "d", 0, 1, 2, (hidden,))), DOUBLE, STDIN)
    assert one.score == 0.5
    assert one.feedback.endswith("passes the tests that you know, not all.")
    late = verify(Recorder(Judgement("timeout", "d", 0, 1, 2, (hidden,))), DOUBLE, STDIN)
    assert late.feedback == "Your answer is incorrect: the program takes too long."
    none = {name: value for name, value in STDIN.items() if name != "visible"}
    blind = verify(Recorder(Judgement("failed", "d", 0, 0, 2, (shown, hidden))), DOUBLE, none)
    assert blind.feedback == "Your answer is incorrect: the program fails a test."
