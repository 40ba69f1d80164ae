"""Trials under predicted changes of the weights beside independent trials of the base model.

    python benchmarks/optune_evaluate.py --shape llama-8b --questions 64    # one GPU of 80 GB
    python benchmarks/optune_evaluate.py --model smollm2-135m --questions 448

The same questions are tried the same number of times, `--new-tokens` each and none ends early, in
one process: by `best-of-n`, and by `optune` with either schedule, each `--repeat` times in turn and
after a warm-up of its own. The network's numbers are random, since the time does not depend on
them. At the end the best time of each, and how many times best-of-n's it is.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

import torch
from shapes import random_loaded

from engine import FEEDBACK, QUESTION
from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Lesson,
    Target,
    TrainRequest,
    WeightDeltaSpec,
    derive_key,
)
from fttt.models import LoadedModel, load_model
from fttt.optune.checkpoint import edited_layers
from fttt.optune.network import OpTuneNetwork


@dataclass(frozen=True)
class Load:
    """What every arm does."""

    prompts: tuple[tuple[int, ...], ...]
    feedback: tuple[int, ...]
    trials: int
    new_tokens: int
    batch_size: int | None


async def question(
    engine: BatchedEngine, load: Load, n: int, arm: str, spec: WeightDeltaSpec | None, trials: int
) -> None:
    """One question's trials, as the method makes them; all are wrong."""
    slot = await engine.open_adapter(spec, seed=n) if spec else None
    prompt = load.prompts[n]
    for trial in range(trials):
        base = slot is None or (arm == "alternate" and trial % 2 == 0)
        answer = await engine.generate(
            GenerateRequest(
                prompt, load.new_tokens, 0.6, 0.95, derive_key("measure", n, trial),
                adapter=None if base else slot, keep=base or arm == "accumulate",
            )
        )  # fmt: skip
        if answer.kept is None:
            continue
        if slot is not None and trial < trials - 1:
            ids = prompt[1:] + answer.token_ids + load.feedback
            target = Target(ids, (1 / len(ids),) * len(ids), after=1)
            await engine.train(TrainRequest(slot, (Lesson(answer.kept, (target,)),)))
        answer.kept.close()
    if slot is not None:
        slot.close()


def measure(loaded: LoadedModel, load: Load, arm: str, network: OpTuneNetwork) -> float:
    """Seconds of an arm, after two trials that warm it up."""
    names = tuple(layer.name for layer in network.layers)
    spec = None
    if arm != "best-of-n":
        spec = WeightDeltaSpec(names, network.changes, arm == "accumulate", key=arm)

    async def main() -> float:
        engine = BatchedEngine(
            loaded,
            max_length=max(map(len, load.prompts)) + load.new_tokens,
            batch_size=load.batch_size,
            concurrency=len(load.prompts),
            adapter=spec,
        )
        try:
            for trials in (2, load.trials):
                engine.reset_counters()
                start = time.perf_counter()
                every = range(len(load.prompts))
                await asyncio.gather(*(question(engine, load, n, arm, spec, trials) for n in every))
                seconds = time.perf_counter() - start
        finally:
            await engine.close()
        busy = ", ".join(f"{kind} {spent:.2f} s" for kind, spent in engine.busy.items() if spent)
        steps = f"{engine.decode_steps} decode steps"
        print(f"{arm}: {seconds:.2f} s: {busy}, {steps}; {engine.plan.describe()}", flush=True)
        return seconds

    if loaded.device == "cpu":
        return asyncio.run(main())
    torch.cuda.reset_peak_memory_stats()
    seconds = asyncio.run(main())
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shape", choices=["llama-8b"], help="random weights instead of a model")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=150)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.shape:
        loaded = random_loaded(
            "llama-8b", torch.bfloat16, "cuda" if options.device == "auto" else options.device
        )
    else:
        loaded = load_model(options.model, device=options.device)
    load = Load(
        tuple(
            loaded.chat.prompt_ids(QUESTION.format(n + 3, n + 8, n // 2))
            for n in range(options.questions)
        ),
        loaded.chat.turn_ids(FEEDBACK, answer=False),
        options.trials,
        options.new_tokens,
        options.batch_size,
    )
    network = OpTuneNetwork(edited_layers(loaded.model)).to(loaded.device)
    arms = ("best-of-n", "alternate", "accumulate")
    rounds = [[measure(loaded, load, arm, network) for arm in arms] for _ in range(options.repeat)]
    best = {arm: min(taken) for arm, taken in zip(arms, zip(*rounds, strict=True), strict=True)}
    trials = options.questions * options.trials
    print(f"\n{loaded.name}, {loaded.dtype}, {loaded.device}: {trials} trials")
    for arm, seconds in best.items():
        share = seconds / best["best-of-n"]
        print(f"{arm:12} {trials / seconds:8.2f} trials/s   {share:.2f} times")


if __name__ == "__main__":
    main()
