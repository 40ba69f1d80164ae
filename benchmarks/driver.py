"""What the driver of replicas costs: facts a second that it takes, and the seconds of a start.

    python benchmarks/driver.py --tokens 256 --batches 1 10 100
    python benchmarks/driver.py --tokens 2048 --costs 0.66 0.086 --rates 22400

A process sends the facts of made-up trials (an answer of ``--tokens`` tokens, its verdict, the
trial), ``--batches`` trials in an exchange, as fast as the driver takes them; the driver writes a
run folder on the disk of ``--folder``. Processor time says what one core of the driver can do,
whatever else the machine does; the time by the clock, what it did. From it follow rows of the table
of a large cluster in ``docs/scale.md``, one for each of ``--rates``, the tokens a second of one
GPU; ``--costs`` takes milliseconds of an exchange and of a fact that were measured before.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fttt.config import EngineSection, resolve
from fttt.experiment.cluster import Cluster, RayReplica
from fttt.experiment.driver import Asking, Seat
from fttt.experiment.executor import Owed
from fttt.experiment.garbage import old_objects_left_alone
from fttt.experiment.plan import plan_run, settle
from fttt.experiment.replica import Fact, Report
from fttt.progress import Quiet
from fttt.store import GenerationEvent, RunWriter
from fttt.types import Completion, Trial, Usage, Verdict


def facts(question: str, number: int, tokens: int) -> list[Fact]:
    """What is written of one trial of a question."""
    ids = tuple(range(number, number + tokens))
    text = " ".join(f"word{number + n}" for n in range(tokens // 2))
    usage = Usage(100, tokens, tokens, 0, 1, 1, 1.0)
    verdict = Verdict("incorrect", "42", "expected 43", 0.01, "Your answer is incorrect.")
    answer = Completion(text, ids, "stop", number, usage)
    trial = Trial(
        question, number, number, text, ids, "stop", "42", "incorrect", "expected 43", 0.5, usage
    )
    return [
        Fact(0, question, "generation", (GenerationEvent(question, number, answer),)),
        Fact(0, question, "verdict", (question, number, verdict)),
        Fact(0, question, "trial", (trial,)),
    ]


class Sender:
    """Sends facts, as a replica does, without having generated anything."""

    def __init__(self, questions: Sequence[str], tokens: int) -> None:
        self.questions, self.tokens, self.sent = questions, tokens, 0

    async def exchange(self, trials: int) -> Report:
        """The facts of as many further trials."""
        found: list[Fact] = []
        for _ in range(trials):
            number, place = divmod(self.sent, len(self.questions))
            found += facts(self.questions[place], number, self.tokens)
            self.sent += 1
        return Report.of(found)

    async def seconds(self) -> float:
        """Of its processor time so far."""
        return time.process_time()


GPUS, FACTS, TRIALS = 64, 3, 8
"""Of the cluster; of a trial; of a question."""


def cluster_row(tokens: int, rate: float, exchange_ms: float, fact_ms: float) -> str:
    """What a cluster asks of one driver, as a row of a table, and the questions a second."""
    trials = GPUS * rate / tokens
    facts = FACTS * trials
    busy = facts * fact_ms / 1e3
    rest = f"{(1 - busy) * 1e3 / exchange_ms / GPUS:.0f}" if busy < 1 else ""
    questions = min(facts, 1e3 / fact_ms) / FACTS / TRIALS
    own = rate / tokens
    shown = f"{own:.1f}" if own < 10 else f"{own:,.0f}"
    return (
        f"| {rate:,.0f} tokens/s, {tokens:,} | {shown} | {trials:,.0f} "
        f"| {facts:,.0f} | {busy * 100:.0f} % | {rest} | {questions:,.0f} |"
    )


async def measure(handle: Any, asking: Asking, trials: int, wanted: int) -> float:
    """Take ``wanted`` trials in exchanges of ``trials``; milliseconds of an exchange."""
    seat, taken = Seat(), 0
    theirs = await handle.call("seconds")
    own, clock = time.process_time(), time.perf_counter()
    with old_objects_left_alone():
        for rounds in count(1):  # noqa: B007
            report = await handle.call("exchange", trials)
            for fact in report.facts:
                asking.write(fact, seat)
            taken += len(report.facts)
            if taken >= 3 * wanted:
                break
    own, clock = time.process_time() - own, time.perf_counter() - clock
    theirs = await handle.call("seconds") - theirs
    print(
        f"{3 * trials} facts an exchange: {taken / own:,.0f} facts a second of the driver's "
        f"processor time, {1e3 * own / rounds:.2f} ms an exchange; {taken / clock:,.0f} facts/s "
        f"and {1e3 * clock / rounds:.2f} ms by the clock; the sender's own {taken / theirs:,.0f}/s"
    )
    return 1e3 * own / rounds


def main() -> None:
    """Measure the start and each size of an exchange, and print what a cluster would ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--trials", type=int, default=2000, help="of each measurement")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[22_400, 240_000])
    parser.add_argument("--costs", type=float, nargs=2, metavar=("EXCHANGE", "FACT"))
    options = parser.parse_args()
    exchange_ms, fact_ms = options.costs or measured(options)
    print(f"{exchange_ms:.2f} ms an exchange, {fact_ms:.3f} ms a fact")
    for rate in options.rates:
        print(cluster_row(options.tokens, rate, exchange_ms, fact_ms))


def measured(options: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of an exchange and of a fact in it, by the smallest and the largest exchange."""
    costs: dict[int, float] = {}
    plan = plan_run(settle(resolve({"method": "best-of-n", "data": {"limit": 64}})))
    questions = [question.id for question in plan.questions]
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        start = time.perf_counter()
        with Cluster.connected(EngineSection(device="cpu", replicas=1)) as connected:
            print(f"Ray started in {time.perf_counter() - start:.1f} s")
            start = time.perf_counter()
            asyncio.run(connected.start(plan.config))
            print(
                f"a replica answered, its libraries loaded, in {time.perf_counter() - start:.1f} s"
            )
            for number, trials in enumerate(options.batches):
                writer = RunWriter.create(
                    Path(place) / str(number),
                    config=plan.config.to_toml(),
                    environment={},
                    questions=plan.questions,
                )
                owed = [Owed(0, question) for question in plan.questions]
                asking = Asking(SimpleNamespace(seats=[Seat()]), owed, [writer], Quiet())
                for one in owed:
                    asking.assignment(one)
                sender = connected.ray.remote(Sender).remote(questions, options.tokens)
                handle = RayReplica(connected.ray, sender)
                costs[trials] = asyncio.run(measure(handle, asking, trials, options.trials))
                handle.kill()
                writer.close()
    few, many = min(costs), max(costs)
    if few == many:
        raise SystemExit("--batches: two sizes or more tell an exchange's cost from a fact's")
    fact_ms = (costs[many] - costs[few]) / (FACTS * (many - few))
    return costs[few] - FACTS * few * fact_ms, fact_ms


if __name__ == "__main__":
    main()
