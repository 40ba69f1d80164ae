"""A model out of a GGUF file: its configuration, tokenizer and weights.

Each parameter is made of one tensor of the file, or of a few, by the inverse of what llama.cpp's
converter did. Tensors are dequantised in pieces that fit a processor's cache, on all of its cores,
straight into the dtype of use; nothing is written to disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from fttt.models.gguf.config import check_architecture, make_config
from fttt.models.gguf.file import GGUFFile, open_gguf, tensor_pieces
from fttt.models.gguf.tokenizer import (
    chat_template,
    check_tokenizer_kind,
    make_tokenizer,
    stop_ids,
)

__all__ = [
    "Recipe",
    "check_gguf",
    "read_config",
    "read_model",
    "read_tokenizer",
    "read_weights",
    "recipes",
]

_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Generation settings of ``transformers``, and GGUF's names for them."""


def check_gguf(path: str | Path) -> None:
    """Refuse, from its metadata alone, a file that cannot be used.

    Raises:
        UsageError: it is not whole, its architecture, tokenizer or kind of tensors is not
            supported, or it has no chat template.
    """
    file = open_gguf(path)
    check_architecture(file)
    check_tokenizer_kind(file)
    if not chat_template(file):
        file.refuse(
            "has no chat template",
            "use an instruction-tuned model, or put a chat_template.jinja beside the file",
        )


def read_config(path: str | Path) -> Any:
    """The ``transformers`` config of a file's model.

    Raises:
        UsageError: some of its metadata are not supported.
    """
    file = open_gguf(path)
    config = make_config(file)
    for name, value in _special(file).items():
        setattr(config, name, value)
    return config


def read_tokenizer(path: str | Path) -> Any:
    """The ``transformers`` tokenizer of a file, with its chat template.

    Raises:
        UsageError: some of its metadata are not supported.
    """
    return make_tokenizer(open_gguf(path))


def read_model(path: str | Path, dtype: torch.dtype) -> Any:
    """The ``transformers`` model of a file, on the CPU.

    Raises:
        UsageError: some of its metadata are not supported, or its tensors do not fit them.
    """
    file, config = open_gguf(path), read_config(path)
    auto: Any = import_module("transformers").AutoModelForCausalLM
    with torch.device("meta"):
        outline = auto.from_config(config)
    weights = read_weights(file, recipes(file, config, outline), dtype)
    model: Any = type(outline).from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    for name, value in {**_special(file), **_generation(file)}.items():
        setattr(model.generation_config, name, value)
    return model


def _special(file: GGUFFile) -> Mapping[str, Any]:
    """Ids of special tokens, including all that end an answer."""
    found: dict[str, Any] = {"eos_token_id": list(stop_ids(file)) or None}
    for role in ("bos", "pad"):
        key = {"bos": "bos", "pad": "padding"}[role]
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and number < len(file.metadata["tokenizer.ggml.tokens"]):
            found[f"{role}_token_id"] = int(number)
    return found


def _generation(file: GGUFFile) -> Mapping[str, Any]:
    """The sampling settings of the model's authors, if the file holds them."""
    found = {}
    for name, key in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if value is not None:
            found[name] = value
    return found


_THREADS = 16
"""Maximum number of threads; more only wait for memory."""
_NO_WEIGHT = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|.*attn_rot_embd.*")
"""Tensors that describe rotary positions."""

