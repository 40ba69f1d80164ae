from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import RunError
from fttt.verifiers import worker_pool as module
from fttt.verifiers.worker_pool import JobError, WorkerPool
from fttt.verifiers.worker_process import send


def run(job: Callable[[Any], Any] | str, *requests: Any, **options: Any) -> list[Any]:
    """What a pool answers to requests made at once; its failures as text."""

    async def ask() -> list[Any]:
        pool = WorkerPool(job, **{"time_limit": 100.0, "workers": 2} | options)
        answers = await asyncio.gather(*map(pool.run, requests), return_exceptions=True)
        await pool.close()
        return [str(a) if isinstance(a, JobError) else a for a in answers]

    return asyncio.run(ask())


def alive(pid: int) -> bool:
    """Whether a process runs (one that waits to be reaped does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60.0
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60.0
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_a_closure_sees_what_surrounds_it() -> None:
    offset = 40
    assert run(lambda number: number + offset, 1, 2, 3) == [41, 42, 43]


def test_a_named_job_runs_in_a_fresh_interpreter() -> None:
    assert run("fttt.verifiers.regex:search", ["b+", "abbc"], ["x", "abc"]) == ["bb", None]


def test_what_a_job_runs_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "My_Secret"]
    plain = ["PATH_OF_KEYBOARD", "TOKENIZERS_PARALLELISM", "MONKEY", "SECRETARY"]
    for name in (*secret, *plain):
        monkeypatch.setenv(name, "it")
    asked = " ".join(f'"${{{name}-}}"' for name in (*secret, *plain))
    command = f"printf '<%s>' {asked}"
    shown = "<>" * len(secret) + "<it>" * len(plain)
    request = {"command": command, "completion": "", "variables": {}}
    assert run("fttt.verifiers.command:run", request) == [[0, shown]]
    assert run(lambda line: subprocess.check_output(line, shell=True, text=True), command) == [
        shown
    ]
    assert os.environ["HF_TOKEN"] == "it"


def test_failures_say_why_and_spare_the_neighbours() -> None:
    def job(what: str) -> str:
        if what == "raise":
            raise ValueError("no good")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":
            os._exit(3)
        if what == "hang":
            while True:
                pass
        return what

    answers = run(job, "a", "raise", "b", "die", "c", "leave", "d", "hang", "e", time_limit=3.0)
    assert answers == [
        "a",
        "raised ValueError: no good",
        "b",
        "died (signal 9)",
        "c",
        "died (exit status 3)",
        "d",
        "took longer than its limit of 3 s",
        "e",
    ]


def test_a_job_that_resists_is_ended_all_the_same() -> None:
    def job(_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(0.01)

    assert run(job, None, time_limit=0.3) == ["took longer than its limit of 0.3 s"]


SPIN = "import os\nos.sched_setaffinity(0, [{place}])\nprint(flush=True)\nwhile True: pass"


@pytest.mark.parametrize("apart", [False, True])
def test_what_a_job_waits_for_a_processor_does_not_count(apart: bool) -> None:
    """It runs for less than its limit, and much longer by the clock; also in a child of its own."""
    place = min(os.sched_getaffinity(0))

    def work() -> None:
        os.sched_setaffinity(0, [place])
        begun = time.process_time()
        while time.process_time() - begun < 0.8:
            pass

    def job(_: Any) -> str:
        if not apart:
            work()
        elif (child := os.fork()) == 0:
            work()
            os._exit(0)
        else:
            os.waitpid(child, 0)
        return "done"

    words = [sys.executable, "-c", SPIN.format(place=place)]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        begun = time.monotonic()
        assert run(job, None, time_limit=1.0) == ["done"]
        assert time.monotonic() - begun > 1.0
    finally:
        for other in others:
            other.kill()
            other.wait()
            assert other.stdout is not None
            other.stdout.close()


@pytest.mark.parametrize("hang", [False, True])
def test_no_process_of_a_job_outlives_it(tmp_path: Path, hang: bool) -> None:
    """A child, and a daemon that left its session and its parents."""
    pids = tmp_path / "pids"

    def job(_: Any) -> str:
        daemon = f"(setsid sh -c 'echo $$ >> {pids}; exec sleep 300' &)"
        script = f"echo $$ >> {pids}; {daemon}; exec sleep 300"
        subprocess.Popen(["sh", "-c", script])
        while len(pids.read_text().split()) < 2 if pids.exists() else True:
            time.sleep(0.01)
        if hang:
            time.sleep(300)
        return "done"

    found = list[int]()
    for limit in (1, 5, 60):  # a busy machine may need more until both have begun
        answer = run(job, None, time_limit=limit if hang else 100.0)
        assert answer == [f"took longer than its limit of {limit} s" if hang else "done"]
        found = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
        assert all(gone(pid) for pid in found)
        if len(found) == 2:
            break
        pids.unlink(missing_ok=True)
    assert len(found) == 2


def test_memory_is_limited_and_the_next_worker_is_fresh() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() // 2**20 + 200
    # far beyond the limit, since other tests' memory may be given back before the worker is made
    answers = run(lambda size: len(bytearray(size)), 2**32, 5, workers=1, memory_mb=limit)
    assert answers == [f"used more than its memory limit of {limit} MiB", 5]


def test_workers_serve_many_requests() -> None:
    pids = run(lambda _: os.getpid(), *range(50))
    assert 1 <= len(set(pids)) <= 2
    assert os.getpid() not in pids


def test_strange_text_survives_the_way() -> None:
    text = "lone \ud800 surrogate, \0, \U0001f600"
    assert run(lambda given: given, text) == [text]


def test_a_busy_event_loop_makes_no_job_look_late() -> None:
    async def ask() -> Any:
        pool = WorkerPool(lambda _: time.sleep(0.2), time_limit=2.0)
        running = asyncio.create_task(pool.run(None))
        await asyncio.sleep(0.05)
        time.sleep(2.5)  # noqa: ASYNC251 - a training step, say
        answer = await running
        await pool.close()
        return answer

    assert asyncio.run(ask()) is None


def test_a_pool_may_serve_several_event_loops() -> None:
    pool = WorkerPool(lambda number: number + 1, time_limit=100.0)
    assert [asyncio.run(pool.run(number)) for number in range(3)] == [1, 2, 3]
    asyncio.run(pool.close())
    asyncio.run(pool.close())
    with pytest.raises(RunError, match="closed"):
        asyncio.run(pool.run(1))


def test_closing_ends_running_jobs_and_all_processes(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    def job(_: Any) -> None:
        file.write_text(str(os.getpid()))
        time.sleep(1000)

    async def ask() -> BaseException | None:
        pool = WorkerPool(job, time_limit=1000.0)
        running = asyncio.create_task(pool.run(None))
        await asyncio.to_thread(wait_for, file)
        await pool.close()
        return (await asyncio.gather(running, return_exceptions=True))[0]

    start = time.perf_counter()
    assert isinstance(asyncio.run(ask()), JobError)
    assert time.perf_counter() - start < 200
    assert gone(int(file.read_text()))


def test_a_forgotten_pool_leaves_no_process() -> None:
    pool = WorkerPool(lambda _: [os.getpid(), os.getppid()], time_limit=100.0)
    worker, zygote = asyncio.run(pool.run(None))
    assert alive(worker)
    assert alive(zygote)
    del pool
    gc.collect()
    assert gone(worker)
    assert gone(zygote)


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_killed_zygote_is_replaced(when: str) -> None:
    def job(what: str) -> list[int]:
        if what == "busy":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(300)
        return [os.getpid(), os.getppid()]

    async def ask() -> list[Any]:
        pool = WorkerPool(job, time_limit=60.0, workers=1)
        worker, zygote = await pool.run("first")
        if when == "busy":
            with pytest.raises(JobError, match="died"):
                await pool.run("busy")
        else:
            os.kill(zygote, signal.SIGKILL)
            assert await asyncio.to_thread(gone, worker)  # with the zygote, and no job's fault
        answer = await pool.run("next")
        await pool.close()
        return [zygote, *answer]

    old, worker, new = asyncio.run(ask())
    assert old != new
    assert gone(worker)
    assert gone(new)


def test_a_job_that_forks_and_goes_on_twice_answers_once_and_each_its_own_request() -> None:
    """The copy must not answer as well: all later answers would be the ones before."""

    def job(number: int) -> int:
        child = os.fork()
        if child == 0:
            return -number
        time.sleep(0.05)
        return number

    def raising(number: int) -> int:
        if os.fork() == 0:
            sys.exit(0)
        time.sleep(0.05)
        return number

    assert run(job, *range(1, 7), workers=1) == list(range(1, 7))
    assert run(raising, *range(1, 4), workers=1) == [1, 2, 3]


def test_an_answer_to_another_request_is_passed_over() -> None:
    """As from a process that writes to the worker's own socket."""

    def job(number: int) -> int:
        ours = max(int(fd) for fd in os.listdir("/proc/self/fd") if is_socket(int(fd)))  # noqa: PTH208
        with socket.socket(fileno=os.dup(ours)) as connection:
            send(connection, {"value": -number, "number": number - 1, "last": False})
        return number

    assert run(job, 1, 2, 3, workers=1) == [1, 2, 3]


