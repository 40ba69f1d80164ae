"""Models under two names, torn files of weights, and models that are not supported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.models import check_model, find_model, load_model, loader
from fttt.models.locate import find_fault, refusal, same_model
from fttt.testing import save_tiny_model
from fttt.testing.tiny_models import family_types


def test_the_embedded_model_is_its_file_wherever_that_lies(tmp_path: Path) -> None:
    file = find_model("smollm2-135m").path
    linked = tmp_path / "another.gguf"
    linked.symlink_to(file)
    assert same_model("smollm2-135m", file)
    assert same_model(str(linked), "smollm2-135m")


def test_a_folder_is_told_by_its_weights_and_its_config(tmp_path: Path) -> None:
    one = save_tiny_model(tmp_path / "one")
    other = tmp_path / "other"
    shutil.copytree(one, other)
    assert same_model(str(one), str(other))
    assert not same_model(str(one), "smollm2-135m")
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not same_model(str(one), str(other))
    weights.write_bytes((one / "model.safetensors").read_bytes())
    (other / "config.json").write_text((one / "config.json").read_text() + "\n")
    assert not same_model(str(one), str(other))


def test_folders_of_one_name_and_other_weights_are_two_models(tmp_path: Path) -> None:
    one, other = save_tiny_model(tmp_path / "a" / "tiny"), tmp_path / "b" / "tiny"
    shutil.copytree(one, other)
    assert same_model(str(one), str(other))
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not same_model(str(one), str(other))


@pytest.mark.parametrize(
    ("name", "same"), [("owner/one", True), ("elsewhere/one", True), ("owner/other", False)]
)
def test_what_is_not_here_is_told_by_the_last_part_of_its_name(
    tmp_path: Path, name: str, same: bool
) -> None:
    assert same_model(name, str(save_tiny_model(tmp_path / "one"))) is same
    assert same_model(name, str(tmp_path / "gone" / "one")) is same


def test_a_torn_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    (file,) = folder.glob("*.safetensors")
    whole = file.read_bytes()
    assert find_fault(file) is None
    check_model(str(folder))
    for content in (whole[: len(whole) // 2], whole + b"x", whole[:50], whole[:4], b""):
        file.write_bytes(content)
        assert find_fault(file) is not None
        with pytest.raises(UsageError, match=r"is broken: model.safetensors .* from a copy"):
            check_model(str(folder))
    file.unlink()
    assert find_fault(file) == "model.safetensors cannot be read (No such file or directory)"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "bart"}, "encoder-decoder"),
        ({"model_type": "new", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "bert"}, "later tokens"),
        ({"model_type": "deepseek_v32"}, "index"),
        ({"model_type": "zamba2"}, "carry a state in a way"),
        ({"model_type": "dory"}, "run in loops"),
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


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "brandnew"}, "'brandnew', which transformers .* does not have; install"),
        (
            {"model_type": "brandnew", "auto_map": {"AutoConfig": "own.Config"}},
            "does not have, and its own code is never run; install",
        ),
        ({"model_type": "mistral3"}, "does not load as a causal language model"),
    ],
)
def test_a_type_that_the_library_does_not_load_is_refused_before_weights(
    tmp_path: Path, config: dict[str, object], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the user was asked whether to run a model's code")

    monkeypatch.setattr("builtins.input", asked)
    folder = save_tiny_model(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    monkeypatch.setattr(loader, "_read_weights", asked)
    with pytest.raises(UsageError, match=why):
        load_model(str(folder))


def test_a_usual_model_is_not() -> None:
    for kind in ("llama", "gpt2", "qwen3", "gemma3_text", "gpt_oss"):
        assert kind in family_types()
        assert refusal({"model_type": kind}) is None
    assert refusal({"model_type": "phimoe"}) is None


def test_a_model_of_gpt2s_class_is_a_causal_language_model(tmp_path: Path) -> None:
    check_model(str(save_tiny_model(tmp_path / "model", "gpt2")))
