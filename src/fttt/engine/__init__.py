"""Batched generation and training with per-question weights."""

from fttt.engine.batched import BatchedEngine
from fttt.engine.noise import derive_key
from fttt.engine.plan import MemoryPlan
from fttt.engine.request import (
    Engine,
    GenerateRequest,
    Generation,
    LoRASpec,
    Target,
    Trained,
    TrainRequest,
)

__all__ = [
    "BatchedEngine",
    "Engine",
    "GenerateRequest",
    "Generation",
    "LoRASpec",
    "MemoryPlan",
    "Target",
    "TrainRequest",
    "Trained",
    "derive_key",
]
