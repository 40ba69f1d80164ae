"""A GGUF file as ``--model`` takes it: loaded whole, or refused by what its metadata say."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

from fttt.errors import UsageError
from fttt.models import check_model, load_config, load_model
from fttt.models.gguf import file as gguf_file
from fttt.models.gguf import model as gguf_model
from fttt.models.gguf.file import open_gguf, read_tensor
from fttt.testing import tiny_tokenizer


def test_a_file_is_loaded_as_it_is_and_nothing_is_written(
    workshop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FTTT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delattr("fttt.files._resolves")  # nothing is asked of the hub
    path = workshop.llama()
    loaded = load_model(str(path), device="cpu")
    model = workshop.tiny("Llama")
    ids = torch.tensor([loaded.chat.prompt_ids("2 + 2?")])
    assert ids.tolist() == [list(tiny_prompt("2 + 2?"))]
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
    assert (loaded.name, loaded.dtype, loaded.max_context) == ("tiny", "float32", 2048)
    assert loaded.stop_ids == (0, 2)  # the file's own end, and <|endoftext|>
    assert load_config(str(path)).to_dict()["num_hidden_layers"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.gguf"]


def tiny_prompt(question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids: list[int] = tiny_tokenizer()(text)["input_ids"]
    return ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
def test_weights_are_dequantised_into_the_dtype_of_use(
    workshop: Any, kind: Kind, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_PIECE", 200)  # many pieces, the last one shorter
    model = workshop.tiny("Qwen2", hidden_size=64)
    file = workshop.file("qwen2").shape(model.config).tokenizer()
    path = file.weights(model, kind=kind).write()
    loaded = load_model(str(path), dtype=dtype, device="cpu")
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{dtype}"}
    for tensor in gguf.GGUFReader(path).tensors:
        whole = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        read = read_tensor(open_gguf(path), tensor.name)
        assert torch.equal(read, whole)
    own = loaded.model.model.layers[0].mlp.up_proj.weight
    theirs = read_tensor(open_gguf(path), "blk.0.ffn_up.weight")
    assert torch.equal(own, theirs.to(own.dtype))


def test_how_the_authors_sample_is_kept_with_the_model(workshop: Any) -> None:
    model = workshop.tiny("Qwen2")
    file = workshop.file("qwen2").shape(model.config).tokenizer(padding_token_id=0)
    file.put("general.sampling.temp", 0.5).put("general.sampling.top_k", 20)
    file.put("general.sampling.penalty_repeat", 1.125)
    loaded = load_model(str(file.weights(model).write()), device="cpu")
    settings = loaded.model.generation_config
    assert (settings.temperature, settings.top_k) == (0.5, 20)
    assert (settings.repetition_penalty, settings.pad_token_id) == (1.125, 0)


def test_a_template_beside_the_file_is_taken_and_a_file_without_any_is_refused_at_once(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = workshop.llama(template=None)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_model, "read_weights", lambda *_: pytest.fail("dequantised"))
        patch.delattr(AutoModelForCausalLM, "from_config")
        with pytest.raises(UsageError, match=r"tiny\.gguf' has no chat template.*beside the file"):
            load_model(str(path), device="cpu")
    plain = "{% for m in messages %}{{ m.content }}{{ eos_token }}\n{% endfor %}"
    path.with_name("chat_template.jinja").write_text(plain)
    loaded = load_model(str(path), device="cpu")
    assert loaded.tokenizer.decode(loaded.chat.prompt_ids("Hi")) == "Hi<|im_end|>\n"
    path.with_name("chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"chat_template\.jinja"):
        check_model(str(path))


def test_a_template_that_cannot_be_rendered_is_one_sentence(workshop: Any) -> None:
    path = workshop.llama(template="{{ raise_exception('no such turn') }}")
    with pytest.raises(UsageError, match="cannot be rendered: no such turn"):
        load_model(str(path), device="cpu")
