"""Models that are not supported, by their configuration alone, before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fttt.errors import UsageError

__all__ = ["check_supported", "refusal"]

_ENCODER = "its attention sees later tokens, or its masks are its own"
_SEVERAL = "it is one part of a model that reads or writes other than text"
_SPARSE = "its attention chooses the tokens that it sees by an index that the engine does not keep"
_STATE = "its layers carry a state in a way that the engine does not know"
_OLD = "its attention is written out in its own code, which the engine does not know"


def _each(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


REFUSED: dict[str, str] = {
    **_each(
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart"
        " prophetnet t5 mt5 umt5 longt5 led m2m_100 nllb-moe"
        " switch_transformers t5gemma t5gemma2 fsmt",
        "it is an encoder-decoder",
    ),
    **_each(
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert"
        " roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod"
        " reformer",
        _ENCODER,
    ),
    **_each(
        "blt git got_ocr2 mllama moshi musicgen musicgen_melody trocr whisper gemma4_assistant"
        " gemma4_unified_assistant fuyu cpmant",
        _SEVERAL,
    ),
    **_each(
        "axk2 deepseek_v32 deepseek_v4 glm_moe_dsa hy_v4 minimax_m3_vl_text qwen4_exp"
        " qwen4_exp_text doge",
        _SPARSE,
    ),
    **_each("rwkv xlstm hrm_text", _STATE),
    **_each("openai-gpt xglm gpt_neox_japanese", _OLD),
    "inkling_text": "its attention has biases of positions that the engine does not keep",
    "diffllama": "each of its layers attends twice",
}
"""Model types that the engine cannot run, and why."""


UNSHOWN_ON_GPU = frozenset({"gemma3n", "gemma3n_text"})
"""Model types whose tokens on a GPU differed from those on a CPU in the last test on a GPU."""


def refusal(config: Mapping[str, Any], device: str = "cpu") -> str | None:
    """Why a model of this ``config.json`` is not supported, or ``None``.

    Faults that no configuration shows are found by the check of the model's outputs as it loads.
    """
    kind = config.get("model_type")
    why = REFUSED.get(str(kind))
    if why is None and config.get("is_encoder_decoder"):
        why = "it is an encoder-decoder"
    rotary = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    if kind == "phimoe" and "longrope" in rotary.values():
        why = "its rotary scale follows the longest sequence of a pass, whosever it is"
    if why is None and device == "cuda" and kind in UNSHOWN_ON_GPU:
        why = "its outputs on a GPU were not shown to be its own, so take --device cpu"
    return why


def check_supported(config: Mapping[str, Any], name: str, device: str = "cpu") -> None:
    """Refuse a model that is not supported on this type of device.

    Raises:
        UsageError: its type or a setting of its configuration is not supported.
    """
    why = refusal(config, device)
    if why is not None:
        raise UsageError(
            f"The model {name!r} of type {config.get('model_type')!r} is not supported: {why}; "
            "docs/models.md names the models that are."
        )
