from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fttt.errors import RunError
from fttt.judge import service as module
from fttt.judge.problem import Judgement, Submission
from fttt.judge.sandbox import ExhaustedError, Sandbox
from fttt.judge.service import BOXES, MAX_BODY, create_app, serve

PROBLEM = {
    "prompt": "def add(a, b):\n",
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
    "entry_point": "add",
}
RIGHT = {"problem": PROBLEM, "completion": "    return a + b\n"}
SLEEP = {"problem": PROBLEM, "completion": "    import time\n    time.sleep(1000)\n"}


class BrokenSandbox(Sandbox):
    """One that cannot judge."""

    async def start(self) -> Any:
        raise RunError("no namespaces")

    async def judge(self, submission: Submission) -> Judgement:
        raise RunError("no namespaces")


@contextlib.contextmanager
def killed(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a process and those below it with the block, whatever comes of it."""
    try:
        yield
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, psutil.Process]]:
    """A judge served as the command serves it, and its process."""
    command = "from fttt.cli.services import judge_app; judge_app()"
    arguments = ["serve", "--port", "0", "--workers", "2", "--limit-concurrency", "3"]
    words = [sys.executable, "-c", command, *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process, killed(process):
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                url = found[0]
                break
            assert ": holds" in line, line
        assert url, "it said where it listens"
        yield url, psutil.Process(process.pid)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(120) is not None
    assert not psutil.wait_procs(children, timeout=60)[1], "it leaves nothing behind"


def test_the_published_protocol(service: tuple[str, psutil.Process]) -> None:
    answer = httpx.post(service[0], json=RIGHT, timeout=200)
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("seconds") > 0
    assert body.pop("result") == 1
    assert (body.pop("tests_passed"), body.pop("tests_total"), body.pop("failures")) == (1, 1, [])
    assert body == {"passed": True, "status": "passed", "detail": ""}
    wrong = {**RIGHT, "completion": "    return a - b\n"}
    body = httpx.post(service[0], json=wrong, timeout=200).json()
    assert not body["passed"]
    assert body["status"] == "failed"
    assert "AssertionError" in body["detail"]


def test_a_program_that_reads_standard_input(service: tuple[str, psutil.Process]) -> None:
    problem = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", "7"]}
    program = "print(sum(map(int, input().split())))"
    asked = {"problem": problem, "completion": program}
    body = httpx.post(service[0], json=asked, timeout=200).json()
    assert (body["passed"], body["tests_passed"], body["tests_total"]) == (True, 2, 2)
    wrong = {**asked, "completion": "print(3)"}
    body = httpx.post(service[0], json=wrong, timeout=200).json()
    assert (body["status"], body["tests_passed"], body["tests_total"]) == ("failed", 1, 2)
    assert (
        httpx.post(service[0], json={**asked, "problem": {"inputs": []}}, timeout=200).status_code
        == 422
    )


def test_the_published_client(service: tuple[str, psutil.Process]) -> None:
    """Its tests call the function by name; it reads ``passed``, and ``result`` as a number."""
    problem = {
        "prompt": "",
        "test": "\ndef check():\n    assert add(1, 2) == 3\n    assert add(0, 0) == 0\n",
        "entry_point": "",
    }
    for operator, passed, result in (("+", True, 1), ("-", False, 3)):
        code = f"def add(a, b):\n    return a {operator} b"
        body = {"problem": problem, "completion": code}
        answer = httpx.post(service[0], json=body, timeout=200).json()
        assert (answer["passed"], answer["result"]) == (passed, result)


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
    answer = httpx.post(service[0], content=body, timeout=200)
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
    answer = httpx.post(service[0], content=content, timeout=200)
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["detail"]


def test_a_failing_test_may_say_what_utf8_cannot(service: tuple[str, psutil.Process]) -> None:
    problem = {**PROBLEM, "test": "def check(f):\n    raise ValueError('\\ud800')\n"}
    answer = httpx.post(service[0], json={**RIGHT, "problem": problem}, timeout=200)
    assert "\\ud800" in answer.json()["detail"]


def test_health_and_metrics(service: tuple[str, psutil.Process]) -> None:
    httpx.post(service[0], json=RIGHT, timeout=200)
    health = httpx.get(f"{service[0]}/healthz", timeout=200).json()
    assert health["status"] == "ok"
    assert health["layers"]["network"] == "holds"
    metrics = httpx.get(f"{service[0]}/metrics", timeout=200).text
    found = re.search(r'fttt_judge_verdicts_total\{status="passed"\} ([\d.]+)', metrics)
    assert found is not None
    assert float(found[1]) >= 1
    assert "fttt_judge_seconds_bucket" in metrics
    assert "fttt_judge_requests 0.0" in metrics


def until(condition: Callable[[], bool]) -> None:
    """Wait for what stays once it is so."""
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def requests(url: str) -> int:
    """How many run or wait, by the service's own count."""
    found = re.search(r"fttt_judge_requests (\d+)", httpx.get(f"{url}/metrics", timeout=200).text)
    assert found is not None
    return int(found[1])


def test_a_client_that_goes_away_frees_its_place(service: tuple[str, psutil.Process]) -> None:
    url, process = service
    httpx.post(url, json=RIGHT, timeout=200)
    idle = len(process.children(recursive=True))
    for _ in range(2):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=SLEEP, timeout=httpx.Timeout(200, read=0.3))
    until(lambda: requests(url) == 0)
    until(lambda: len(process.children(recursive=True)) <= idle)
    assert httpx.post(url, json=RIGHT, timeout=200).json()["passed"]


