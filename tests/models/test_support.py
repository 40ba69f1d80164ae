"""What a configuration alone tells of a model that cannot be run."""

import json
from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.models import check_model, load_model
from fttt.models.support import refusal
from fttt.testing import save_tiny_model
from fttt.testing.tiny_models import family_types


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "bart"}, "encoder-decoder"),
        ({"model_type": "new", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "bert"}, "later tokens"),
        ({"model_type": "deepseek_v32"}, "index"),
        ({"model_type": "phimoe", "rope_scaling": {"rope_type": "longrope"}}, "longest sequence"),
    ],
)
def test_a_model_is_refused_by_its_configuration(
    tmp_path: Path, config: dict[str, object], why: str
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    (folder / "model.safetensors").write_bytes(b"never read")
    for refuse in (check_model, load_model):
        with pytest.raises(UsageError, match=why) as refused:
            refuse(str(folder))
        assert str(refused.value).count(";") == 1


def test_a_model_that_was_not_shown_right_on_a_gpu_is_refused_there_only() -> None:
    config = {"model_type": "gemma3n_text"}
    assert refusal(config) is None
    assert "--device cpu" in (refusal(config, "cuda") or "")


def test_a_usual_model_is_not() -> None:
    for kind in ("llama", "gpt2", "qwen3", "gemma3_text", "gpt_oss"):
        assert kind in family_types()
        assert refusal({"model_type": kind}) is None
    assert refusal({"model_type": "phimoe"}) is None


def test_a_model_of_gpt2s_class_is_a_causal_language_model(tmp_path: Path) -> None:
    check_model(str(save_tiny_model(tmp_path / "model", "gpt2")))
