"""Batched generation and training with per-question weights."""

from fttt.engine.batched import BatchedEngine
from fttt.engine.noise import derive_key
from fttt.engine.plan import MemoryPlan
from fttt.engine.request import (
    AdapterSpec,
    BeamRequest,
    Engine,
    GenerateRequest,
    Generation,
    LoRASpec,
    Target,
    Trained,
    TrainRequest,
    WeightDeltaSpec,
)

__all__ = [
    "AdapterSpec",
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
    "WeightDeltaSpec",
    "derive_key",
]
