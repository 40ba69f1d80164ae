"""Small GGUF files, written as llama.cpp's converter writes the models of each family."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from fttt.testing import tiny_tokenizer

Change = Callable[[str, Tensor], Mapping[str, Tensor]]
"""From a parameter's name and value to the file's tensors, where those are not the same."""

SHAPE: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}


def tiny(kind: str, **more: Any) -> Any:
    """A random model of a ``transformers`` class, norms and biases included."""
    transformers: Any = import_module("transformers")
    head = kind.replace("Gemma3", "Gemma3Text") if kind == "Gemma3" else kind
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{head}Config")(**{**SHAPE, **more})
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.normal_(1.0, 0.3)
    return model.eval().requires_grad_(False)


def same(name: str, value: Tensor) -> Mapping[str, Tensor]:
    return {name: value}


def turned(config: Any) -> Change:
    """Queries and keys with the two halves of each head in turns, as Llama's are stored."""

    def change(name: str, value: Tensor) -> Mapping[str, Tensor]:
        which = re.search(r"self_attn\.([qk])_proj", name)
        if which is None:
            return {name: value}
        heads = config.num_attention_heads if which[1] == "q" else config.num_key_value_heads
        halves = value.view(heads, 2, -1, *value.shape[1:])
        return {name: halves.transpose(1, 2).reshape(value.shape)}

    return change


def shifted(name: str, value: Tensor) -> Mapping[str, Tensor]:
    """Norms with one added, as Gemma's are stored."""
    return {name: value + 1 if name.endswith("norm.weight") else value}


class GGUF:
    """A file in the making."""

    def __init__(self, path: Path, architecture: str) -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(path, architecture)
        self.architecture = architecture

    def set(self, **values: Any) -> GGUF:
        """Metadata of the architecture; a double underscore is a dot."""
        for name, value in values.items():
            self.put(f"{self.architecture}.{name.replace('__', '.')}", value)
        return self

    def put(self, key: str, value: Any) -> GGUF:
        if isinstance(value, bool):
            self.writer.add_bool(key, value)
        elif isinstance(value, int):
            self.writer.add_uint32(key, value)
        elif isinstance(value, float):
            self.writer.add_float32(key, value)
        elif isinstance(value, str):
            self.writer.add_string(key, value)
        else:
            self.writer.add_array(key, value)
        return self

    def tokenizer(self, template: str | None = "own", **more: Any) -> GGUF:
        """That of :func:`tiny_tokenizer`, 256 bytes and three special tokens, and one merge."""
        core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
        tokens = [f"[PAD{n}]" for n in range(SHAPE["vocab_size"])]
        kinds = [5] * len(tokens)
        for token, number in core["model"]["vocab"].items():
            tokens[number], kinds[number] = token, 1
        for added in core["added_tokens"]:
            kinds[added["id"]] = 3
        tokens[-1], kinds[-1] = "ab", 1
        values = {
            "model": "gpt2",
            "pre": "gpt-2",
            "tokens": tokens,
            "token_type": kinds,
            "merges": ["a b"],
            "eos_token_id": 2,
        }
        for key, value in {**values, **more}.items():
            if value is not None:
                self.put(f"tokenizer.ggml.{key}", value)
        if template is not None:
            own = tiny_tokenizer().chat_template
            self.put("tokenizer.chat_template", own if template == "own" else template)
        return self

    def shape(self, config: Any, **more: Any) -> GGUF:
        """The usual metadata of a model's shape."""
        eps = [getattr(config, n, None) for n in ("rms_norm_eps", "norm_eps", "layer_norm_eps")]
        values = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention__head_count": config.num_attention_heads,
            "attention__head_count_kv": config.num_key_value_heads,
            "attention__layer_norm_rms_epsilon": next(e for e in eps if e is not None),
            **more,
        }
        return self.set(**{key: value for key, value in values.items() if value is not None})

    def weights(
        self,
        model: Any,
        change: Change = same,
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    ) -> GGUF:
        """Every parameter; matrices in the given quantisation."""
        known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(known[self.architecture], model.config.num_hidden_layers)
        for name, parameter in model.state_dict().items():
            if name in set(model.all_tied_weights_keys):
                continue
            for own, value in change(name, parameter).items():
                found = names.get_name(own, (".weight", ".bias"))
                self.tensor(found or own, value, kind if value.dim() > 1 else None)
        return self

    def tensor(self, name: str, value: Tensor, kind: Any = None) -> GGUF:
        data = value.detach().float().numpy()
        if kind in (None, gguf.GGMLQuantizationType.F32):
            self.writer.add_tensor(name, np.ascontiguousarray(data))
        else:
            self.writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        return self

    def write(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


class Workshop:
    """What the tests of this folder make models and files with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    tiny = staticmethod(tiny)
    turned = staticmethod(turned)
    shifted = staticmethod(shifted)

    def file(self, architecture: str = "llama", name: str = "tiny.gguf") -> GGUF:
        """Begins a file in the test's folder."""
        return GGUF(self.folder / name, architecture)

    def llama(self, template: str | None = "own", **tokenizer: Any) -> Path:
        """A whole file of a tiny Llama."""
        model = tiny("Llama")
        file = self.file().shape(model.config, rope__dimension_count=8)
        return file.tokenizer(template, **tokenizer).weights(model, turned(model.config)).write()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)
