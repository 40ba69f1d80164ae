"""From a GGUF file's metadata to the configuration that ``transformers`` builds the model from.

Every key of the architecture is either read, known to change nothing, or a reason to refuse the
file: a key that is ignored silently would make another model.

Rotary scaling that stretches frequencies evenly (linear), by parts (yarn) or by given factors
(longrope) has keys or tensors of its own. Llama 3's is stored as its result, one divisor a
frequency (``rope_freqs.weight``), from which its settings are computed back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor

from fttt.models.gguf.file import GGUFFile, read_tensor

__all__ = [
    "ARCHITECTURES",
    "Keys",
    "check_architecture",
    "llama3_settings",
    "make_config",
    "rotary_parameters",
]

_HARMLESS = frozenset(
    {
        "attention.causal",  # refused where it is false
        "attention.value_length",  # the width of values comes from their weights, which are checked
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "feed_forward_length",
        "pooling_type",
        "rope.dimension_sections",
        "tensor_data_layout",
        "vocab_size",  # the embedding's rows say
    }
)
"""Keys that have no effect where the architecture does not read them."""


class Keys:
    """The metadata of a file's architecture; records which keys were read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._prefix = f"{file.architecture}."
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value by its name without the architecture; an array of equal values is that value."""
        self._read.add(key)
        value = self.file.metadata.get(self._prefix + key, default)
        if not hasattr(value, "tolist"):
            return value
        value = value.tolist()
        return value[0] if len(set(value)) == 1 else value

    def need(self, key: str) -> Any:
        """The value of a required key.

        Raises:
            UsageError: the key is missing.
        """
        value = self.get(key)
        if value is None:
            self.file.refuse(
                f"has no {self._prefix + key}", "convert the model again with a current converter"
            )
        return value

    def left(self) -> Iterator[str]:
        """Keys that were not read and may matter."""
        for key in self.file.metadata:
            own = key.removeprefix(self._prefix)
            if own != key and own not in self._read | _HARMLESS:
                yield key


Values = dict[str, Any]
Adjust = Callable[[Keys, Values], None]


@dataclass(frozen=True)
class Architecture:
    """The settings of an architecture's files beyond the common ones, and their model type."""

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    """Further settings by the metadata's keys."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every such model that its file does not hold."""
    eps: str = "rms_norm_eps"
    """The name of the setting for the norms' epsilon."""
    centred: bool = False
    """Whether its norms also subtract the mean."""
    partial: bool = False
    """Whether rotary positions may cover a part of each head only."""
    adjust: Adjust | None = None
    """A last change of the settings, which may set another ``model_type``."""


def check_architecture(file: GGUFFile) -> None:
    """Refuse, from the header alone, a file of an unsupported architecture.

    Raises:
        UsageError: the architecture is not supported.
    """
    if file.architecture not in ARCHITECTURES:
        file.refuse(
            f"holds a model of the architecture {file.architecture!r}, which is not supported",
            f"supported are {', '.join(sorted(ARCHITECTURES))}; or use the model as safetensors",
        )


def make_config(file: GGUFFile) -> Any:
    """The ``transformers`` config of a file's model, its special tokens aside.

    Raises:
        UsageError: the architecture or some of its metadata are not supported.
    """
    check_architecture(file)
    architecture, keys = ARCHITECTURES[file.architecture], Keys(file)
    values = _usual(keys, architecture)
    values |= {
        name: value
        for key, name in architecture.keys.items()
        if (value := keys.get(key)) is not None
    }
    values |= architecture.settings
    if architecture.adjust is not None:
        architecture.adjust(keys, values)
    _check(keys, values)
    mapping: Any = import_module("transformers").CONFIG_MAPPING
    model_type = values.pop("model_type", architecture.model_type)
    return mapping[model_type](**values)


