"""Batched generation and training with per-question weights."""

from fttt.engine.engine import BatchedEngine
from fttt.engine.memory_plan import MemoryPlan
from fttt.engine.ops.sampling import derive_key
from fttt.engine.request import (
    AdapterSpec,
    BeamRequest,
    Engine,
    GenerateRequest,
    Generation,
    Lesson,
    LoRASpec,
    Scored,
    ScoreRequest,
    Target,
    Trained,
    TrainRequest,
    WeightDeltaSpec,
)
from fttt.engine.selfcheck import check_outputs

__all__ = [
    "AdapterSpec",
    "BatchedEngine",
    "BeamRequest",
    "Engine",
    "GenerateRequest",
    "Generation",
    "Lesson",
    "LoRASpec",
    "MemoryPlan",
    "ScoreRequest",
    "Scored",
    "Target",
    "TrainRequest",
    "Trained",
    "WeightDeltaSpec",
    "check_outputs",
    "derive_key",
]
