"""Whether learning is visible on a graded task with the embedded model, over several seeds.

    python benchmarks/graded_demo.py --seeds 1 2 3 4 5

The two runs of ``fttt demo``, on eight questions of ``optimise/packing`` a seed: the frozen model
drawn again (``best-of-n``) at its own best temperature, and ``policy --shared``, one adapter that
learns from the scores of groups of eight attempts; options change them. Printed are the mean score
of each round of eight trials, the best score a question, the processor time, and the paired
difference of the best scores at equal tokens; at the end a paired t test of these differences over
the seeds.

Temperatures and rate were chosen on the training split (``--split train``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from multiples import rounds
from scipy.stats import ttest_1samp

from fttt.config import RunConfig, build
from fttt.experiment.executor import Executor, LocalExecutor
from fttt.experiment.plan import load_weights
from fttt.experiment.sweep import DEMO, SweepConfig, run_sweep
from fttt.models import LoadedModel
from fttt.progress import Quiet
from fttt.report.compare import compare


def sides(seed: int, given: argparse.Namespace) -> list[SweepConfig]:
    """The frozen model, and the learner: the demo's two runs under one seed."""
    values = DEMO.model_dump()
    frozen, learner = (dict(m) if isinstance(m, dict) else {"method": m} for m in values["methods"])
    changed = {name: getattr(given, name) for name in ("lr", "advantage", "ahead")}
    learner["settings"] |= {name: value for name, value in changed.items() if value is not None}
    temperatures = given.frozen_temperature, given.temperature
    for method, temperature in zip((frozen, learner), temperatures, strict=True):
        if temperature is not None:
            method["sampling"] = {"temperature": temperature}
    values["base"]["data"] |= {"seed": seed, "split": given.split}
    if given.trials is not None:
        values["base"]["budget"]["trials"] = given.trials
    values |= {"tasks": [given.task] if given.task else values["tasks"], "seeds": [seed]}
    return [
        build(SweepConfig, {**values, "methods": [m]}, "the benchmark") for m in (frozen, learner)
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--task")
    parser.add_argument("--split", default="test")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--advantage")
    parser.add_argument("--ahead", type=int)
    parser.add_argument("--temperature", type=float, help="of the learner")
    parser.add_argument("--frozen-temperature", type=float)
    given = parser.parse_args(words)
    loaded: list[LoadedModel] = []

    def load(config: RunConfig) -> Executor:
        if not loaded:
            loaded.append(load_weights(config.model, None, dtype="float32", device="cpu"))
        return LocalExecutor(loaded[0])

    print(vars(given), flush=True)
    print("seed  side       best   solved  tokens  processor s  mean score of each round")
    differences = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for number, config in enumerate(sides(seed, given)):
                begun = time.process_time()
                (run,) = run_sweep(config, Path(folder) / str(number), load, Quiet())
                spent = time.process_time() - begun
                best = [record.score or 0.0 for record in run.records]
                print(
                    f"{seed:4}  {run.method:10} {sum(best) / len(best):5.3f} "
                    f"{run.summary['solved']:7} {run.summary['usage']['generated_tokens']:7} "
                    f"{spent:12.0f}  {rounds(run.trials)}",
                    flush=True,
                )
                runs.append(run)
            comparison, _ = compare(runs, allow=["temperature"])
        assert comparison.scores is not None
        pair = comparison.scores.pairs[1]
        sign = 1 if pair.first.startswith("policy") else -1
        differences.append(sign * pair.difference.value)
        print(
            f"      policy - best-of-n at {pair.budget:.0f} tokens a question: "
            f"{differences[-1]:+.3f}, p = {pair.p:.3f}",
            flush=True,
        )
    if len(differences) > 1:
        found = ttest_1samp(differences, 0.0)
        low, high = found.confidence_interval()
        print(
            f"over {len(differences)} seeds {sum(differences) / len(differences):+.3f} "
            f"({low:+.3f} to {high:+.3f}), p = {found.pvalue:.4f}"
        )


if __name__ == "__main__":
    main()
