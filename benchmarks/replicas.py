"""Whole runs with one replica and with more, by the same trials; the start is told apart.

    python benchmarks/replicas.py --task gsm8k --data-dir DIR --counts 1 2         # two GPUs
    python benchmarks/replicas.py --task gsm8k --data-dir DIR --counts 1 2 4 --one-gpu
    python benchmarks/replicas.py --shape llama-8b --questions 512 --trials 2 --counts 1 2
    python benchmarks/replicas.py --model smollm2-135m --device cpu --questions 16 --counts 1 2

Each count has a process of its own, so that memory is free again; one is `fttt run` without
`--replicas`. A few questions are asked first, which compiles kernels; then each method's run is
timed from the first line in its folder to the last (`seconds` of `summary.json`); several `--seeds`
are a run each, all at once, as in a sweep. After each count come the ratio of trials a second to
the first one's, and whether the trials are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fttt.config import EngineSection, resolve
from fttt.experiment.cluster import executors
from fttt.experiment.plan import Plan, plan_run, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.progress import Quiet
from fttt.store import Run

WARM_QUESTIONS = 32


def engine_of(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Settings of so many replicas, one being this process."""
    own: dict[str, Any] = {"device": options.device}
    if count > 1:
        own |= {"replicas": count, "gpus_per_replica": 1 / (count if options.one_gpu else 1)}
    return own


def make_plan(options: argparse.Namespace, method: str, seed: int, count: int) -> Plan:
    """The run of a method."""
    values = {
        "method": method,
        "seed": seed,
        "model": options.model,
        "task": options.task,
        "save_correct_cases": False,
        "data": {"limit": options.questions, "skip_cases": "none"},
        "budget": {"trials": options.trials},
        "sampling": {"max_new_tokens": options.new_tokens},
        "engine": engine_of(options, count),
    }
    if options.data_dir is not None:
        values["data"]["data_dir"] = str(options.data_dir)
    if options.batch_size is not None:
        values["engine"]["batch_size"] = options.batch_size
    return plan_run(settle(resolve(values)))


def measure(options: argparse.Namespace, count: int, folder: Path) -> dict[str, Any]:
    """Seconds of the start, and of each method's runs, those of all seeds at once."""
    engine = EngineSection(**engine_of(options, count))
    plans = {
        method: [make_plan(options, method, seed, count) for seed in options.seeds]
        for method in options.methods
    }
    found: dict[str, Any] = {}
    began = time.perf_counter()
    with executors(engine, print) as load:
        executor = load(next(iter(plans.values()))[0].config)
        found["start"] = time.perf_counter() - began
        for method, own in plans.items():
            few = replace(own[0], questions=own[0].questions[: WARM_QUESTIONS * count])
            run_cells([Cell(few, folder / f"{method}-warm")], executor, Quiet())
            runs = []
            for number in range(options.repeat):
                cells = [Cell(p, folder / f"{method}-{number}-s{p.config.seed}") for p in own]
                began = time.perf_counter()
                done = run_cells(cells, executor, Quiet())
                whole = time.perf_counter() - began
                summaries = [run.summary for run in done]
                runs.append(
                    {
                        "seconds": max(summary["seconds"] for summary in summaries),
                        "with_engine": whole,
                        "trials": sum(summary["trials_total"] for summary in summaries),
                        "tokens": sum(x["usage"]["generated_tokens"] for x in summaries),
                        "folders": [str(run.path) for run in done],
                    }
                )
                rate = runs[-1]["trials"] / runs[-1]["seconds"]
                print(f"  {method}, as measured: {rate:.1f} trials/s", flush=True)
            found[method] = runs
    return found


def apart(options: argparse.Namespace, count: int, folder: Path) -> dict[str, Any] | None:
    """The same in a process of its own; ``None`` where that failed or took too long."""
    out = folder / f"{count}.json"
    words = [sys.executable, *sys.argv, "--only", str(count), "--folder", str(folder / f"{count}")]
    process = subprocess.Popen([*words, "--model", options.model])
    try:
        code = process.wait(options.limit)
    except subprocess.TimeoutExpired:
        code = None
        process.terminate()  # upon which the driver ends its replicas
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if code != 0:
        how = f"not done after {options.limit:.0f} s" if code is None else f"ended with {code}"
        print(f"{count} replicas: {how}", flush=True)
        return None
    measured: dict[str, Any] = json.loads(out.read_text())
    return measured


def facts(folders: Sequence[str]) -> list[tuple[str, int, tuple[int, ...]]]:
    """The tokens of all trials of some runs."""
    runs = map(Run.open, folders)
    return [
        (trial.question_id, trial.trial, trial.token_ids) for run in runs for trial in run.trials
    ]


def save_shape(shape: str, folder: Path) -> str:
    """Random weights of a shape in a folder, as replicas load them."""
    import torch
    from shapes import random_loaded

    gpu = torch.cuda.is_available()
    loaded = random_loaded(
        shape, torch.bfloat16 if gpu else torch.float32, "cuda" if gpu else "cpu"
    )
    loaded.model.config.eos_token_id = loaded.stop_ids[0]
    loaded.model.generation_config.eos_token_id = loaded.stop_ids[0]
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run each count in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shape", help="random weights of this shape instead of a model")
    parser.add_argument("--methods", nargs="+", default=["best-of-n", "fttt"])
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--questions", type=int, help="the first so many (all)")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="a run each, as a sweep")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one-gpu", action="store_true", help="they share one GPU")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600, help="most seconds of a count")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        measured = measure(options, options.only, options.folder)
        options.folder.with_suffix(".json").write_text(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.shape is not None:
            subprocess.run(
                [sys.executable, "-c", SAVE, options.shape, str(folder / "model")],
                check=True,
                cwd=Path(__file__).parent,
            )
            options.model = str(folder / "model")
        base = None
        failed = 0
        for count in options.counts:
            print(f"{count} replicas (at most {options.limit:.0f} s) ...", flush=True)
            found = apart(options, count, folder)
            failed += found is None
            if found is not None:
                base = base or (count, found)
                show(options, count, found, base)
        sys.exit(1 if failed else 0)


SAVE = "import sys; from replicas import save_shape; from pathlib import Path; " + (
    "save_shape(sys.argv[1], Path(sys.argv[2]))"
)


def show(
    options: argparse.Namespace, count: int, found: dict[str, Any], base: tuple[int, dict[str, Any]]
) -> None:
    """A line a method, and how many times the rate it is of the first count that was measured."""
    print(f"{count} replicas: start {found['start']:.1f} s")
    for method in options.methods:
        best, first = (min(one[method], key=lambda run: run["seconds"]) for one in (found, base[1]))
        rate, base_rate = (one["trials"] / one["seconds"] for one in (best, first))
        own, its = facts(best["folders"]), facts(first["folders"])
        same = sum(a == b for a, b in zip(own, its, strict=False))
        print(
            f"  {method}: {best['trials']} trials, {best['tokens']} tokens in "
            f"{best['seconds']:.2f} s ({best['with_engine']:.2f} s with the engine): "
            f"{rate:.1f} trials/s, {best['tokens'] / best['seconds']:,.0f} tokens/s, "
            f"{rate / base_rate:.3f} times {base[0]}; {same} of {len(own)} trials the same",
            flush=True,
        )


if __name__ == "__main__":
    main()
