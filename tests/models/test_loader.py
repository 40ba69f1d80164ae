"""Models by name, folder and GGUF file, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fttt.errors import UsageError
from fttt.models import check_model, list_models, load_model
from fttt.models.loader import model_outline
from fttt.testing import save_tiny_model, tiny_model


def test_a_folder_loads_as_it_was_saved(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny", "qwen")
    loaded = load_model(str(tmp_path / "tiny"), device="cpu")
    assert (loaded.name, loaded.dtype, loaded.device) == ("tiny", "float32", "cpu")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.model(ids).logits, tiny_model("qwen").model(ids).logits)
    assert loaded.stop_ids == (loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_model_without_a_chat_template_is_refused_before_its_weights_and_takes_one_from_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = save_tiny_model(tmp_path / "tiny")
    template = (tiny / "chat_template.jinja").read_bytes()
    (tiny / "chat_template.jinja").unlink()
    with monkeypatch.context() as patch:
        patch.delattr(AutoModelForCausalLM, "from_pretrained")
        with pytest.raises(UsageError, match=r"no chat template.*chat_template\.jinja"):
            load_model(str(tiny), device="cpu")
    page = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
    plain = page.split("```jinja\n")[1].split("```")[0]
    assert plain.encode() != template
    (tiny / "chat_template.jinja").write_text(plain)
    loaded = load_model(str(tiny), device="cpu")
    assert loaded.stop_ids == (loaded.tokenizer.eos_token_id,)
    asked = loaded.tokenizer.decode(loaded.chat.prompt_ids("2 + 2?"))
    assert asked == "Question: 2 + 2?\nAnswer: "


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_what_was_asked_for(tmp_path: Path, dtype: str) -> None:
    save_tiny_model(tmp_path / "tiny")
    loaded = load_model(str(tmp_path / "tiny"), dtype=dtype, device="cpu")
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{dtype}"}
    assert loaded.dtype == dtype


def test_the_embedded_model_ends_its_turns_with_the_right_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("fttt.files._resolves")  # nothing is asked of the hub
    loaded = load_model("smollm2-135m", device="cpu")
    ends = loaded.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert loaded.stop_ids == tuple(ends)
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    # digits are split off before words are, as the model was trained
    split = loaded.tokenizer.tokenize("and  25 times")
    assert split == ["and", "\u0120\u0120", "2", "5", "\u0120times"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("./nowhere", "neither a file"),
        ("owner/na me", "not a valid hub name"),
        ("owner/name/more", "neither a file"),
        ("model.gguf", "neither a file"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_model(name)


def folder(path: Path, *files: str, architecture: str = "LlamaForCausalLM") -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    for name in files:
        (path / name).write_bytes(b"")
    return str(path)


def test_folders_that_hold_no_causal_language_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no config\.json"):
        check_model(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="holds no weights"):
        check_model(folder(tmp_path / "bare"))
    with pytest.raises(UsageError, match="pickled weights"):
        check_model(folder(tmp_path / "pickle", "pytorch_model.bin"))
    masked = folder(tmp_path / "bert", "model.safetensors", architecture="BertForMaskedLM")
    with pytest.raises(UsageError, match="BertForMaskedLM"):
        check_model(masked)
    mute = folder(tmp_path / "mute", "model.safetensors", "tokenizer_config.json")
    with pytest.raises(UsageError, match="holds no tokenizer"):
        check_model(mute)
    broken = folder(tmp_path / "broken", "model.safetensors")
    (Path(broken) / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not a model's JSON object"):
        check_model(broken)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="not a GGUF file"):
        check_model(str(tmp_path / "weights.bin"))


def test_devices_and_dtypes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    name = str(save_tiny_model(tmp_path / "tiny"))
    with pytest.raises(UsageError, match="No dtype 'int8'"):
        load_model(name, dtype="int8")
    with pytest.raises(UsageError, match="No device 'gpu'"):
        load_model(name, device="gpu")
    with pytest.raises(UsageError, match="cuda:99"):
        load_model(name, device="cuda:99")


def test_embedded_models_are_listed() -> None:
    assert "smollm2-135m" in dict(list_models())


def test_the_layers_are_those_of_the_model_and_hold_nothing(tmp_path: Path) -> None:
    outline = model_outline(str(save_tiny_model(tmp_path, "gemma2")))
    shapes = {name: weight.shape for name, weight in outline.named_parameters()}
    assert shapes == {n: w.shape for n, w in tiny_model("gemma2").model.named_parameters()}
    assert all(weight.is_meta for weight in outline.parameters())


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UsageError, match=r"cannot be read: .*no-such-type"):
        model_outline(str(tmp_path))
