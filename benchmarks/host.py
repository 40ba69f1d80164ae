"""What a trial costs the host around the engine: sessions, text, verdicts, journal, records.

    python benchmarks/host.py --task gsm8k --data-dir DIR --methods best-of-n self-consistency
    python benchmarks/host.py --task gsm8k --data-dir DIR --questions 512 --replica

Runs go through the whole of `fttt run` with an engine that answers at once, by made-up solutions
of ``--tokens`` tokens that end in a number. On a GPU this work is done while the device computes; a
method's samples a second can never be more than it allows. Processor time is counted, so other
work on the machine changes it little. With ``--replica`` the same is asked by a replica too, whose
processor time and whose driver's are told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fttt.config import EngineSection
from fttt.engine.request import GenerateRequest, Generation
from fttt.experiment.cluster import Cluster, RayReplica
from fttt.experiment.driver import ReplicatedExecutor, Seat
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.plan import Plan
from fttt.experiment.replica import Replica
from fttt.experiment.runner import Cell, run_cells
from fttt.models import LoadedModel, load_model
from fttt.progress import Quiet
from fttt.testing import FakeEngine
from methods import plan_for


class Instant(FakeEngine):
    """Answers with one of some solutions, by the request's noise."""

    def __init__(self, answers: Sequence[tuple[int, ...]]) -> None:
        super().__init__((), idle=512)
        self.answers = answers

    async def generate(self, request: GenerateRequest) -> Generation:
        await asyncio.sleep(0)
        ids = self.answers[request.noise_key % len(self.answers)]
        self.generated_tokens += len(ids)
        return Generation(ids, "stop", 0.0)


def solutions(loaded: LoadedModel, tokens: int) -> list[tuple[int, ...]]:
    """Texts with sums in them, as a model writes them."""
    draw = random.Random(0)
    found = []
    for _ in range(500):
        sums = "".join(
            f"The {n} boxes hold {n} * {m} = {n * m} apples, so {draw.randrange(999)} are left. "
            for n, m in ((draw.randrange(2, 99), draw.randrange(2, 99)) for _ in range(tokens))
        )
        end = loaded.chat.encode(f"\nThe final answer is {draw.randrange(1, 10**6)}")
        found.append(loaded.chat.encode(sums)[: tokens - len(end) - 1] + end + loaded.stop_ids[:1])
    return found


class Measured(Replica):
    """A replica that tells what it has cost."""

    async def seconds(self) -> float:
        """Of its processor time so far."""
        return time.process_time()


def cost(loaded: LoadedModel, plan: Plan, answers: Sequence[tuple[int, ...]]) -> tuple[float, int]:
    """Seconds of processor time of a run, and its trials."""
    executor = LocalExecutor(loaded, lambda plans, model: Instant(answers))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        (run,) = run_cells([Cell(plan, Path(folder) / "run")], executor, Quiet())
        return time.process_time() - start, len(run.trials)


def replica_costs(
    ray: Any, plan: Plan, answers: Sequence[tuple[int, ...]], repeats: int
) -> tuple[float, float, int]:
    """Seconds of processor time of a replica and of its driver in a run, and the run's trials."""
    made = ray.remote(Measured).options(num_cpus=1).remote(
        str(Path.cwd()), {}, make_engine=lambda plans, model: Instant(answers)
    )  # fmt: skip
    actor = RayReplica(ray, made)

    async def start() -> RayReplica:
        return actor

    executor = ReplicatedExecutor([Seat()], start, plan.config, print)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            before = asyncio.run(actor.call("seconds"))
            own = time.process_time()
            (run,) = run_cells([Cell(plan, Path(folder) / f"{number}")], executor, Quiet())
            own = time.process_time() - own
            found.append((asyncio.run(actor.call("seconds")) - before, own, len(run.trials)))
    actor.kill()
    return min(found)


def main() -> None:
    """Run each method some times and print the least."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", nargs="+", default=["best-of-n", "self-consistency"])
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--replica", action="store_true", help="asked by a replica as well")
    options = parser.parse_args()
    options.new_tokens, options.batch_size = 2 * options.tokens, None
    loaded = load_model(options.model)
    answers = solutions(loaded, options.tokens)
    for method in options.methods:
        plan = plan_for(method, options)
        found = [cost(loaded, plan, answers) for _ in range(options.repeats)]
        seconds, trials = min(found)
        most = trials * options.tokens / seconds
        print(
            f"{method}: {1e3 * seconds / trials:.2f} ms of processor time a trial of "
            f"{options.tokens} tokens ({trials} trials, the least of {options.repeats}); one core "
            f"serves {trials / seconds:,.0f} trials/s, {most:,.0f} tokens/s",
            flush=True,
        )
        if options.replica:
            with Cluster.connected(EngineSection(device="cpu", replicas=1)) as cluster:
                theirs, own, trials = replica_costs(cluster.ray, plan, answers, options.repeats)
            print(
                f"  in a replica {1e3 * theirs / trials:.2f} ms a trial, its driver "
                f"{1e3 * own / trials:.2f} ms ({trials} trials)",
                flush=True,
            )


if __name__ == "__main__":
    main()
