"""Our side of ``benchmarks/vllm.py``: the cases of a job by the engine, as ``reference_vllm.py``.

The model is made once, and an engine for each case.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from reference_vllm import emit, guarded, random_prompts
from shapes import random_loaded

from fttt.engine import (
    BatchedEngine,
    GenerateRequest,
    Generation,
    Lesson,
    LoRASpec,
    Target,
    TrainRequest,
    derive_key,
)

FEEDBACK = Target(tuple(range(5, 13)), (1 / 8,) * 8)
"""What a train step learns from: eight tokens after the answer."""


def main() -> None:
    """Run the cases of a job."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    begun = time.perf_counter()
    name = job["cases"][0]["shape"]
    loaded = random_loaded(name, getattr(torch, job["dtype"]), job["device"])
    weights = time.perf_counter() - begun

    async def measure(case: dict[str, Any]) -> None:
        if job["device"] == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter() - weights
        sequences = case["questions"] * case["samples"]
        engine = BatchedEngine(
            loaded,
            max_length=case["prompt"] + case["new"],
            batch_size=sequences,
            concurrency=sequences,
            adapter=LoRASpec() if case["adapters"] else None,
        )
        try:
            made = time.perf_counter() - begun
            await engine.generate(GenerateRequest((5,) * 16, 1))
            emit(
                job, event="start", cases=[case["name"]], start_seconds=made,
                first_token_seconds=time.perf_counter() - begun,
                facts={"torch": torch.__version__},
            )  # fmt: skip
            await timed(engine, case, job)
        finally:
            await engine.close()

    for case in job["cases"]:
        guarded(job, case, lambda case=case: asyncio.run(measure(case)))


async def timed(engine: BatchedEngine, case: dict[str, Any], job: dict[str, Any]) -> None:
    """Warm up, then time the case as often as asked."""
    slots: list[Any] = [None] * case["questions"]
    if case["adapters"]:
        slots = [await engine.open_adapter(LoRASpec(), seed=n) for n in range(len(slots))]
    updates: list[float] = []

    async def once(new: int, seed: int) -> tuple[float, int]:
        prompts = random_prompts(job, case, seed)
        requests = [
            GenerateRequest(
                tuple(prompt), new, case["temperature"], case["top_p"],
                derive_key("beside", seed, n, sample), adapter=slot, keep=slot is not None,
            )
            for n, (prompt, slot) in enumerate(zip(prompts, slots, strict=True))
            for sample in range(case["samples"])
        ]  # fmt: skip
        begun = time.perf_counter()
        answers = await asyncio.gather(*map(engine.generate, requests))
        seconds = time.perf_counter() - begun
        if case["adapters"]:
            updates.append(await updated(engine, slots, answers))
        return seconds, sum(len(answer.token_ids) for answer in answers)

    for seed in (1, 2):  # kernels are compiled and steps captured on first use
        await once(min(24, case["new"]), 1000 * case["seed"] + seed)
    engine.reset_counters()
    graphs = captured(engine)
    runs = [await once(case["new"], 1000 * case["seed"] + 10 + n) for n in range(job["repeats"])]
    cuda = job["device"] == "cuda"
    emit(
        job,
        case=case["name"],
        sizes=case,
        seconds=statistics.median(seconds for seconds, _ in runs),
        runs=[seconds for seconds, _ in runs],
        tokens=runs[0][1],
        update_seconds=min(updates[2:], default=None),
        planned_bytes=engine.plan.total_bytes,
        peak_bytes=torch.cuda.max_memory_allocated() if cuda else 0,
        reserved_bytes=torch.cuda.max_memory_reserved() if cuda else 0,
        plan=engine.plan.describe(),
        pauses=engine.pauses,
        step_seconds=engine.busy["decode"] / max(1, engine.decode_steps),
        busy={kind: seconds for kind, seconds in engine.busy.items() if seconds},
        captured_while_timed=captured(engine) - graphs,
    )


async def updated(
    engine: BatchedEngine, slots: Sequence[Any], answers: Sequence[Generation]
) -> float:
    """Seconds of a train step of all adapters, each on its own answer."""
    begun = time.perf_counter()
    await asyncio.gather(
        *(
            engine.train(TrainRequest(slot, (Lesson(answer.kept, (FEEDBACK,)),)))
            for slot, answer in zip(slots, answers, strict=True)
            if answer.kept is not None
        )
    )
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def captured(engine: BatchedEngine) -> int:
    """How many kinds of decode step have been captured; none on a CPU."""
    return len(getattr(engine._decoder, "_graphs", ()))


if __name__ == "__main__":
    main()
