"""Whether the live page stalls over hundreds of runs and many thousand trials.

    python benchmarks/view.py [--runs 300] [--trials 250000] [--keep DIR]

Writes run folders through the store: one that goes on and has half of all trials, and finished ones
that share the other half; a question that is solved spares the rest of its 32. Starts `fttt view`
as a process and opens it in headless Chromium. Then, in one run: seconds until the service answers
and until the page lists the runs; seconds until the whole of the large run is on the page; what 20
trials a second that are appended take to show (the mean and the longest of 40), while curves are
drawn and a finished run is chosen beside it; how long requests for a question took meanwhile; the
longest that the page's own thread was busy; and the memory and processor time of the service. The
goals: a list in 5 s, and nothing over 2 s but the first reading of the large run, which the page
shows as it goes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from fttt.store import GenerationEvent, Run, RunWriter
from fttt.testing.browser import Browser, open_browser
from fttt.types import Completion, Outcome, Question, Trial, Usage, Verdict

BUDGET = 32
TEXT = "A sentence of an attempt, which is of no use. " * 8
TOKENS = tuple(range(100, 220))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--trials", type=int, default=250_000)
    parser.add_argument("--keep", type=Path, help="leave the run folders here, and reuse them")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fttt-view-"))
    try:
        if not (folder / "large").is_dir():
            write_runs(folder, options.runs, options.trials)
        measure(folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


def write_runs(folder: Path, runs: int, trials: int) -> None:
    """The large run goes on; the others are finished."""
    began = time.perf_counter()
    small = trials // 2 // max(1, runs - 1)
    for n in range(runs - 1):
        writer = begin(folder / f"run-{n:03}", n, max(1, small // BUDGET))
        for question in range(max(1, small // BUDGET)):
            ask(writer, question, BUDGET)
        writer.finish()
    questions = trials // 2 // BUDGET
    writer = begin(folder / "large", 1000, questions)
    for question in range(questions):
        ask(writer, question, BUDGET - (question % 2))
    writer.close()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    made = sum(file.read_bytes().count(b"\n") for file in folder.rglob("trials.jsonl"))
    took = time.perf_counter() - began
    print(f"written  {runs} runs with {made:,} trials, {size / 1e6:,.0f} MB in {took:.0f} s")


def begin(path: Path, seed: int, questions: int) -> RunWriter:
    config = {
        "method": "fttt", "task": "gsm8k", "model": "smollm2-135m", "seed": seed,
        "budget": {"trials": BUDGET, "unanswered": "count"},
        "settings": {"feedback": "Your answer is incorrect. {feedback}"},
        "sampling": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 128},
    }  # fmt: skip
    asked = [
        Question(f"gsm8k/test/{n}", f"What is {n} and one? " * 8, "1") for n in range(questions)
    ]
    return RunWriter.create(path, config=config, environment={}, questions=asked)


def ask(writer: RunWriter, question: int, trials: int, first: int = 0) -> None:
    """Trials of one question; some end with a correct one."""
    name = f"gsm8k/test/{question}"
    solved = (question * 7919) % 97
    for number in range(first, trials):
        outcome: Outcome = "correct" if number == solved else "incorrect"
        completion = Completion(TEXT, TOKENS, "stop", number, Usage(90, len(TOKENS), 0, 1, 0, 1.1))
        writer.generation(GenerationEvent(name, number, completion))
        writer.verdict(name, number, Verdict(outcome, "7", "another", 0.01, "It is above 3."))
        ended = number in (solved, BUDGET - 1)
        writer.trial(
            Trial(
                name, number, number, TEXT, TOKENS, "stop", "7", outcome, "another",
                None if ended else 1.5, Usage(90, len(TOKENS), 0 if ended else 12, 1, 1, 1.2),
            )
        )  # fmt: skip
        if ended:
            writer.done(name)
        if number == solved:
            return


class Prober:
    """Asks for a question of the large run ten times a second, and keeps the longest wait."""

    def __init__(self, address: str, key: str) -> None:
        self.waits: list[float] = []
        self._end = threading.Event()
        self._url = f"{address}runs/{key}/questions/7"
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._end.wait(0.1):
                began = time.perf_counter()
                client.get(self._url).raise_for_status()
                self.waits.append(time.perf_counter() - began)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def measure(folder: Path) -> None:
    began = time.perf_counter()
    words = [sys.executable, "-m", "fttt", "view", str(folder), "--no-open"]
    service = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    address = service.stdout.readline().split(" at ")[1].split()[0]
    print(f"start    {time.perf_counter() - began:.1f} s until the service listens")
    process = psutil.Process(service.pid)
    try:
        with open_browser() as browser:
            follow(browser, address, folder, process)
    finally:
        service.terminate()
        service.communicate()


def follow(browser: Browser, address: str, folder: Path, process: psutil.Process) -> None:
    browser.open(address)
    listed = browser.run("return live.order.length")
    clock = int(browser.run("return document.documentElement.dataset.listed")) / 1000
    print(f"list     {clock:.1f} s by the page's clock until it lists {listed} runs")
    key = browser.run(
        "new PerformanceObserver((list) => {"
        " for (const one of list.getEntries())"
        "  window.longest = Math.max(window.longest ?? 0, one.duration);"
        "}).observe({ type: 'longtask' });"
        "return [...live.rows.values()].find((row) => row.name === 'large').key"
    )
    lines = len(Run.open(folder / "large").trials)
    browser.run(f"if (live.run !== '{key}') pick('{key}', '')")
    shown = "(state.runs[0]?.verdicts ?? []).reduce((sum, one) => sum + one.length, 0)"
    while browser.run(f"await_(() => {shown} >= {lines}); return {shown}") < lines:
        pass
    clock = browser.run("return performance.now()") / 1000
    print(f"open     {clock:.1f} s by that clock until {lines:,} trials of one run are on the page")
    tell_cost(process, "read")
    grow(browser, address, key, folder, shown)
    tell_cost(process, "after")
    longest = browser.run("return window.longest ?? 0")
    print(f"page     its thread was busy for {longest:.0f} ms at a time at most")


def grow(browser: Browser, address: str, key: str, folder: Path, shown: str) -> None:
    """Append trials, and wait for each twenty on the page."""
    writer = RunWriter(folder / "large")
    owed = iter(range(1, 10_000, 2))
    browser.run("pick(live.run, [...live.rows.values()].find((row) => row.name === 'run-000').key)")
    browser.run(f"await_(() => {shown} > 1000 && state.runs.length === 2)")
    waits, had = [], browser.run(f"return {shown}")
    with Prober(address, key) as prober:
        for _ in range(40):
            added = 0
            while added < 20:
                question = next(owed)
                if (question * 7919) % 97 < BUDGET:
                    continue  # solved before
                if BUDGET - 1 in writer.written(f"gsm8k/test/{question}"):
                    continue  # by an earlier measurement in a kept folder
                ask(writer, question, BUDGET, first=BUDGET - 1)
                added += 1
            began = time.perf_counter()
            had += added
            browser.run(f"await_(() => {shown} >= {had})")
            waits.append(time.perf_counter() - began)
            time.sleep(max(0.0, 1 - waits[-1]))
    writer.close()
    print(f"news     {sum(waits) / 40:.2f} s until 20 trials are shown, {max(waits):.2f} s at most")
    mean, most = sum(prober.waits) / len(prober.waits), max(prober.waits)
    print(f"requests {mean:.3f} s a question, {most:.2f} s at most, of {len(prober.waits)}")
    print(f"curves   drawn again every {browser.run('return live.again'):.0f} s")


def tell_cost(process: psutil.Process, when: str) -> None:
    spent = process.cpu_times()
    print(
        f"cost     {when}: {process.memory_info().rss / 1e6:.0f} MB, "
        f"{spent.user + spent.system:.1f} s of processor time"
    )


if __name__ == "__main__":
    main()
