"""Batched generation and training with per-question weights."""

from fttt.engine.batched import BatchedEngine
from fttt.engine.noise import derive_key
from fttt.engine.plan import MemoryPlan
from fttt.engine.request import (
    BeamRequest,
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
    "BeamRequest",
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
