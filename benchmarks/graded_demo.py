"""Whether learning is visible on a graded task with the embedded model, over several seeds.

    python benchmarks/graded_demo.py --seeds 1 2 3 4 5

Two sides on the same eight questions of ``sorting``, in one run a seed: the frozen model drawn
again (``best-of-n``), and ``policy --shared``, one adapter that learns from the scores of groups of
eight attempts. Printed are the mean score of the first and of the last sixteen trials of a
question that is still open, the best score a question, and the paired difference of the latter at
equal tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fttt.config import RunConfig, build
from fttt.experiment.plan import load_weights
from fttt.experiment.sweep import SweepConfig, run_sweep
from fttt.models import LoadedModel
from fttt.progress import Quiet
from fttt.report.compare import compare
from fttt.store import Run


def sweep(seed: int, trials: int, lr: float, advantage: str) -> SweepConfig:
    """The two sides under one seed."""
    settings = {"shared": True, "group": 8, "lr": lr, "advantage": advantage}
    learner = {"method": "policy", "settings": settings}
    base = {
        "model": "smollm2-135m",
        "save_correct_cases": False,
        "data": {"limit": 8, "seed": seed},
        "budget": {"trials": trials},
        "sampling": {"max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0},
        "engine": {"batch_size": 64},
    }
    values = {
        "methods": ["best-of-n", learner],
        "tasks": ["sorting"],
        "seeds": [seed],
        "base": base,
    }
    return build(SweepConfig, values, "the benchmark")


def mean_score(run: Run, first: int, last: int) -> float:
    """Mean score of the trials of these numbers."""
    scores = [t.score or 0.0 for t in run.trials if first <= t.trial < last]
    return sum(scores) / max(1, len(scores))


def load(config: RunConfig) -> LoadedModel:
    return load_weights(config.model, None, dtype="float32", device="cpu")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--advantage", default="rloo")
    given = parser.parse_args(words)
    print("seed  side       first 16  last 16  best  solved  tokens  seconds")
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            grid = sweep(seed, given.trials, given.lr, given.advantage)
            runs = run_sweep(grid, Path(folder) / "s", load, Quiet())
            seconds = time.perf_counter() - begun
            for run in runs:
                best = [record.score or 0.0 for record in run.records]
                print(
                    f"{seed:4}  {run.method:10} {mean_score(run, 0, 16):8.3f} "
                    f"{mean_score(run, given.trials - 16, given.trials):8.3f} "
                    f"{sum(best) / len(best):5.3f} {run.summary['solved']:7} "
                    f"{run.summary['usage']['generated_tokens']:7} {seconds:8.0f}",
                    flush=True,
                )
            comparison, _ = compare(runs)
            assert comparison.scores is not None
            pair = comparison.scores.pairs[1]
            print(
                f"      best score, {pair.first} - {pair.second} at {pair.budget:.0f} tokens: "
                f"{pair.difference.value:+.3f} ({pair.difference.low:+.3f} to "
                f"{pair.difference.high:+.3f}), p = {pair.p:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