Make = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one parameter is made from tensors of the file."""

    names: tuple[str, ...]
    make: Make | None = None
    """Makes the parameter from these tensors; ``None`` uses the only one as it is."""


def read_weights(
    file: GGUFFile, made: Mapping[str, Recipe], dtype: torch.dtype
) -> dict[str, Tensor]:
    """A model's parameters, made by their recipes.

    Vectors are made in float32 and rounded last, since some are stored with an offset.
    """
    with ThreadPoolExecutor(min(_THREADS, torch.get_num_threads())) as pool:
        return {name: _made(file, recipe, dtype, pool) for name, recipe in made.items()}


def _made(file: GGUFFile, recipe: Recipe, dtype: torch.dtype, pool: Executor) -> Tensor:
    read = []
    for name in recipe.names:
        entry = file.tensors[name]
        wide = len(entry.shape) == 1
        out = torch.empty(entry.shape, dtype=torch.float32 if wide else dtype)
        for done in [pool.submit(piece) for piece in tensor_pieces(entry, out)]:
            done.result()
        read.append(out)
    whole = read[0] if recipe.make is None else recipe.make(*read)
    return whole.to(dtype).contiguous()


def recipes(file: GGUFFile, config: Any, outline: torch.nn.Module) -> dict[str, Recipe]:
    """The recipe of each parameter of a model, after a check that every tensor has a use.

    Args:
        file: the weights.
        config: the configuration made from the same file.
        outline: the model on the meta device.

    Raises:
        UsageError: a parameter has no tensor, or one of another shape, or a tensor has no use.
    """
    tied: Any = getattr(outline, "all_tied_weights_keys", {})
    wanted = {name: x for name, x in outline.state_dict().items() if name not in tied}
    names = _Names(file, config)
    found: dict[str, Recipe] = {}
    for name, parameter in wanted.items():
        recipe = found[name] = names.recipe(name)
        missing = [n for n in recipe.names if n not in file.tensors]
        if missing:
            file.refuse(
                f"lacks the tensor {missing[0]!r} of a model of the architecture "
                f"{file.architecture!r}",
                "check that it holds the whole model",
            )
        shape = _shape(file, recipe)
        if shape != tuple(parameter.shape):
            file.refuse(
                f"gives {recipe.names[0]!r} the shape {list(shape)} where its metadata make it "
                f"{list(parameter.shape)}",
                "convert the model again",
            )
    used = {n for recipe in found.values() for n in recipe.names}
    for name in file.tensors:
        if name not in used and not _NO_WEIGHT.fullmatch(name) and not names.beyond(name):
            file.refuse(
                f"holds the tensor {name!r}, for which a model of the architecture "
                f"{file.architecture!r} has no use",
                "use the model as safetensors",
            )
    return found


def _shape(file: GGUFFile, recipe: Recipe) -> tuple[int, ...]:
    """The shape of a recipe's result, found on the meta device."""
    read = [torch.empty(file.tensors[name].shape, device="meta") for name in recipe.names]
    try:
        return tuple((read[0] if recipe.make is None else recipe.make(*read)).shape)
    except RuntimeError:  # no such division of its rows
        return tuple(read[0].shape)


