"""A tiny model on disk, and how it is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fttt.config import FinetuneConfig, build, merge
from fttt.finetune.finetune_plan import FinetunePlan, plan_finetune
from fttt.finetune.metadata import FinetuneInfo
from fttt.finetune.train import train
from fttt.testing import save_tiny_model

BASE: dict[str, Any] = {
    "task": "arithmetic",
    "data": {"limit": 24, "held_out": 0.2},
    "training": {"samples": 5, "max_steps": 6, "every": 3, "lr": 1e-2},
    "engine": {"device": "cpu"},
}

MakePlan = Callable[..., FinetunePlan]
RunTrain = Callable[..., FinetuneInfo]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama", layers=4)


@pytest.fixture
def make_plan(tiny: Path) -> MakePlan:
    """A plan of a method, with any part of the config changed."""

    def make(method: str, **over: Any) -> FinetunePlan:
        whole = merge(merge(BASE, {"method": method, "model": str(tiny)}), over)
        return plan_finetune(build(FinetuneConfig, whole, "the test"))

    return make


@pytest.fixture
def run_train(make_plan: MakePlan) -> RunTrain:
    """Train a method into a folder."""

    def run(method: str, folder: Path, **over: Any) -> FinetuneInfo:
        return train(make_plan(method, **over), folder)

    return run