def _usual(keys: Keys, architecture: Architecture) -> Values:
    """The settings that nearly all architectures hold under the same keys."""
    file = keys.file
    heads, hidden = keys.need("attention.head_count"), keys.need("embedding_length")
    if isinstance(heads, list):
        file.refuse(
            f"gives its layers different counts of heads ({heads}), which is not supported",
            "use the model as safetensors",
        )
    width = keys.get("attention.key_length") or hidden // heads
    turned = keys.get("rope.dimension_count") or width
    if turned != width and not architecture.partial:
        if keys.get("attention.key_length"):
            file.refuse(
                f"has rotary positions for {turned} of the {width} values of a head, which is not "
                f"supported for the architecture {file.architecture!r}",
                "use the model as safetensors",
            )
        width = turned  # older files give the width of a head by this alone
    if "token_embd.weight" not in file.tensors:
        file.refuse("has no token embedding", "check that it holds a language model")
    rotary = rotary_parameters(keys, turned)
    if turned != width:
        rotary["partial_rotary_factor"] = turned / width
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "num_hidden_layers": keys.need("block_count") - keys.get("nextn_predict_layers", 0),
        "hidden_size": hidden,
        "intermediate_size": keys.need("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": width,
        "max_position_embeddings": keys.need("context_length"),
        architecture.eps: _epsilon(keys, architecture),
        "rope_parameters": rotary,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _epsilon(keys: Keys, architecture: Architecture) -> float:
    """The norms' epsilon, of which a file may hold either kind, or both."""
    kinds = ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"]
    if architecture.centred:
        kinds.reverse()
    other = keys.get(kinds[0])
    return float(keys.get(kinds[1]) or other or keys.need(kinds[1]))


def _check(keys: Keys, values: Values) -> None:
    """Refuse keys and values that are not supported."""
    file = keys.file
    if keys.get("attention.causal", True) is False:
        file.refuse("holds a model that is not causal", "use one that generates text")
    lists = [n for n, v in values.items() if isinstance(v, list) and n != "layer_types"]
    if lists:
        file.refuse(
            f"gives its layers different values of {lists[0]} ({values[lists[0]]}), which is not "
            "supported",
            "use the model as safetensors",
        )
    for key in keys.left():
        file.refuse(
            f"says {key} = {file.metadata[key]}, which is not supported",
            "use the model as safetensors",
        )


def _biases(keys: Keys, values: Values) -> None:
    """Biases, which only some models of a family have."""
    tensors = keys.file.tensors
    values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    values["mlp_bias"] = "blk.0.ffn_up.bias" in tensors


def _window(keys: Keys, values: Values) -> None:
    """A sliding window of every layer."""
    values["sliding_window"] = keys.get("attention.sliding_window") or None


def _layers(keys: Keys, values: Values, period: int) -> None:
    """Sliding windows by the file's pattern, else in all layers but every ``period``-th."""
    _window(keys, values)
    count = values["num_hidden_layers"]
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        period, pattern = pattern, None
    if pattern is None:
        pattern = [bool((layer + 1) % period) for layer in range(count)]
    elif isinstance(pattern, bool):
        pattern = [pattern] * count
    slides = values["sliding_window"] is not None
    values["layer_types"] = [
        "sliding_attention" if slides and slid else "full_attention" for slid in pattern[:count]
    ]


def _llama(keys: Keys, values: Values) -> None:
    """Llama, Mistral and Mixtral, which share a name in llama.cpp."""
    experts = keys.get("expert_count", 0)
    if experts:
        values |= {
            "model_type": "mixtral",
            "num_local_experts": experts,
            "num_experts_per_tok": keys.need("expert_used_count"),
        }
        _window(keys, values)
    elif keys.get("attention.sliding_window"):
        values["model_type"] = "mistral"
        _window(keys, values)
    else:
        _biases(keys, values)


def _qwen2(keys: Keys, values: Values) -> None:
    _window(keys, values)
    if values["sliding_window"] is not None:
        values |= {"use_sliding_window": True, "max_window_layers": 0}


def _experts(keys: Keys, values: Values) -> None:
    """Experts of Qwen's models."""
    values |= {
        "num_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "moe_intermediate_size": keys.get("expert_feed_forward_length")
        or keys.file.tensors["blk.0.ffn_down_exps.weight"].shape[-1],
    }
    shared = keys.file.tensors.get("blk.0.ffn_down_shexp.weight")
    if shared is not None:
        values["shared_expert_intermediate_size"] = shared.shape[-1]


def _gemma2(keys: Keys, values: Values) -> None:
    _layers(keys, values, 2)
    largest = values["num_hidden_layers"] == 46  # of 27B: it alone scales by another width
    width = values["hidden_size"] // values["num_attention_heads"]
    values["query_pre_attn_scalar"] = width if largest else values["head_dim"]


def _gemma3(keys: Keys, values: Values) -> None:
    _layers(keys, values, 6)
    largest = values["num_hidden_layers"] == 62  # of 27B
    width = values["hidden_size"] // values["num_attention_heads"]
    values["query_pre_attn_scalar"] = width if largest else values["head_dim"]
    _two_bases(keys, values, 10_000.0)


def _two_bases(keys: Keys, values: Values, base: float) -> None:
    """Rotary positions of sliding layers, which have their own base and no scaling."""
    own = float(keys.get("rope.freq_base_swa", base))
    values["rope_parameters"] = {
        "full_attention": values["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": own},
    }


def _phi3(keys: Keys, values: Values) -> None:
    _window(keys, values)
    rotary = values["rope_parameters"]
    values["original_max_position_embeddings"] = keys.get(
        "rope.scaling.original_context_length", values["max_position_embeddings"]
    )
    rotary.setdefault("partial_rotary_factor", 1.0)


def _granite(keys: Keys, values: Values) -> None:
    _biases(keys, values)
    del values["head_dim"]
    keys.get("rope.scaling.finetuned")  # marks layers without positions in llama.cpp; none here


def _olmo2(keys: Keys, values: Values) -> None:
    if keys.get("attention.sliding_window"):
        values["model_type"] = "olmo3"
        _layers(keys, values, 4)
        _two_bases(keys, values, values["rope_parameters"]["rope_theta"])


def _smollm3(keys: Keys, values: Values) -> None:
    _biases(keys, values)
    values["no_rope_layer_interval"] = 4


def _starcoder2(keys: Keys, values: Values) -> None:
    _window(keys, values)
    values["use_bias"] = "blk.0.attn_q.bias" in keys.file.tensors


def _stablelm(keys: Keys, values: Values) -> None:
    tensors = keys.file.tensors
    keys.get("use_parallel_residual")  # taken from the tensors: some files have it wrong
    values |= {
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


def _gpt_oss(keys: Keys, values: Values) -> None:
    _layers(keys, values, 2)
    values |= {
        "num_local_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "intermediate_size": keys.file.tensors["blk.0.ffn_down_exps.weight"].shape[-1],
    }
    values["rope_parameters"]["truncate"] = False


def _lfm2(keys: Keys, values: Values) -> None:
    heads = values["num_key_value_heads"]  # zero for layers with a convolution
    heads = heads if isinstance(heads, list) else [heads] * values["num_hidden_layers"]
    values |= {
        "num_key_value_heads": max(heads),
        "layer_types": ["full_attention" if n else "conv" for n in heads],
        "block_auto_adjust_ff_dim": False,
    }
    del values["head_dim"]


def _cohere(keys: Keys, values: Values) -> None:
    values["use_qk_norm"] = "blk.0.attn_q_norm.weight" in keys.file.tensors


def _cohere2(keys: Keys, values: Values) -> None:
    _layers(keys, values, 4)
    del values["head_dim"]


def _exaone4(keys: Keys, values: Values) -> None:
    _layers(keys, values, 4)


def _glm4(keys: Keys, values: Values) -> None:
    values["attention_bias"] = "blk.0.attn_q.bias" in keys.file.tensors


def _seed_oss(keys: Keys, values: Values) -> None:
    _biases(keys, values)
    values["attention_out_bias"] = "blk.0.attn_output.bias" in keys.file.tensors


ARCHITECTURES: Mapping[str, Architecture] = {
    "arcee": Architecture("arcee", adjust=_biases),
    "cohere2": Architecture(
        "cohere2",
        keys={"logit_scale": "logit_scale"},
        eps="layer_norm_eps",
        centred=True,
        adjust=_cohere2,
    ),
    "command-r": Architecture(
        "cohere",
        keys={"logit_scale": "logit_scale"},
        eps="layer_norm_eps",
        centred=True,
        adjust=_cohere,
    ),
    "exaone4": Architecture("exaone4", adjust=_exaone4),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture(
        "gemma2",
        keys={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        adjust=_gemma2,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        keys={"final_logit_softcapping": "final_logit_softcapping"},
        adjust=_gemma3,
    ),
    "glm4": Architecture("glm4", partial=True, adjust=_glm4),
    "gpt-oss": Architecture("gpt_oss", adjust=_gpt_oss),
    "granite": Architecture(
        "granite",
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "logit_scale": "logits_scaling",
            "residual_scale": "residual_multiplier",
        },
        adjust=_granite,
    ),
    "lfm2": Architecture(
        "lfm2", keys={"shortconv.l_cache": "conv_L_cache"}, eps="norm_eps", adjust=_lfm2
    ),
    "llama": Architecture("llama", adjust=_llama),
    "nemotron": Architecture(
        "nemotron", eps="norm_eps", centred=True, partial=True, adjust=_biases
    ),
    "olmo2": Architecture("olmo2", adjust=_olmo2),
    "phi3": Architecture("phi3", partial=True, adjust=_phi3),
    "qwen2": Architecture("qwen2", adjust=_qwen2),
    "qwen2moe": Architecture("qwen2_moe", settings={"norm_topk_prob": False}, adjust=_experts),
    "qwen3": Architecture("qwen3", adjust=_qwen2),
    "qwen3moe": Architecture("qwen3_moe", settings={"norm_topk_prob": True}, adjust=_experts),
    "seed_oss": Architecture("seed_oss", adjust=_seed_oss),
    "smollm3": Architecture("smollm3", adjust=_smollm3),
    "stablelm": Architecture(
        "stablelm", eps="layer_norm_eps", centred=True, partial=True, adjust=_stablelm
    ),
    "starcoder2": Architecture("starcoder2", eps="norm_epsilon", centred=True, adjust=_starcoder2),
}
"""By the name that the file gives its architecture."""


_BASE = 10_000.0
_TRAINED = 8192
"""Llama 3's context before it was stretched; only its ratio to the other settings matters."""
_TOLERANCE = 1e-4


def rotary_parameters(keys: Keys, width: int) -> dict[str, Any]:
    """The ``rope_parameters`` of a ``transformers`` config.

    Args:
        keys: the file's metadata.
        width: values of a head with rotary positions.

    Raises:
        UsageError: the kind of scaling is not supported, or its factors follow no known rule.
    """
    base = float(keys.get("rope.freq_base", _BASE))
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor")
    if "rope_factors_long.weight" in keys.file.tensors:
        return found | _long(keys)
    if kind == "linear" or (kind == "none" and keys.get("rope.scale_linear")):
        factor = factor or keys.get("rope.scale_linear")
        return found | {"rope_type": "linear", "factor": float(factor or 1.0)}
    if kind == "yarn":
        return found | _yarn(keys, float(factor or 1.0))
    if kind not in {"none", "longrope"}:
        keys.file.refuse(
            f"scales its rotary positions by {kind!r}, which is not supported",
            "supported are none, linear, yarn, longrope and Llama 3's",
        )
    if "rope_freqs.weight" in keys.file.tensors:
        divisors = read_tensor(keys.file, "rope_freqs.weight")[: width // 2]
        settings = llama3_settings(divisors, base, width)
        if settings is None:
            keys.file.refuse(
                "divides its rotary frequencies by factors other than those of Llama 3's scaling",
                "use the model as safetensors",
            )
        return found | settings
    return found


def _yarn(keys: Keys, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    keys.get("rope.scaling.finetuned")  # whether it was trained; has no effect
    if keys.get("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        keys.file.refuse(
            "sets yarn's extrapolation factor to a value other than 1",
            "use the model as safetensors",
        )
    optional = {
        "original_max_position_embeddings": "original_context_length",
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    for name, key in optional.items():
        value = keys.get(f"rope.scaling.{key}")
        if value is not None:
            found[name] = value
    return found


def _long(keys: Keys) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "longrope"}
    for name in ("short", "long"):
        factors = read_tensor(keys.file, f"rope_factors_{name}.weight")
        found[f"{name}_factor"] = [float(factor) for factor in factors]
    found["original_max_position_embeddings"] = keys.need("rope.scaling.original_context_length")
    attention = keys.get("rope.scaling.attn_factor")
    if attention is not None:
        found["attention_factor"] = attention
    return found


def llama3_settings(divisors: Tensor, base: float, width: int) -> dict[str, Any] | None:
    """The settings of Llama 3's scaling that give these divisors, or ``None`` if none do.

    High frequencies are divided by 1, low ones by the factor; in the transition between two
    wavelengths, ``1/d`` is linear in the context's length over the wavelength, so that two divisors
    in the transition determine both of its ends. With fewer, the ends are only bounded, and any
    that agree with the divisors make the same model.

    Args:
        divisors: one for each frequency, from the highest to the lowest.
        base: base of the frequencies.
        width: values of a head with rotary positions.
    """
    given = [float(d) for d in divisors]
    factor = max(given)
    turns = [base ** (-2 * n / width) / (2 * math.pi) for n in range(len(given))]  # per token
    if factor <= 1:
        return {} if min(given) == 1 else None
    share = [(1 / d - 1 / factor) / (1 - 1 / factor) for d in given]  # 1: not divided
    transition = [n for n, s in enumerate(share) if 1e-6 < s < 1 - 1e-6]
    untouched = [turns[n] for n, s in enumerate(share) if s >= 1 - 1e-6]
    divided = [turns[n] for n, s in enumerate(share) if s <= 1e-6]
    high = min(untouched, default=turns[0] * 4)
    low = max(divided, default=turns[-1] / 4)
    if len(transition) > 1:
        first, last = transition[0], transition[-1]
        slope = (share[first] - share[last]) / (turns[first] - turns[last])
        low = turns[first] - share[first] / slope
        high = low + 1 / slope
    elif transition:
        turn, kept = turns[transition[0]], share[transition[0]]
        lower = (turn - kept * high) / (1 - kept)
        if lower < low:  # a low frequency would not be divided by the whole factor
            high = low + (turn - low) / kept
        else:
            low = lower
    found = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low * _TRAINED,
        "high_freq_factor": high * _TRAINED,
        "original_max_position_embeddings": _TRAINED,
    }
    again = [_divisor(turn, low, high, factor) for turn in turns]
    alike = all(abs(a - d) <= _TOLERANCE * d for a, d in zip(again, given, strict=True))
    return found if alike and 0 < low < high else None


def _divisor(turn: float, low: float, high: float, factor: float) -> float:
    """The divisor of a frequency of ``turn`` turns per token."""
    share = min(1.0, max(0.0, (turn - low) / (high - low)))
    return 1 / ((1 - share) / factor + share)
