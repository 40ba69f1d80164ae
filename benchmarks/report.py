"""How long a report of many trials takes to build and to open.

    python benchmarks/report.py [--trials 50000] [--keep DIR]

Writes run folders through the store (two methods with two seeds, one of them with an update after
every trial, self-refine, greedy), about as many trials as asked for, with completions of about 150
tokens. Then, in one run: builds the page by `fttt report` in a fresh process, and opens it in
headless Chromium (through chromedriver, fresh profile), three times, until its first question is
on the page. The goals: under 20 s to
build and under 2 s to open, for 50,000 trials.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fttt.store import GenerationEvent, RunWriter
from fttt.testing.browser import installed, open_browser
from fttt.types import Completion, Question, Trial, Usage

BUDGET = 32
SIDES = (
    # method, seeds, chance per trial relative to the question's own, critique tokens
    ("greedy", (42,), 0.8, 0),
    ("best-of-n", (42, 85), 1.0, 0),
    ("fttt", (42, 85), 1.3, 0),
    ("self-refine", (42,), 0.7, 60),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=50_000)
    parser.add_argument("--keep", type=Path, help="leave the run folders and the page here")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fttt-report-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        runs, trials = write_runs(folder, options.trials)
        page = folder / "report.html"
        size = sum((run / "trials.jsonl").stat().st_size for run in runs)
        print(f"trials   {trials:,} ({size / 1e6:.0f} MB of trials.jsonl)")
        print(f"build    {build_page(runs, page):.1f} s (goal: under 20 s)")
        print(f"page     {page.stat().st_size / 1e6:.1f} MB")
        for clock, wall in open_page(page):
            print(
                f"open     {clock:.2f} s by the page's clock until its first question is shown, "
                f"{wall:.2f} s as the driver sees it (goal: under 2 s)"
            )
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


def write_runs(folder: Path, target: int) -> tuple[list[Path], int]:
    """Write one folder a method and seed; return them and the number of trials."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulnrstdkmp", k=draw.randint(2, 9))) for _ in range(4000)]
    weights = [1 / (n + 1) for n in range(len(words))]
    per_question = sum(len(seeds) * (1 if name == "greedy" else 25) for name, seeds, *_ in SIDES)
    chances = [min(0.5, draw.expovariate(60)) for _ in range(max(8, target // per_question))]
    questions = [
        Question(f"gsm8k-{n}", text(draw, words, weights, 50) + "?", str(draw.randint(2, 900)))
        for n in range(len(chances))
    ]
    runs, total = [], 0
    for method, seeds, gain, critique in SIDES:
        for seed in seeds:
            run = folder / f"{method}-gsm8k-smollm2-135m-s{seed}"
            shutil.rmtree(run, ignore_errors=True)
            writer = RunWriter.create(
                run, config=config(method, seed), environment={}, questions=questions
            )
            for question, chance in zip(questions, chances, strict=True):
                budget = 1 if method == "greedy" else BUDGET
                for n in range(budget):
                    correct = draw.random() < chance * gain
                    words_used = draw.randint(60, 150)
                    writer.trial(
                        trial(
                            draw,
                            question,
                            n,
                            correct,
                            text(draw, words, weights, words_used),
                            method,
                            critique,
                        )
                    )
                    total += 1
                    if correct:
                        break
                    if critique:
                        said = text(draw, words, weights, critique // 2)
                        ids = tuple(draw.choices(range(49152), k=critique))
                        written = Completion(said, ids, "stop", 2 * n + 1)
                        writer.generation(GenerationEvent(question.id, None, written))
                writer.done(question.id)
            writer.finish()
            runs.append(run)
    return runs, total


def trial(
    draw: random.Random,
    question: Question,
    n: int,
    correct: bool,
    written: str,
    method: str,
    critique: int,
) -> Trial:
    """One trial with plausible costs."""
    blank = not correct and draw.random() < 0.15
    tokens = tuple(draw.choices(range(49152), k=len(written) // 4))
    answer = str(question.gold) if correct else str(draw.randint(2, 900))
    return Trial(
        question_id=question.id,
        trial=n,
        generation=2 * n if critique else n,
        completion=written if blank else f"{written}. The final answer is {answer}.",
        token_ids=tokens,
        finish_reason="length" if blank else "stop",
        extracted=None if blank else answer,
        verdict="correct" if correct else "unanswered" if blank else "incorrect",
        detail="" if correct else "no number after the last marker" if blank else "another number",
        loss=None if correct or method != "fttt" else 3.1 * 0.97**n,
        usage=Usage(
            prompt_tokens=90,
            generated_tokens=len(tokens) + (0 if correct else critique),
            trained_tokens=12 if method == "fttt" and not correct else 0,
            generations=1 if correct or not critique else 2,
            verifier_calls=1,
            seconds=len(tokens) * draw.uniform(0.009, 0.012),
        ),
    )


def config(method: str, seed: int) -> dict[str, object]:
    budget = {"trials": 1 if method == "greedy" else BUDGET, "unanswered": "count"}
    sampling = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 320}
    return {
        "settings": {"feedback": "Your answer is incorrect."} if method == "fttt" else {},
        "method": method, "task": "gsm8k", "model": "smollm2-135m", "seed": seed,
        "budget": budget, "sampling": sampling,
    }  # fmt: skip


def text(draw: random.Random, words: Sequence[str], weights: Sequence[float], count: int) -> str:
    return " ".join(draw.choices(words, weights, k=count))


def build_page(runs: Sequence[Path], page: Path) -> float:
    """Seconds of one `fttt report`, start of the interpreter included."""
    began = time.perf_counter()
    fttt = [sys.executable, "-c", "from fttt.cli import main; main()"]
    command = [*fttt, "report", *map(str, runs), "--out", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def open_page(page: Path, times: int = 3) -> list[tuple[float, float]]:
    """Seconds until the first question is shown: the page's own clock, and the driver's."""
    if installed() is None:
        print("open     not measured: it needs chromium and chromedriver")
        return []
    return [open_once(page) for _ in range(times)]


def open_once(page: Path) -> tuple[float, float]:
    """One opening in a fresh browser with an empty profile."""
    with open_browser() as browser:
        began = time.perf_counter()
        browser.open(page)
        wall = time.perf_counter() - began
        clock = browser.run("return document.documentElement.dataset.ready")
    return (float("nan") if clock is None else int(clock) / 1000, wall)


if __name__ == "__main__":
    main()