class _Names:
    """The file's tensor names for a model's parameters."""

    def __init__(self, file: GGUFFile, config: Any) -> None:
        self._kind, self._config = config.model_type, config
        self._layers = config.num_hidden_layers
        known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        if file.architecture not in known:
            file.refuse(
                f"holds a model of the architecture {file.architecture!r}, which the installed "
                "gguf package does not know",
                "install a newer one: pip install --upgrade gguf",
            )
        self._map = gguf.get_tensor_name_map(known[file.architecture], self._layers)

    def beyond(self, tensor: str) -> bool:
        """Whether it belongs to a layer after the last, one that predicts further tokens."""
        block = re.match(r"blk\.(\d+)\.", tensor)
        return block is not None and int(block[1]) >= self._layers

    def recipe(self, parameter: str) -> Recipe:
        """The recipe of a parameter."""
        for pattern, build in _RECIPES.get(self._kind, {}).items():
            match = re.fullmatch(pattern, parameter)
            if match is not None:
                return build(self, match)
        return Recipe((self.tensor(parameter),))

    def tensor(self, parameter: str) -> str:
        """The file's name for a parameter, or the parameter's own name."""
        name, suffix = parameter, ""
        for end in (".weight", ".bias"):
            if parameter.endswith(end):
                name, suffix = parameter.removesuffix(end), end
        found = self._map.get_name(name)
        return parameter if found is None else found + suffix

    def turned(self, match: re.Match[str]) -> Recipe:
        """Queries and keys, whose halves llama.cpp interleaves."""
        config = self._config
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}[match["which"]]
        return Recipe((self.tensor(match[0]),), lambda x: _halves(x, heads))

    def shifted(self, match: re.Match[str]) -> Recipe:
        """Norms, which the file stores with one added."""
        return Recipe((self.tensor(match[0]),), lambda x: x - 1)

    def experts_up(self, match: re.Match[str]) -> Recipe:
        """Gate and up projections of all experts, concatenated."""
        block = f"blk.{match['layer']}.ffn_"
        return Recipe(
            (f"{block}gate_exps.weight", f"{block}up_exps.weight"),
            lambda gate, up: torch.cat((gate, up), 1),
        )

    def experts_down(self, match: re.Match[str]) -> Recipe:
        return Recipe((f"blk.{match['layer']}.ffn_down_exps.weight",))

    def router(self, match: re.Match[str]) -> Recipe:
        return Recipe((f"blk.{match['layer']}.ffn_gate_inp.{match['end']}",))

    def shared_gate(self, match: re.Match[str]) -> Recipe:
        return Recipe((f"blk.{match['layer']}.ffn_gate_inp_shexp.weight",), lambda x: x.view(1, -1))

    def oss_up(self, match: re.Match[str]) -> Recipe:
        """Gate and up projections of gpt-oss's experts, interleaved."""
        block, end = f"blk.{match['layer']}.ffn_", match["end"]
        names = tuple(f"{block}{part}_exps.{end or 'weight'}" for part in ("gate", "up"))
        if end:
            return Recipe(names, lambda gate, up: torch.stack((gate, up), -1).flatten(-2))
        return Recipe(names, lambda gate, up: torch.stack((gate, up), 2).flatten(1, 2).mT)

    def oss_down(self, match: re.Match[str]) -> Recipe:
        name = f"blk.{match['layer']}.ffn_down_exps.{match['end'] or 'weight'}"
        return Recipe((name,), None if match["end"] else lambda x: x.mT)

    def oss_sinks(self, match: re.Match[str]) -> Recipe:
        return Recipe((f"blk.{match['layer']}.attn_sinks.weight",))

    def convolution(self, match: re.Match[str]) -> Recipe:
        return Recipe((self.tensor(match[0]),), lambda x: x.unsqueeze(1))


def _halves(x: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from pairs to halves."""
    return x.view(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


_Build = Callable[[_Names, re.Match[str]], Recipe]
_LAYER = r"model\.layers\.(?P<layer>\d+)\."
_TURNED: dict[str, _Build] = {
    _LAYER + r"self_attn\.(?P<which>[qk])_proj\.(weight|bias)": _Names.turned
}
_SHIFTED: dict[str, _Build] = {r".*norm\.weight": _Names.shifted}
_EXPERTS: dict[str, _Build] = {
    _LAYER + r"mlp\.experts\.gate_up_proj": _Names.experts_up,
    _LAYER + r"mlp\.experts\.down_proj": _Names.experts_down,
    _LAYER + r"mlp\.gate\.(?P<end>weight)": _Names.router,
    _LAYER + r"mlp\.shared_expert_gate\.weight": _Names.shared_gate,
}
_OSS: dict[str, _Build] = {
    _LAYER + r"mlp\.experts\.gate_up_proj(_(?P<end>bias))?": _Names.oss_up,
    _LAYER + r"mlp\.experts\.down_proj(_(?P<end>bias))?": _Names.oss_down,
    _LAYER + r"mlp\.router\.(?P<end>weight|bias)": _Names.router,
    _LAYER + r"self_attn\.sinks": _Names.oss_sinks,
}
_RECIPES: dict[str, dict[str, _Build]] = {
    "arcee": _TURNED,
    "gemma": _SHIFTED,
    "gemma2": _SHIFTED,
    "gemma3_text": _SHIFTED,
    "gpt_oss": _OSS,
    "granite": _TURNED,
    "lfm2": {r".*conv\.conv\.weight": _Names.convolution},
    "llama": _TURNED,
    "mistral": _TURNED,
    "ministral3": _TURNED,
    "mixtral": _TURNED | _EXPERTS,
    "nemotron": {r".*norm\.weight": _Names.shifted},
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "smollm3": _TURNED,
}
"""By model type: recipes of the parameters that are not simply one tensor of the file."""
