"""Whether learning is visible on a graded task with the embedded model, over several seeds.

    python benchmarks/graded_demo.py --seeds 1 2 3 4 5

Two sides on the same eight questions of ``optimise/packing`` (``--task``): the frozen model drawn
again (``best-of-n``) at its own best temperature, and ``policy --shared``, one adapter that learns
from the scores of groups of eight attempts. Printed are the mean score of each round of eight
trials, the best score a question, the processor time, and the paired difference of the best scores
at equal tokens; at the end a paired t test of these differences over the seeds.

Temperatures and rate were chosen on the training split (``--split train``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from fttt.config import RunConfig, build
from fttt.experiment.executor import Executor, LocalExecutor
from fttt.experiment.plan import load_weights
from fttt.experiment.sweep import SweepConfig, run_sweep
from fttt.models import LoadedModel
from fttt.progress import Quiet
from fttt.report.compare import compare
from fttt.store import Run

GROUP = 8


def side(method: dict[str, Any], seed: int, given: argparse.Namespace) -> SweepConfig:
    """One side under one seed."""
    values = {
        "methods": [method],
        "tasks": [given.task],
        "seeds": [seed],
        "base": {
            "model": "smollm2-135m",
            "save_correct_cases": False,
            "data": {"limit": 8, "seed": seed, "split": given.split},
            "budget": {"trials": given.trials},
            "sampling": {"max_new_tokens": 24, "top_p": 1.0},
            "engine": {"batch_size": 64},
        },
    }
    return build(SweepConfig, values, "the benchmark")


def sides(seed: int, given: argparse.Namespace) -> list[SweepConfig]:
    """The frozen model, and the learner."""
    settings = {
        "shared": True,
        "group": GROUP,
        "ahead": given.ahead,
        "lr": given.lr,
        "advantage": given.advantage,
    }
    frozen = {"method": "best-of-n", "sampling": {"temperature": given.frozen_temperature}}
    learner = {
        "method": "policy",
        "settings": settings,
        "sampling": {"temperature": given.temperature},
    }
    return [side(method, seed, given) for method in (frozen, learner)]


def rounds(run: Run, trials: int) -> str:
    """Mean score of each round of a group's trials, of the questions that are still open."""
    means = []
    for first in range(0, trials, GROUP):
        scores = [t.score or 0.0 for t in run.trials if first <= t.trial < first + GROUP]
        means.append(f"{sum(scores) / len(scores):.3f}" if scores else "-")
    return " ".join(means)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--task", default="optimise/packing")
    parser.add_argument("--split", default="test")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--advantage", default="grpo")
    parser.add_argument("--ahead", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the learner")
    parser.add_argument("--frozen-temperature", type=float, default=1.0)
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
                    f"{spent:12.0f}  {rounds(run, given.trials)}",
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
