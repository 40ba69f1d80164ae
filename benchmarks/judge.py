"""Measure the code judge beside a judge that runs programs in its own process.

    python benchmarks/judge.py              # verdicts/s and latency, ours beside the others
    python benchmarks/judge.py --soak 10000 # hostile submissions mixed in; nothing may be left

Beside ours stand ``reference_judge.py`` in the style of the published judges (``manager``), and
the same without the manager process that it starts for each request (``pipe``). All three serve the
same submissions over HTTP on this machine, one after the other, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from fttt.judge.confinement import Limits
from fttt.judge.problem import Problem, Submission
from fttt.judge.sandbox import Sandbox

CORPUS = Path(__file__).parents[1] / "tests" / "judge" / "corpus.toml"
ORDINARY = (
    "honest addition",
    "honest sort in place",
    "honest callbacks",
    "wrong sum",
    "not Python",
)
"""What a run of a benchmark sends: quick programs, right and wrong ones. The first has many."""


@dataclass(frozen=True)
class Figure:
    """One judge under one number of clients."""

    judge: str
    clients: int
    verdicts: int
    per_second: float
    p50_ms: float
    p99_ms: float
    memory_mb: float
    wrong: int


# ------------------------------------------------------------------ the judges


def command(kind: str, port: int) -> list[str]:
    """What starts one judge."""
    if kind == "ours":
        serve = "from fttt.cli.services import judge_app; judge_app()"
        return [sys.executable, "-c", serve, "serve", "--port", str(port)]
    app = f"reference_judge:{kind}_app"
    options = ["--factory", "--app-dir", str(Path(__file__).parent), "--workers", "8"]
    options += ["--limit-concurrency", "256", "--log-level", "error", "--port", str(port)]
    return [sys.executable, "-m", "uvicorn", app, *options]


@contextmanager
def served(kind: str) -> Iterator[tuple[int, psutil.Process]]:
    """Serve one judge while it is measured: its port and its first process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(command(kind, port), stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


# ------------------------------------------------------------------ the load


def submissions(names: tuple[str, ...] | None = None) -> list[tuple[dict[str, Any], list[str]]]:
    """Requests and the statuses that are right, from the tests' corpus."""
    corpus = tomllib.loads(CORPUS.read_text())
    return [
        ({"problem": corpus["problems"][s["problem"]], "completion": s["code"]}, s["expect"])
        for s in corpus["submission"]
        if names is None or s["name"] in names
    ]


def memory_mb(root: psutil.Process) -> float:
    """Proportional memory of a process and all below it; shared pages count once."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]
) -> dict[str, Any]:
    """One request on an open connection; a full client would cost as much as the verdict."""
    body = json.dumps(request).encode()
    head = f"POST / HTTP/1.1\r\nHost: judge\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    fields = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    if not fields[0].startswith("http/1.1 200"):
        raise RuntimeError(f"the judge answered {fields[0]}")
    length = next(
        int(field.split(":")[1]) for field in fields if field.startswith("content-length")
    )
    answer: dict[str, Any] = json.loads(await reader.readexactly(length))
    return answer


async def load(kind: str, port: int, root: psutil.Process, clients: int, seconds: float) -> Figure:
    """Keep ``clients`` requests under way for some seconds."""
    work = submissions(ORDINARY)
    times: list[float] = []
    wrong, most = 0, 0.0
    begin = time.perf_counter()
    end = begin + seconds

    async def client(number: int) -> None:
        nonlocal wrong
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while (start := time.perf_counter()) < end:
            request, expected = work[turn % len(work)]
            answer = await post(reader, writer, request)
            times.append(time.perf_counter() - start)
            wrong += answer["passed"] is not ("passed" in expected)
            turn += 1
        writer.close()

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(seconds / 2)
    most = await asyncio.to_thread(memory_mb, root)
    await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - begin
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
    return Figure(
        judge=kind,
        clients=clients,
        verdicts=len(times),
        per_second=len(times) / elapsed,
        p50_ms=1e3 * cuts[49],
        p99_ms=1e3 * cuts[98],
        memory_mb=most,
        wrong=wrong,
    )


def compare(judges: list[str], clients: list[int], seconds: float) -> list[Figure]:
    """Measure every judge under every number of clients; prints as it goes."""
    figures = []
    print("judge    clients verdicts/s   p50 ms   p99 ms     MB wrong")
    for kind in judges:
        with served(kind) as (port, root):
            asyncio.run(load(kind, port, root, 2, 1.0))  # warm
            for count in clients:
                figure = asyncio.run(load(kind, port, root, count, seconds))
                figures.append(figure)
                print(
                    f"{kind:<8} {count:>7} {figure.per_second:>10.1f} {figure.p50_ms:>8.1f} "
                    f"{figure.p99_ms:>8.1f} {figure.memory_mb:>6.0f} {figure.wrong}",
                    flush=True,
                )
    rates = {(figure.judge, figure.clients): figure.per_second for figure in figures}
    for count in clients:
        for kind in judges if "ours" in judges else []:
            if kind == "ours":
                continue
            ratio = rates["ours", count] / rates[kind, count]
            print(f"ours / {kind} at {count} clients: {ratio:.1f} times the verdicts/s")
    return figures


# ------------------------------------------------------------------ the soak


async def soak(count: int) -> bool:
    """Judge ``count`` submissions, hostile ones among them; true where all went as it must."""
    corpus = submissions()
    slow = {"timeout", "memory"}
    quick = [entry for entry in corpus if not slow & set(entry[1])]
    limits = Limits(cpu_seconds=1, memory_bytes=256 << 20)
    sandbox = Sandbox(limits=limits)
    me = psutil.Process()
    await sandbox.start()
    wrong: list[str] = []

    async def one(request: dict[str, Any], expected: list[str]) -> float:
        begin = time.perf_counter()
        problem = Problem.from_json(request["problem"])
        judgement = await sandbox.judge(Submission(problem, request["completion"]))
        if judgement.status not in expected:
            wrong.append(f"{judgement} instead of {expected}: {request['completion'][:200]!r}")
        return time.perf_counter() - begin

    idle, open_idle = len(me.children(recursive=True)), me.num_fds()
    rates: list[float] = []
    ordinary = submissions(ORDINARY)
    done = 0
    while done < count:
        # Every tenth batch holds all that there is; the others leave out what takes a second each.
        batch = corpus if len(rates) % 10 == 0 else quick
        await asyncio.gather(*(one(*entry) for entry in batch))
        begin = time.perf_counter()
        await asyncio.gather(*(one(*entry) for entry in ordinary * 4))
        rates.append(4 * len(ordinary) / (time.perf_counter() - begin))
        done += len(batch) + 4 * len(ordinary)
        zygote = me.children(recursive=True)
        memory = sum(process.memory_full_info().pss for process in zygote) / 2**20
        print(
            f"{done:>6} judged, {len(wrong)} wrong, {rates[-1]:.0f} ordinary verdicts/s, "
            f"{len(zygote) - idle} processes and {me.num_fds() - open_idle} descriptors left, "
            f"{memory:.0f} MB in the zygote",
            flush=True,
        )
    left = len(me.children(recursive=True)) - idle, me.num_fds() - open_idle
    await sandbox.close()
    third = max(1, len(rates) // 3)
    first, last = statistics.median(rates[:third]), statistics.median(rates[-third:])
    print(f"ordinary verdicts/s in the first third {first:.0f}, in the last {last:.0f}")
    for line in wrong[:20]:
        print(f"WRONG {line}")
    return not wrong and left == (0, 0) and not me.children(recursive=True)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", default="1,8,16,64", help="numbers of clients")
    parser.add_argument("--judges", default="manager,pipe,ours", help="which, in this order")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured for each")
    parser.add_argument("--soak", type=int, metavar="N", help="judge N mixed submissions instead")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if options.soak:
        return 0 if asyncio.run(soak(options.soak)) else 1
    clients = [int(count) for count in options.clients.split(",")]
    figures = compare(options.judges.split(","), clients, options.seconds)
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