def is_socket(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    return False


@pytest.mark.parametrize("job", [lambda request: request, "fttt.verifiers.regex:search"])
def test_a_stopped_zygote_does_not_keep_the_pool_from_closing(
    job: Callable[[Any], Any] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 300.0)

    async def ask() -> int:
        pool = WorkerPool(job, time_limit=100.0)
        await pool.run(["b", "b"])
        start = time.perf_counter()
        assert pool._crew is not None
        zygote = pool._crew._zygote._process.pid
        os.kill(zygote, signal.SIGSTOP)
        await pool.close()
        assert time.perf_counter() - start < 200
        return zygote

    assert gone(asyncio.run(ask()))


def test_workers_end_when_the_caller_is_killed() -> None:
    script = (
        "import asyncio, os, time\n"
        "from fttt.verifiers.worker_pool import WorkerPool\n"
        "pool = WorkerPool(lambda _: [os.getpid(), os.getppid()], time_limit=100.0)\n"
        "print(*asyncio.run(pool.run(None)), flush=True)\n"
        "time.sleep(300)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        try:
            assert caller.stdout is not None
            pids = [int(pid) for pid in caller.stdout.readline().split()]
        finally:
            caller.kill()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


PID, SLEEP = "os:getpgid", "time:sleep"
"""Jobs given by name: of 0 the worker's own pid, and seconds without an answer."""


@pytest.fixture
def two_places(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine of two processors; other tests' pools are in another room."""
    room = module._Room(2)
    monkeypatch.setattr(module._Room, "_of", {os.getpid(): room})
    yield
    room.threads.shutdown()


def children(pid: int | str = "self") -> set[int]:
    """Direct children that are alive."""
    found = set[int]()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found |= {int(child) for child in file.read_text().split() if alive(int(child))}
    return found


@pytest.mark.usefixtures("two_places")
def test_pools_of_all_jobs_share_the_places_and_those_of_one_job_its_processes() -> None:
    before = children()

    async def ask() -> None:
        pools = [WorkerPool(PID, time_limit=100.0) for _ in range(4)]
        pools += [WorkerPool(SLEEP, time_limit=100.0) for _ in range(4)]
        pools += [WorkerPool(lambda _: os.getpid(), time_limit=100.0) for _ in range(2)]
        await asyncio.gather(*(pool.run(0) for pool in pools * 3))
        zygotes = children() - before
        assert len(zygotes) == 4  # PID, SLEEP, and a fork for each closure
        deadline = time.monotonic() + 60.0  # for those that gave up their places to be gone
        while (workers := sum(len(children(pid)) for pid in zygotes)) > 2:
            assert time.monotonic() < deadline, workers
            await asyncio.sleep(0.01)
        for pool in pools:
            assert children() & zygotes
            await pool.close()
        assert children() - before == set()

    asyncio.run(ask())


@pytest.mark.usefixtures("two_places")
def test_closing_ends_the_jobs_of_one_pool_and_spares_those_of_the_others() -> None:
    async def ask() -> None:
        one, other = (WorkerPool(SLEEP, time_limit=1000.0) for _ in range(2))
        await other.run(0)
        long = asyncio.create_task(one.run(1000))
        crew = other._crew
        assert crew is not None
        zygote, deadline = crew._zygote, time.monotonic() + 60.0
        while one not in crew.busy.values():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        beside = asyncio.create_task(other.run(0.2))
        await one.close()
        assert isinstance((await asyncio.gather(long, return_exceptions=True))[0], JobError)
        assert await beside is None
        assert await other.run(0) is None
        assert crew._zygote is zygote
        with pytest.raises(RunError, match="after it had been closed"):
            await one.run(0)
        await other.close()
        assert zygote is not None
        assert gone(zygote._process.pid)

    asyncio.run(ask())


def test_a_job_may_use_a_pool_that_its_fork_took_along() -> None:
    """Its threads, locks and processes are those of the parent, who must not notice."""

    async def ask() -> None:
        inner = WorkerPool(PID, time_limit=100.0)
        worker = await inner.run(0)
        outer = WorkerPool(lambda _: asyncio.run(inner.run(0)), time_limit=100.0)
        assert await outer.run(None) != worker
        assert await inner.run(0) == worker
        await outer.close()
        await inner.close()

    asyncio.run(ask())


def test_a_request_that_cannot_be_sent_keeps_no_place() -> None:
    async def ask() -> None:
        pool = WorkerPool(SLEEP, time_limit=100.0, workers=1)
        with pytest.raises(TypeError):
            await pool.run({1, 2})
        assert await pool.run(0) is None
        await pool.close()

    asyncio.run(ask())


def test_a_job_that_cannot_be_imported_is_an_error_of_the_run(
    capfd: pytest.CaptureFixture[str],
) -> None:
    (answer,) = run("fttt.verifiers.regex:no_such_job", None)
    assert isinstance(answer, RunError)
    assert "could not be started" in str(answer)
    assert "no_such_job" in capfd.readouterr().err
