"""How fast the engine is, beside the least that the memory traffic allows.

A decode step must read every weight once and the filled part of every running row; over the
device's measured copy bandwidth that is a floor that no implementation beats.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fttt.engine.cache import read_heads
from fttt.engine.engine import BatchedEngine
from fttt.engine.ops.sampling import derive_key
from fttt.engine.request import GenerateRequest, Lesson, LoRASpec, Target, TrainRequest
from fttt.models.loader import LoadedModel
from fttt.models.quantized import held_bytes

__all__ = ["Workload", "WorkloadResult", "bandwidth", "decode_floor", "run_workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """Questions that are all tried the same number of times, with or without an update after."""

    prompts: tuple[tuple[int, ...], ...]
    feedback: tuple[int, ...]
    trials: int = 4
    new_tokens: int = 150
    temperature: float = 0.6
    top_p: float = 0.95
    train: bool = True


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    """What a workload took."""

    seconds: float
    trials: int
    generated_tokens: int
    decode_steps: int
    busy: dict[str, float]
    losses: tuple[float, ...]
    """Of each question's last update."""
    peak_bytes: int
    """Most memory held on a GPU; 0 on a CPU."""
    plan: str

    @property
    def trials_per_second(self) -> float:
        return self.trials / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens / self.seconds

    @property
    def step_seconds(self) -> float:
        """A decode step, sampling included."""
        return self.busy["decode"] / max(1, self.decode_steps)


def run_workload(
    loaded: LoadedModel,
    workload: Workload,
    *,
    batch_size: int | None = None,
    lora: LoRASpec | None = None,
    warm_up: bool = True,
) -> WorkloadResult:
    """Run a workload through a fresh engine; no answer ends early, so all work is the same."""
    spec = lora or LoRASpec()
    cuda = loaded.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(loaded.device)

    async def main() -> WorkloadResult:
        longest = max(map(len, workload.prompts))
        engine = BatchedEngine(
            loaded,
            max_length=longest + workload.new_tokens,
            batch_size=batch_size,
            concurrency=len(workload.prompts),
            adapter=spec if workload.train else None,
        )
        try:
            warm = min(8, workload.new_tokens)
            if warm_up:  # kernels are compiled and graphs captured on first use
                await asyncio.gather(
                    *(_question(engine, workload, n, 1, spec, warm) for n in _all(workload))
                )
            engine.reset_counters()
            start = time.perf_counter()
            losses = await asyncio.gather(
                *(_question(engine, workload, n, workload.trials, spec) for n in _all(workload))
            )
            seconds = time.perf_counter() - start
        finally:
            await engine.close()
        return WorkloadResult(
            seconds=seconds,
            trials=len(workload.prompts) * workload.trials,
            generated_tokens=engine.generated_tokens,
            decode_steps=engine.decode_steps,
            busy=dict(engine.busy),
            losses=tuple(losses),
            peak_bytes=torch.cuda.max_memory_allocated(loaded.device) if cuda else 0,
            plan=engine.plan.describe(),
        )

    return asyncio.run(main())


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, counting bytes read and bytes written; the best of five."""
    cuda = device.startswith("cuda")
    source = torch.ones(2**30 if cuda else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() / best


def decode_floor(loaded: LoadedModel, lanes: int, filled: float, bytes_per_second: float) -> float:
    """Seconds that a decode step's memory traffic needs: all weights, and ``filled`` tokens a lane.

    The embedding table is read only at the rows that are looked up, unless it is also the output
    layer.
    """
    model = loaded.model
    embedding = model.get_input_embeddings().weight
    weights = held_bytes(model)
    if model.get_output_embeddings().weight is not embedding:
        weights -= embedding.numel() * embedding.element_size()
    numbers = sum(own.numbers for own in read_heads(model).values())
    cached = lanes * filled * numbers * embedding.element_size()
    return float((weights + cached) / bytes_per_second)


def _all(workload: Workload) -> Sequence[int]:
    return range(len(workload.prompts))


async def _question(
    engine: BatchedEngine,
    workload: Workload,
    n: int,
    trials: int,
    spec: LoRASpec,
    new_tokens: int | None = None,
) -> float:
    """One question's trials, as the FTTT method makes them; the loss of the last update."""
    slot = await engine.open_adapter(spec, seed=n) if workload.train else None
    weight = 1 / len(workload.feedback)
    target = Target(workload.feedback, (weight,) * len(workload.feedback))
    loss = float("nan")
    for trial in range(trials):
        answer = await engine.generate(
            GenerateRequest(
                workload.prompts[n],
                new_tokens or workload.new_tokens,
                workload.temperature,
                workload.top_p,
                derive_key("measure", n, trial),
                adapter=slot,
                keep=slot is not None,
            )
        )
        if slot is not None and answer.kept is not None:
            loss = (await engine.train(TrainRequest(slot, (Lesson(answer.kept, (target,)),)))).loss
    if slot is not None:
        slot.close()
    return loss
