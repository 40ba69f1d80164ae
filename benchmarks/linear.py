"""A linear layer of few rows on a CPU: `F.linear` beside the engine's form of it.

    python benchmarks/linear.py

Weights of 120 MB are read in turn, so that they come from memory as in a model. Printed: GB/s of
weights, and the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fttt.engine.families import few_row_linear

SHAPES = ((49152, 576), (1536, 576), (576, 1536), (576, 576))


def median_seconds(
    layer: Callable[[Tensor, Tensor, None], Tensor], x: Tensor, weights: list[Tensor]
) -> float:
    """Of seven passes over all weights, after one that is not counted."""
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        for weight in weights:
            layer(x, weight, None)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Print a line for each shape and number of rows."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        for outputs, inputs in SHAPES:
            count = max(1, round(30e6 / (outputs * inputs)))
            weights = [torch.randn(outputs, inputs) for _ in range(count)]
            gigabytes = count * outputs * inputs * 4 / 1e9
            for rows in (1, 2, 4, 8, 12, 16):
                x = torch.randn(rows, inputs)
                theirs = gigabytes / median_seconds(F.linear, x, weights)
                ours = gigabytes / median_seconds(few_row_linear, x, weights)
                print(
                    f"{outputs:>6} x {inputs:<5} {rows:>3} rows: F.linear {theirs:5.1f} GB/s, "
                    f"ours {ours:5.1f} GB/s, {ours / theirs:.2f} times"
                )


if __name__ == "__main__":
    main()
