"""Kill replicas and drivers of small runs at random moments, and look for lost or doubled trials.

    python benchmarks/kill_replicas.py --replicas 20 --drivers 10

Each run has two replicas of a tiny model on this machine's cores. A killed replica's run must end
by itself, a killed driver's is resumed with one or two replicas after all its processes have gone;
both must end with the trials and the journal of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Timer

import psutil

from fttt.testing import save_tiny_model
from fttt.testing.run_facts import journal_lines, trial_facts

QUESTIONS, TRIALS = 6, 8
MOST = 600.0
"""Seconds that one run may take, its start included."""
LINES = QUESTIONS * (2 * TRIALS + 1)
"""Of a whole journal: a generation and a verdict a trial, and the end of each question."""


def command(model: Path, out: Path, *more: str) -> list[str]:
    """A run of questions whose answers no random model hits upon."""
    return [
        *(sys.executable, "-m", "fttt", "run", "fttt", "--model", str(model), "--device", "cpu"),
        *("--task", "jsonl", "--data-dir", str(model / "questions.jsonl"), "--verifier", "number"),
        *("--trials", str(TRIALS), "--max-new-tokens", "32", "--set", "lr=1e-3"),
        *("--out", str(out), *more),
    ]


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process's descendants."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """Those of its descendants that are replicas."""
    found = []
    for child in family(process):
        try:
            if "ray::Replica" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for(process: subprocess.Popen[str], out: Path, count: int) -> bool:
    """Wait until replicas run and the journal has ``count`` lines; whether the run still runs."""
    watched, deadline = psutil.Process(process.pid), time.monotonic() + MOST
    while process.poll() is None:
        if time.monotonic() > deadline:
            end(process)
            return False
        if journal_lines(out) >= count and replicas(watched):
            return True
        time.sleep(0.01)
    return False


def same(out: Path, whole: Path) -> str:
    """What differs from the whole run, or nothing."""
    if trial_facts(out) != trial_facts(whole):
        return "other trials"
    written = (out / "trials.jsonl").read_bytes().count(b"\n")
    if (journal_lines(out), written) != (LINES, QUESTIONS * TRIALS):
        return f"{journal_lines(out)} lines of {LINES}, {written} trials of {QUESTIONS * TRIALS}"
    return "" if (out / "summary.json").exists() else "no summary"


def start(words: list[str]) -> subprocess.Popen[str]:
    """A run in the background."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    """End a run that takes too long, its own processes too."""
    for one in [*family(psutil.Process(process.pid)), process]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def kill_replica(model: Path, out: Path, whole: Path, count: int) -> str:
    """Kill one replica once the journal has ``count`` lines; return what is wrong at the end."""
    process = start(command(model, out, "--replicas", "2"))
    if not wait_for(process, out, count):
        return f"ended before it was killed: {process.communicate(timeout=MOST)[1]}"
    random.choice(replicas(psutil.Process(process.pid))).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert process.stderr is not None
    said, noticed = "", None
    limit = Timer(MOST, end, [process])
    limit.start()
    for line in process.stderr:
        said += line
        if " died: " in line and noticed is None:
            noticed = time.monotonic() - killed
    limit.cancel()
    if process.wait(MOST) != 0:
        return f"exit {process.returncode}: {said}"
    when = "not noticed before the end" if noticed is None else f"noticed after {noticed:.2f} s"
    print(f"  at {count} lines: {when}, ended {time.monotonic() - killed:.1f} s after it")
    return same(out, whole)


def kill_driver(model: Path, out: Path, whole: Path, count: int) -> str:
    """Kill the driver once the journal has ``count`` lines, and resume its run."""
    process = start(command(model, out, "--replicas", "2"))
    if not wait_for(process, out, count):
        return f"ended before it was killed: {process.communicate(timeout=MOST)[1]}"
    children = family(psutil.Process(process.pid))
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.communicate(timeout=MOST)
    gone, alive = psutil.wait_procs(children, timeout=60)
    if alive:
        return f"orphans after a minute: {[child.name() for child in alive]}"
    seconds = time.monotonic() - killed
    number, before = random.choice("12"), journal_lines(out)
    if not (out / "config.toml").exists():
        words = command(model, out, "--replicas", number)
    else:
        words = [sys.executable, "-m", "fttt", "run", "--resume", str(out), "--replicas", number]
    again = start(words)
    try:
        said = again.communicate(timeout=MOST)[1]
    except subprocess.TimeoutExpired:
        end(again)
        return f"the resumed run has not ended after {MOST:g} s"
    if again.returncode != 0:
        return f"exit {again.returncode}: {said}"
    print(
        f"  at {before} lines: its {len(gone)} processes had gone after {seconds:.1f} s, "
        f"resumed with {number}"
    )
    return same(out, whole)


def main() -> None:
    """Kill as often as asked, and exit with 1 where anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=20, help="how many replicas to kill")
    parser.add_argument("--drivers", type=int, default=10, help="how many drivers to kill")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = save_tiny_model(folder / "tiny")
        line = '{"question": "Question %d?", "answer": "123456789"}\n'
        (model / "questions.jsonl").write_text("".join(line % n for n in range(QUESTIONS)))
        whole = folder / "whole"
        subprocess.run(command(model, whole), check=True, capture_output=True)
        jobs = [kill_replica] * options.replicas + [kill_driver] * options.drivers
        for number, job in enumerate(jobs):
            print(f"{number}: {job.__name__}", flush=True)
            fault = job(model, folder / str(number), whole, random.randrange(LINES - 10))
            wrong += bool(fault)
            if fault:
                print(f"  WRONG: {fault}", flush=True)
    print(f"{len(jobs) - wrong} of {len(jobs)} ended as the run that nothing happened to")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
