"""Families whose attention is unlike others, on a GPU: sinks, chunks, slopes, unequal heads."""

import pytest
import torch

from fttt.engine.selfcheck import find_difference
from fttt.testing.tiny_models import random_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
FAMILIES = (
    *("llama", "gemma2", "gpt_oss", "granite_swa", "mimo_v2_flash", "llama4_text"),
    *("gemma3n_text", "gemma4_text", "deepseek_v2", "deepseek_v3", "minicpm3", "glm4_moe_lite"),
    *("bloom", "mpt", "falcon", "opt", "gpt2", "gptj", "gpt_neo", "stablelm", "nemotron", "afmoe"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_model(family: str, dtype: torch.dtype) -> None:
    model = random_family(family).to("cuda", dtype)
    assert find_difference(model) is None
