from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import httpx
import pytest

from fttt.errors import RunError, UsageError
from fttt.judge.client import EmbeddedJudge, JudgeClient, find_judge
from fttt.judge.problem import Judgement, Problem, StdinProblem, Submission
from fttt.judge.sandbox import Sandbox

SUBMISSION = Submission(Problem("", "def check(f): pass", "f"), "def f(): return '\ud800'")
PASSED = {"passed": True, "status": "passed", "detail": "", "seconds": 0.25}


def ask(
    handler: Callable[[httpx.Request], httpx.Response], submission: Submission = SUBMISSION
) -> Judgement:
    async def run() -> Judgement:
        transport = httpx.MockTransport(handler)
        client = JudgeClient("http://judge", attempts=4, first_pause=0.001, transport=transport)
        try:
            return await client.judge(submission)
        finally:
            await client.close()
            await client.close()

    return asyncio.run(run())


def test_it_sends_the_problem_and_reads_the_verdict() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["completion"] == SUBMISSION.completion
        assert body["problem"]["entry_point"] == "f"
        return httpx.Response(200, json=PASSED)

    assert ask(handler) == Judgement("passed", "", 0.25)


def test_it_waits_longer_for_a_program_that_is_run_on_many_inputs() -> None:
    waited = []

    def answer(request: httpx.Request) -> httpx.Response:
        waited.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, json=Judgement("passed").to_json())

    many = StdinProblem(("1",) * 40, ("1",) * 40)
    for problem in (SUBMISSION.problem, many):
        ask(answer, Submission(problem, "print(1)"))
    assert waited == [120.0, 520.0]


def test_it_comes_back_after_a_full_queue_and_a_broken_connection() -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        if len(calls) == 1:
            return httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "full"})
        if len(calls) == 2:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=PASSED)

    assert ask(handler).passed
    assert len(calls) == 3


def test_it_waits_as_long_as_a_full_queue_asks_for() -> None:
    calls: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(time.monotonic())
        if len(calls) == 1:
            return httpx.Response(503, headers={"Retry-After": "1"}, json={"detail": "full"})
        return httpx.Response(200, json=PASSED)

    assert ask(handler).passed
    assert calls[1] - calls[0] >= 1


def test_a_judge_that_is_down_is_an_error_of_the_run() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(RunError, match=r"did not answer in 4 attempts \(refused\)"):
        ask(refuse)


ANSWERS = [
    httpx.Response(500, text="Internal Server Error"),
    httpx.Response(422, json={"detail": "the problem has no field"}),
    httpx.Response(200, text="hello"),
    httpx.Response(200, json={"passed": True}),
    httpx.Response(200, json={"passed": True, "status": "failed"}),
    httpx.Response(200, json=["passed"]),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.text[:20])
def test_what_is_no_verdict_is_an_error_of_the_run(answer: httpx.Response) -> None:
    with pytest.raises(RunError, match="the code judge at http://judge"):
        ask(lambda _: answer)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"passed": True, "result": 1}, "passed"),
        ({"passed": False, "result": 2}, "timeout"),
        ({"passed": False, "result": 3}, "failed"),
        ({"passed": True, "result": "passed"}, "passed"),
        ({"passed": False, "result": "timed out"}, "timeout"),
        ({"passed": False, "result": "failed: name 'x' is not defined"}, "failed"),
    ],
)
def test_a_published_judge_answers_less_and_is_understood(
    answer: dict[str, object], status: str
) -> None:
    assert ask(lambda _: httpx.Response(200, json=answer)).status == status


@pytest.mark.parametrize("answer", [{"passed": True, "result": 3}, {"passed": False, "result": 9}])
def test_a_published_judge_that_contradicts_itself_gives_no_verdict(
    answer: dict[str, object],
) -> None:
    with pytest.raises(RunError, match="gave no verdict"):
        ask(lambda _: httpx.Response(200, json=answer))


def test_a_judge_that_is_only_full_is_waited_for_beyond_the_attempts() -> None:
    calls, last = 0, httpx.Response(200, json=PASSED)

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        # As uvicorn's --limit-concurrency answers.
        return httpx.Response(503, text="Service Unavailable") if calls < 12 else last

    assert ask(handler).passed

    def broken(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(503, json={"detail": "no namespaces"})

    calls = 0
    with pytest.raises(RunError, match=r"in 4 attempts \(no namespaces\)"):
        ask(broken)
    assert calls == 4


def test_the_users_of_an_event_loop_share_its_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them ends it; whoever comes then has another one."""
    made: list[Sandbox] = []
    closed: list[Sandbox] = []

    class Counted(Sandbox):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        async def judge(self, submission: Submission) -> Judgement:
            return Judgement("passed")

        async def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr("fttt.judge.client.Sandbox", Counted)
    judges = [EmbeddedJudge() for _ in range(3)]

    async def ask() -> None:
        await asyncio.gather(*(judge.judge(SUBMISSION) for judge in judges[:2]))
        await judges[0].close()
        await judges[0].close()
        await judges[2].judge(SUBMISSION)
        await judges[1].close()
        assert (len(made), closed) == (1, [])
        await judges[2].close()
        assert closed == made
        await judges[0].judge(SUBMISSION)
        await judges[0].close()
        assert len(closed) == len(made) == 2

    asyncio.run(ask())


def test_the_address_comes_from_the_argument_then_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OJ_API", raising=False)
    assert isinstance(find_judge(), EmbeddedJudge)
    monkeypatch.setenv("OJ_API", "http://127.0.0.1:9999")
    found = find_judge()
    assert isinstance(found, JudgeClient)
    with pytest.raises(UsageError, match="'localhost:9999' is no http"):
        find_judge("localhost:9999")
