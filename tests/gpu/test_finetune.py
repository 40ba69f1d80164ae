"""Fine-tuning on a GPU: bfloat16 beside float32 weights, and as good as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fttt.config import FinetuneConfig, build
from fttt.finetune.checkpoint import METHODS, FinetuneInfo
from fttt.finetune.plan import plan_finetune
from fttt.finetune.train import train
from fttt.testing import save_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(method: str, folder: Path, model: Path, device: str, dtype: str) -> FinetuneInfo:
    values = {
        "method": method,
        "model": str(model),
        "data": {"limit": 24, "held_out": 0.2},
        "training": {"samples": 5, "max_steps": 6, "every": 3, "lr": 1e-2},
        "engine": {"device": device, "dtype": dtype},
        "settings": {"dropout": 0.0} if method == "lora" else {},
    }
    return train(plan_finetune(build(FinetuneConfig, values, "the test")), folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_learns_what_a_cpu_learns(method: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tiny", layers=4)
    losses = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        folder = tmp_path / f"{device}-{dtype}"
        losses[device, dtype] = run(method, folder, model, device, dtype).validation_loss
        (weights,) = folder.glob("*.safetensors")
        assert {value.dtype for value in load_file(weights).values()} == {torch.float32}
    assert losses["cuda", "float32"] == pytest.approx(losses["cpu", "float32"], rel=1e-2)
    assert losses["cuda", "bfloat16"] == pytest.approx(losses["cpu", "float32"], rel=5e-2)
