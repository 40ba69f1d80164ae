from __future__ import annotations

import asyncio

import pytest

from fttt.errors import RunError
from fttt.judge.problem import Judgement, Submission
from fttt.types import Question, Verdict
from fttt.verifiers.base import Verifier
from fttt.verifiers.code import CodeVerifier, completion_for, extract_code

PROMPT = 'import math\n\n\ndef area(r):\n    """Return the area."""\n'
TEST = "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 0.01\n"
GOLD = {"prompt": PROMPT, "test": TEST, "entry_point": "area"}
BODY = "    return math.pi * r * r\n"
WHOLE = "def area(r):\n    return 3.14159 * r * r\n"

EXTRACTED = [
    (f"Here:\n```python\n{WHOLE}```\nDone.", WHOLE),
    (f"```python\nwrong()\n```\nBetter:\n```Python\n{WHOLE}```", WHOLE),
    (f"```python\n{WHOLE}```\nIt prints\n```\n3.14\n```", WHOLE),
    (f"```\n{WHOLE}```", WHOLE),
    (f"~~~py\n{WHOLE}~~~", WHOLE),
    (f"````python\n{WHOLE}````", WHOLE),
    (f"```python\n{WHOLE}", WHOLE),
    ("1. So\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
    (f"```python\n{BODY}```", BODY),
    (WHOLE, WHOLE),
    ("Just add them: def is a keyword.", None),
    ("```python\n```", None),
    ("", None),
    ("42", None),
]


@pytest.mark.parametrize(("completion", "code"), EXTRACTED)
def test_the_last_program_is_found(completion: str, code: str | None) -> None:
    assert extract_code(completion) == code


def run(prompt: str, entry: str, code: str) -> object:
    space: dict[str, object] = {}
    exec(prompt + completion_for(prompt, entry, code), space)
    return space[entry](1)  # type: ignore[operator]


WAYS = {
    "the body alone": BODY,
    "the body without its indentation": "return math.pi * r * r",
    "the whole function": WHOLE,
    "with a future import": f"from __future__ import annotations\n{WHOLE}",
    "using the prompt's import": "def area(r):\n    return math.pi\n",
    "helpers before it": f"def square(x):\n    return x * x\n\n{WHOLE}",
    "a lambda": "area = lambda r: 3.14159",
    "a class of that name": "class area:\n    def __new__(cls, r):\n        return 3.14159\n",
}
PROMPTS = {
    "with a docstring": PROMPT,
    "without a body": "import math\ndef area(r):\n",
    "without a last line end": PROMPT.rstrip(),
    "in a method's depth": "import math\nif True:\n    pass\ndef area(r):\n    # think\n",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("code", WAYS.values(), ids=WAYS)
def test_every_way_to_write_it_becomes_the_right_program(prompt: str, code: str) -> None:
    assert run(prompt, "area", code) == pytest.approx(3.14159, abs=1e-4)


def test_without_a_prompt_the_code_stays_as_it_is() -> None:
    assert completion_for("", "area", WHOLE) == WHOLE


class Recorder:
    """A judge that passes everything, or is down."""

    def __init__(self, answer: Judgement | RunError) -> None:
        self.answer = answer
        self.seen: list[Submission] = []
        self.closed = 0

    async def judge(self, submission: Submission) -> Judgement:
        self.seen.append(submission)
        if isinstance(self.answer, RunError):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.closed += 1


def verify(judge: Recorder, completion: str, gold: object = GOLD) -> Verdict:
    verifier = CodeVerifier(judge=judge)
    return asyncio.run(verifier.verify(Question("q", "", gold), completion))  # type: ignore[arg-type]


def test_verdicts_carry_what_the_judge_said() -> None:
    judge = Recorder(Judgement("passed", "", 0.5))
    assert verify(judge, f"```python\n{WHOLE}```") == Verdict("correct", WHOLE, "", 0.5)
    failed = verify(Recorder(Judgement("timeout", "too slow", 9.0)), f"```python\n{WHOLE}```")
    assert failed == Verdict("incorrect", WHOLE, "timeout: too slow", 9.0)


def test_prose_is_unanswered_and_not_judged() -> None:
    judge = Recorder(Judgement("passed"))
    for text in ("I do not know.", "", "   \n", "```python\n```"):
        assert verify(judge, text).outcome == "unanswered"
    assert judge.seen == []


def test_a_base_model_goes_on_in_mid_function() -> None:
    judge = Recorder(Judgement("passed"))
    assert verify(judge, BODY).correct
    assert judge.seen[0].completion == BODY


def test_a_judge_that_is_down_is_no_verdict() -> None:
    with pytest.raises(RunError, match="down"):
        verify(Recorder(RunError("down")), f"```python\n{WHOLE}```")


def test_a_broken_problem_says_so() -> None:
    verdict = verify(Recorder(Judgement("passed")), f"```python\n{WHOLE}```", {"prompt": ""})
    assert verdict.outcome == "incorrect"
    assert 'no field "test"' in verdict.detail


def test_the_embedded_judge_starts_by_itself_and_closes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OJ_API", raising=False)

    async def judge() -> list[str]:
        verifier = CodeVerifier()
        assert isinstance(verifier, Verifier)
        question = Question("q", "", GOLD)
        wrong = WHOLE.replace("3.14159", "3")
        texts = [f"```python\n{code}```" for code in (WHOLE, wrong)]
        found = await asyncio.gather(*(verifier.verify(question, text) for text in texts))
        await verifier.close()
        await verifier.close()
        return [verdict.outcome for verdict in found]

    assert asyncio.run(judge()) == ["correct", "incorrect"]
