"""Verdicts a second, and wrong verdicts, of the math verifier beside math-verify called directly.

    python benchmarks/math_verifier.py --data-dir DATASETS [--seconds 20]

Then those of the number verifier on GSM8K's test split: its solutions, which end in a statement,
and the same with a wrong number, or without the statement and said to be cut off.

Ordinary answers: the gold answers of MATH's test split, written in other ways (all are right) and
changed on purpose (all are wrong), each in a short completion. Both verifiers judge the same ones
in this run: ours with one worker a processor, math-verify by `parse` and `verify` with its own
time limits, in one process, as it is usually called (pip install math-verify). Then hostile
answers: what each one costs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import random
import time
from pathlib import Path

import math_verify

from fttt.tasks import TaskOptions, get_task
from fttt.tasks.gold_check import rewritten_answers, wrong_answers
from fttt.types import Question
from fttt.verifiers.math import MathVerifier
from fttt.verifiers.number import NumberVerifier

HOSTILE = ("9^{9^{9^{9}}}", "(10^{10})!", r"\sin(10^{10^{10}})", r"\gamma(10^{12})")
Case = tuple[str, str, bool]


def cases(data_dir: Path) -> list[Case]:
    """Gold answer, completion, and whether it is right; in a random order."""
    found: list[Case] = []
    for question in get_task("math500").load(TaskOptions(data_dir=data_dir)):
        gold = str(question.gold)
        found += [(gold, say(answer), True) for answer in rewritten_answers(gold)]
        found += [(gold, say(answer), False) for answer in wrong_answers(gold)]
    random.Random(0).shuffle(found)
    return found


def say(answer: str) -> str:
    return f"We add the parts and simplify. The result is \\boxed{{{answer}}}."


async def ours(asked: list[Case]) -> tuple[float, int, int]:
    """Seconds, right answers refused, wrong answers accepted."""
    verifier = MathVerifier()
    await verifier.verify(Question("warm", "", "\\sqrt{8}"), say("2\\sqrt{2}"))
    start = time.perf_counter()
    verdicts = await asyncio.gather(
        *(verifier.verify(Question("", "", gold), text) for gold, text, _ in asked)
    )
    seconds = time.perf_counter() - start
    await verifier.close()
    return seconds, *errors([verdict.correct for verdict in verdicts], asked)


def direct(asked: list[Case], seconds: float) -> tuple[float, int, int, int]:
    """The same by math-verify, as many as the time allows: also how many those were."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    start, said = time.perf_counter(), []
    for gold, text, _ in asked:
        parsed = math_verify.parse(f"${gold}$")
        said.append(math_verify.verify(parsed, math_verify.parse(text)))
        if time.perf_counter() - start > seconds:
            break
    return time.perf_counter() - start, *errors(said, asked), len(said)


def errors(said: list[bool], asked: list[Case]) -> tuple[int, int]:
    judged = list(zip(said, asked, strict=False))
    refused = sum(right and not correct for correct, (_, _, right) in judged)
    return refused, sum(correct and not right for correct, (_, _, right) in judged)


def number_cases(data_dir: Path) -> list[tuple[Question, str, bool, bool]]:
    """Question, completion, whether it was cut off, and whether it is right."""
    found: list[tuple[Question, str, bool, bool]] = []
    for question in get_task("gsm8k").load(TaskOptions(data_dir=data_dir)):
        worked = str(question.solution)
        found.append((question, worked, False, True))
        found.append((question, f"{worked}0", False, False))
        found.append((question, worked.rpartition("\n")[0], True, False))
    random.Random(0).shuffle(found)
    return found


async def numbers(asked: list[tuple[Question, str, bool, bool]]) -> tuple[float, int]:
    """Seconds, and how many verdicts are wrong."""
    verifier = NumberVerifier()
    start, wrong = time.perf_counter(), 0
    for question, text, cut, right in asked:
        verdict = await verifier.verify(question, text, cut=cut)
        wrong += verdict.correct != right
    return time.perf_counter() - start, wrong


async def hostile() -> None:
    """The time that each hostile answer takes, with an ordinary one judged beside it."""
    verifier = MathVerifier(time_limit=2.0)
    gold = "\\sqrt{2}+1"
    await verifier.verify(Question("warm", "", gold), say("\\sqrt{3}"))
    for answer in HOSTILE:
        start = time.perf_counter()
        bad, good = await asyncio.gather(
            verifier.verify(Question("", "", gold), say(answer)),
            verifier.verify(Question("", "", gold), say("1+\\sqrt{2}")),
        )
        seconds = time.perf_counter() - start
        print(
            f"  {answer:22} {bad.outcome}, {seconds:.2f} s of 2 s; its neighbour {good.outcome} "
            f"after {good.seconds:.2f} s"
        )
    await verifier.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="for math-verify directly")
    arguments = parser.parse_args()
    asked = cases(arguments.data_dir)
    right = sum(case[2] for case in asked)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors")
    print(f"{len(asked):,} ordinary answers: {right:,} right, {len(asked) - right:,} wrong")
    seconds, refused, accepted = asyncio.run(ours(asked))
    rate = len(asked) / seconds
    print(f"  ours              {rate:8,.0f} verdicts/s, {refused} right refused, ", end="")
    print(f"{accepted} wrong accepted")
    seconds, refused, accepted, count = direct(asked, arguments.seconds)
    print(
        f"  math-verify alone {count / seconds:8,.0f} verdicts/s, {refused} right refused, ", end=""
    )
    print(f"{accepted} wrong accepted, of the first {count:,}")
    print(f"  ratio             {rate * seconds / count:8,.1f}")
    cases_of_numbers = number_cases(arguments.data_dir)
    seconds, wrong = asyncio.run(numbers(cases_of_numbers))
    rate = len(cases_of_numbers) / seconds
    print(f"numbers: {rate:,.0f} verdicts/s, {wrong} of {len(cases_of_numbers):,} wrong")
    print("hostile answers")
    asyncio.run(hostile())


if __name__ == "__main__":
    main()