def raw(url: str, data: bytes = b"") -> socket.socket:
    """A connection on which ``data`` was sent."""
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 200)
    connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def request_bytes(body: dict[str, Any], version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST / HTTP/{version}\r\nHost: judge\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


SHORT_SLEEP = {**RIGHT, "completion": "    import time\n    time.sleep(0.5)\n    return a + b\n"}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_has_closed_its_own_direction_gets_its_answer(
    service: tuple[str, psutil.Process], version: str
) -> None:
    connection = raw(service[0], request_bytes(SHORT_SLEEP, version))
    connection.shutdown(socket.SHUT_WR)
    answer = read_all(connection)
    if version == "1.1":
        interim, _, answer = answer.partition(b"\r\n\r\n")
        assert interim == b"HTTP/1.1 100 Continue"
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"passed":true' in answer


def test_an_upload_that_trickles_holds_no_place_and_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_UPLOAD_SECONDS", 0.5)

    class Judging(BrokenSandbox):
        async def start(self) -> Any:
            return None

        async def judge(self, submission: Submission) -> Judgement:
            return Judgement("passed")

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    async def ask() -> tuple[list[httpx.Response], httpx.Response]:
        transport = httpx.ASGITransport(create_app(Judging(), limit_concurrency=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            slow = [asyncio.create_task(client.post("/", content=trickle())) for _ in range(3)]
            await asyncio.sleep(0.1)
            meanwhile = await client.post("/", json=RIGHT)
            return await asyncio.gather(*slow), meanwhile

    slow, meanwhile = asyncio.run(ask())
    assert meanwhile.json()["passed"]
    assert [answer.status_code for answer in slow] == [408] * 3
    assert "one more for each MB" in slow[0].json()["detail"]


def test_more_large_uploads_at_once_than_memory_is_kept_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_UPLOADS", 1000)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(BrokenSandbox()))
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            return await client.post("/", content=b" " * 2000)

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"


SERVE = """
import resource, sys
from fttt.judge import service
service._IDLE_SECONDS = float(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
files = min(hard, int(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
from fttt.cli.services import judge_app
judge_app(["serve", "--port", "0", "--workers", "1"])
"""


@contextlib.contextmanager
def served(files: int, idle: float) -> Iterator[str]:
    """A judge that may have few open files, and closes idle connections soon; its address."""
    arguments = [sys.executable, "-c", SERVE, str(files), str(idle)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process, killed(process):
        assert process.stdout is not None
        found = (re.search(r"http://\S+", line) for line in process.stdout)
        yield next(match for match in found if match)[0]
        process.terminate()
        process.wait(120)


def test_without_descriptors_left_the_answer_is_503_and_idle_connections_are_closed() -> None:
    with served(files=90, idle=3.0) as url:
        for _ in range(10):  # a slow machine may have had the first closed before the last comes
            crowd = [raw(url) for _ in range(100)]
            with contextlib.suppress(httpx.TransportError):  # closed before the answer was read
                answer = httpx.post(url, json=RIGHT, timeout=200)
                if answer.status_code == 503:
                    break
            for connection in crowd:
                connection.close()
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert "no descriptors left" in answer.json()["detail"]
        crowd.append(raw(url, b"POST / HTTP/1.1\r\nHost: j"))
        for connection in crowd:
            assert b"HTTP/1.1 200" not in read_all(connection)
        assert httpx.post(url, json=RIGHT, timeout=200).json()["passed"]


def test_too_few_open_files_are_told_in_one_sentence() -> None:
    command = [sys.executable, "-m", "fttt", "judge", "serve", "--port", "0"]
    run = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode != 0
    words = " ".join((run.stdout + run.stderr).split())
    assert "the judge cannot serve with 40 open files" in words
    assert "ulimit -n" in words
    assert "Traceback" not in words


def test_a_server_that_imports_the_service_runs_it_in_several_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "fttt.judge.service:app", "--port", "0"]
    command += ["--workers", "2", "--limit-concurrency", "16"]
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stderr=file, env={**os.environ, BOXES: "1"}) as process,
        killed(process),
    ):
        until(lambda: "http://127.0.0.1:" in log.read_text() or process.poll() is not None)
        found = re.search(r"http://127.0.0.1:\d+", log.read_text())
        assert found is not None, log.read_text()
        url = found[0]
        until(lambda: serves(url) or process.poll() is not None)  # the first that has started
        children = psutil.Process(process.pid).children(recursive=True)
        for _ in range(6):
            assert httpx.post(url, json=RIGHT, timeout=200).json()["passed"]
        assert answers_at_once(url)
        process.terminate()
        process.wait(200)
    assert not psutil.wait_procs(children, timeout=60)[1], "it leaves nothing behind"


def serves(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return bool(httpx.get(f"{url}/healthz", timeout=200).json()["status"] == "ok")
    return False


def answers_at_once(url: str) -> bool:
    """Whether answers on an open connection wait for no acknowledgement, which comes after 40 ms.

    The first is acknowledged at once, and a busy machine takes its time for some of the others.
    """
    with httpx.Client(timeout=200) as client:
        client.get(f"{url}/healthz")
        for _ in range(100):
            begin = time.perf_counter()
            client.get(f"{url}/healthz")
            if time.perf_counter() - begin < 0.03:
                return True
    return False


def test_a_socket_that_does_not_listen_yet_will_answer_at_once() -> None:
    """As the first of several processes is handed it."""
    with socket.socket() as bound, socket.socket() as client:
        bound.bind(("127.0.0.1", 0))
        module._answer_at_once()
        bound.listen()
        client.settimeout(60)
        client.connect(bound.getsockname())
        with bound.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_server_that_imports_the_service_is_told_why_it_cannot_start() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "uvicorn", "fttt.judge.service:app", "--port", "0"],
        env={**os.environ, BOXES: "none"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode != 0
    assert f"error: {BOXES} is 'none'" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_full_queue_answers_503_with_retry_after(service: tuple[str, psutil.Process]) -> None:
    url = service[0]

    async def crowd() -> httpx.Response:
        async with httpx.AsyncClient(timeout=200) as client:
            sleepers = [asyncio.create_task(client.post(url, json=SLEEP)) for _ in range(3)]
            await asyncio.to_thread(until, lambda: requests(url) == 3)
            refused = await client.post(url, json=RIGHT)
            for sleeper in sleepers:
                sleeper.cancel()
            await asyncio.gather(*sleepers, return_exceptions=True)
            return refused

    refused = asyncio.run(crowd())
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["status"] == "error"
    until(lambda: requests(url) == 0)


def test_a_sandbox_without_descriptors_is_503_for_a_second() -> None:
    class Exhausted(BrokenSandbox):
        async def judge(self, submission: Submission) -> Judgement:
            raise ExhaustedError("too many open files")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Exhausted()))
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            return await client.post("/", json=RIGHT)

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


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
    assert answers_at_once(service[0])
