from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from fttt.errors import RunError
from fttt.judge.problem import Judgement, Submission
from fttt.judge.sandbox import Sandbox
from fttt.judge.service import MAX_BODY, create_app, serve

PROBLEM = {
    "prompt": "def add(a, b):\n",
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
    "entry_point": "add",
}
RIGHT = {"problem": PROBLEM, "completion": "    return a + b\n"}
SLEEP = {"problem": PROBLEM, "completion": "    import time\n    time.sleep(1000)\n"}


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, psutil.Process]]:
    """A judge served as the command serves it, and its process."""
    command = "from fttt.cli.judge import judge_app; judge_app()"
    arguments = ["serve", "--port", "0", "--workers", "2", "--limit-concurrency", "3"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            url = found[0]
            break
        assert ": holds" in line, line
    assert url, "it said where it listens"
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == 0:
                break
        time.sleep(0.1)
    yield url, psutil.Process(process.pid)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(20) is not None
    process.stdout.close()
    assert not psutil.wait_procs(children, timeout=10)[1], "it leaves nothing behind"


def test_the_published_protocol(service: tuple[str, psutil.Process]) -> None:
    answer = httpx.post(service[0], json=RIGHT, timeout=30)
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("seconds") > 0
    assert body == {"passed": True, "status": "passed", "detail": ""}
    wrong = {**RIGHT, "completion": "    return a - b\n"}
    body = httpx.post(service[0], json=wrong, timeout=30).json()
    assert not body["passed"]
    assert body["status"] == "failed"
    assert "AssertionError" in body["detail"]


BAD_REQUESTS = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b"\xff\xfe", 400, "not JSON"),
    (b"[" * 200_000, 400, "not JSON"),
    (b"[]", 422, "no object"),
    (b"{}", 422, 'no field "problem"'),
    (json.dumps({"problem": PROBLEM}).encode(), 422, 'no field "completion"'),
    (json.dumps({**RIGHT, "completion": 7}).encode(), 422, "no text"),
    (json.dumps({**RIGHT, "problem": "add"}).encode(), 422, "no object"),
    (json.dumps({**RIGHT, "problem": {"prompt": ""}}).encode(), 422, '"test"'),
    (json.dumps({**RIGHT, "problem": {**PROBLEM, "border": "none"}}).encode(), 422, "'none'"),
    (b" " * (MAX_BODY + 1), 413, "more than"),
]


@pytest.mark.parametrize(("body", "code", "words"), BAD_REQUESTS)
def test_a_bad_request_is_told_so(
    service: tuple[str, psutil.Process], body: bytes, code: int, words: str
) -> None:
    answer = httpx.post(service[0], content=body, timeout=30)
    assert answer.status_code == code
    found = answer.json()
    assert found["status"] == "error"
    assert not found["passed"]
    assert words in found["detail"]


ODD = ["", "\0", "\ud800", "é" * 10, "x = 1\n" * 1_700_000]


@pytest.mark.parametrize("completion", ODD, ids=["empty", "NUL", "surrogate", "accents", "10 MB"])
def test_an_odd_completion_is_a_failed_one(
    service: tuple[str, psutil.Process], completion: str
) -> None:
    content = json.dumps({**RIGHT, "completion": completion}).encode()
    answer = httpx.post(service[0], content=content, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["detail"]


def test_a_failing_test_may_say_what_utf8_cannot(service: tuple[str, psutil.Process]) -> None:
    problem = {**PROBLEM, "test": "def check(f):\n    raise ValueError('\\ud800')\n"}
    answer = httpx.post(service[0], json={**RIGHT, "problem": problem}, timeout=30)
    assert "\\ud800" in answer.json()["detail"]


def test_health_and_metrics(service: tuple[str, psutil.Process]) -> None:
    httpx.post(service[0], json=RIGHT, timeout=30)
    health = httpx.get(f"{service[0]}/healthz").json()
    assert health["status"] == "ok"
    assert health["layers"]["network"] == "holds"
    metrics = httpx.get(f"{service[0]}/metrics").text
    found = re.search(r'fttt_judge_verdicts_total\{status="passed"\} ([\d.]+)', metrics)
    assert found is not None
    assert float(found[1]) >= 1
    assert "fttt_judge_seconds_bucket" in metrics
    assert "fttt_judge_requests 0.0" in metrics


def test_a_client_that_goes_away_frees_its_place(service: tuple[str, psutil.Process]) -> None:
    url, process = service
    httpx.post(url, json=RIGHT, timeout=30)
    idle = len(process.children(recursive=True))
    for _ in range(4):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=SLEEP, timeout=httpx.Timeout(0.3))
    deadline = time.monotonic() + 10
    while len(process.children(recursive=True)) > idle:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert httpx.post(url, json=RIGHT, timeout=30).json()["passed"]


def test_a_full_queue_answers_503_with_retry_after(service: tuple[str, psutil.Process]) -> None:
    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30) as client:
            short = {**RIGHT, "completion": "    import time\n    time.sleep(0.5)\n    return 3\n"}
            return await asyncio.gather(*(client.post(service[0], json=short) for _ in range(6)))

    answers = asyncio.run(crowd())
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * 3 + [503] * 3
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["status"] == "error"


class BrokenSandbox(Sandbox):
    """One that cannot judge."""

    async def start(self) -> Any:
        raise RunError("no namespaces")

    async def judge(self, submission: Submission) -> Judgement:
        raise RunError("no namespaces")


def test_a_broken_sandbox_is_503_and_no_verdict() -> None:
    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(create_app(BrokenSandbox()))
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            return await client.post("/", json=RIGHT), await client.get("/healthz")

    judged, health = asyncio.run(ask())
    assert (judged.status_code, health.status_code) == (503, 503)
    assert judged.json()["detail"] == "no namespaces"


def test_a_taken_port_is_an_error_of_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"127.0.0.1:{port} .* choose another --port"):
            serve(
                Sandbox(workers=1),
                host="127.0.0.1",
                port=port,
                limit_concurrency=1,
                say=lambda _: None,
            )


def test_an_answer_on_an_open_connection_does_not_wait_for_an_acknowledgement(
    service: tuple[str, psutil.Process],
) -> None:
    with httpx.Client(timeout=30) as client:
        times = []
        for _ in range(10):
            begin = time.perf_counter()
            client.get(f"{service[0]}/healthz")
            times.append(time.perf_counter() - begin)
    assert min(times[1:]) < 0.03, "40 ms are the kernel's delayed acknowledgement"
