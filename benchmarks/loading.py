"""How long a model takes to load, part by part, and to check.

    python benchmarks/loading.py [MODEL ...] [--dtypes float32 bfloat16] [--device cpu]
    python benchmarks/loading.py --shape llama-8b --dtypes bfloat16 --device cuda

Each MODEL is a GGUF file, a folder, a hub name or the embedded default. Of a GGUF file the
metadata, the tokenizer and the weights are timed one by one; of any model the whole load, and the
check of its outputs against its own forward pass, without the notes of earlier checks. With
`--shape` a model of that shape with random weights is only checked. Prints wall and processor
seconds; the first check of a process compiles kernels and is the slowest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from shapes import SHAPES, random_loaded

from fttt.engine.ops import current_device
from fttt.engine.selfcheck import find_difference
from fttt.models import find_model, load_model, without_bars
from fttt.models.gguf.file import open_gguf
from fttt.models.gguf.model import read_model, read_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")
    for name in options.models or ([] if options.shape else ["smollm2-135m"]):
        source = find_model(name)
        print(source.name)
        if source.kind == "gguf":
            timed("metadata", lambda path=source.path: open_gguf(path))
            timed("tokenizer", lambda path=source.path: read_tokenizer(path))
        for dtype in options.dtypes:
            if source.kind == "gguf":
                part = getattr(torch, dtype)
                timed(f"{dtype} weights", lambda path=source.path, to=part: read_model(path, to))
            loaded = timed(
                f"{dtype} whole load",
                lambda name=name, dtype=dtype: load_model(name, dtype=dtype, device=options.device),
            )
            check(loaded.model, f"{dtype} check", options.repeats)
    if options.shape:
        print(options.shape)
        for dtype in options.dtypes:
            model = random_loaded(options.shape, getattr(torch, dtype), options.device).model
            check(model, f"{dtype} check", options.repeats)


def check(model: Any, what: str, repeats: int) -> None:
    """Check a model's outputs so many times."""

    def once() -> None:
        with current_device(model.device):
            fault = find_difference(model)
        assert fault is None, fault

    for number in range(repeats):
        timed(f"{what} {number + 1}", once)


def timed(what: str, act: Callable[[], Any]) -> Any:
    """Do something, and print what it took."""
    begun, busy = time.perf_counter(), time.process_time()
    result = act()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    wall, busy = time.perf_counter() - begun, time.process_time() - busy
    print(f"  {what:24} {wall:7.2f} s, {busy:7.2f} s of processor time", flush=True)
    return result


if __name__ == "__main__":
    with without_bars():
        main()
