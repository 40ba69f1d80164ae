"""Best-of-N with its next answers written ahead, beside one answer after the other.

    python benchmarks/ahead.py                  # the embedded model, any device

A question is asked that no answer solves, so that every trial is needed; both sides make the same
trials in one process, in turn, `--repeat` times each, and the medians are compared. The other
side is the same engine with no lane that it calls idle.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest.mock import PropertyMock, patch

import fttt
from fttt.engine import BatchedEngine
from fttt.models import LoadedModel, load_model

QUESTION = "A farmer has 47 boxes with 52 apples each and gives 23 apples away. How many are left?"


def ask(loaded: LoadedModel, options: argparse.Namespace) -> tuple[float, list[str]]:
    """Seconds, and the answers."""
    start = time.perf_counter()
    result = fttt.solve(
        QUESTION, verify=lambda _: False, model=loaded, method="best-of-n",
        trials=options.trials, max_new_tokens=options.new_tokens,
    )  # fmt: skip
    return time.perf_counter() - start, [trial.completion for trial in result.trials]


def main() -> None:
    """Measure both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    loaded = load_model(options.model)
    nowhere = patch.object(BatchedEngine, "idle", new_callable=PropertyMock, return_value=0)
    seconds: dict[str, list[float]] = {"ahead": [], "alone": []}
    for _ in range(options.repeat):
        took, answers = ask(loaded, options)
        seconds["ahead"].append(took)
        with nowhere:
            took, alone = ask(loaded, options)
        seconds["alone"].append(took)
        if answers != alone:
            raise SystemExit("The two sides did not write the same answers.")
    ahead, alone_s = (statistics.median(values) for values in seconds.values())
    print(f"{loaded.name} {loaded.dtype} on {loaded.device}, {options.trials} trials, same answers")
    print(f"written ahead {ahead:.1f} s, one after the other {alone_s:.1f} s")
    print(f"{alone_s / ahead:.2f} times as fast")


if __name__ == "__main__":
    main()
