"""A linear layer of few rows on a CPU: `F.linear` beside the engine's forms of it.

    OMP_NUM_THREADS=1 python benchmarks/linear.py

Weights of 120 MB are read in turn, so that they come from memory as in a model. Printed: processor
time as GB/s of weights and as operations a second, of the best of some passes each; first what the
machine reads and multiplies at most, which is the floor of any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fttt.engine.families import Replacements
from fttt.engine.linear import few_row_linear, linear_replacements

SHAPES = ((49152, 576), (3072, 576), (960, 576), (576, 1536), (576, 576))
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 512)


def best_seconds(run: Callable[[], object]) -> float:
    """Processor time of the best of five runs, after one that is not counted."""
    seconds = []
    for _ in range(6):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def main() -> None:
    """Print a line for each shape and number of rows."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    numbers = torch.randn(60_000_000)
    print(f"a sum reads {0.24 / best_seconds(numbers.sum):.1f} GB/s")
    with torch.no_grad():
        for outputs, inputs in SHAPES:
            count = max(1, round(30e6 / (outputs * inputs)))
            layers = [nn.Linear(inputs, outputs, bias=False) for _ in range(count)]
            model = nn.Sequential(*layers).requires_grad_(False)
            replaced = Replacements(linear_replacements(model))
            replaced.enable()
            for rows in ROWS:
                if outputs * rows > 4e6:
                    continue
                print(f"{outputs:>6} x {inputs:<5} {rows:>3} rows:", end="")
                x = torch.randn(rows, inputs)
                for name, forward in forms(x, layers):
                    seconds = best_seconds(forward) / count
                    rate = outputs * inputs * 4 / seconds / 1e9
                    print(f"  {name} {rate:4.1f} GB/s {rate * rows / 2:5.1f} GFLOP/s", end="")
                print()
            replaced.disable()


def forms(x: Tensor, layers: list[nn.Linear]) -> list[tuple[str, Callable[[], object]]]:
    """Each form of a pass over all layers."""
    weights = [layer.weight for layer in layers]
    found: list[tuple[str, Callable[[], object]]] = [
        ("F.linear", lambda: [F.linear(x, weight) for weight in weights]),
        ("engine", lambda: [layer(x) for layer in layers]),
    ]
    if len(x) <= 16:
        found.append(("left factor", lambda: [few_row_linear(x, w, None) for w in weights]))
    return found


if __name__ == "__main__":
    main()
