"""What a training is made of: a fine-tuning on gold solutions, or a network for OpTune."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fttt.config.run_config import (
    EMBEDDED_MODEL,
    QUANTIZE,
    LocalPath,
    ModelName,
    PromptStyle,
    Section,
    section,
)
from fttt.types import Quantize

__all__ = [
    "SETTINGS",
    "AdapterSettings",
    "FinetuneConfig",
    "FinetuneLoRASettings",
    "FullSettings",
    "IA3Settings",
    "LNSettings",
    "OpTuneConfig",
    "PrefixSettings",
]


TRACKER = "tensorboard, wandb, trackio, mlflow, or another of accelerate's; none"
"""What a tracker may be."""


class GoldSection(Section):
    """Which gold solutions are learned."""

    data_dir: LocalPath | None = Field(
        None, description="folder with the benchmark in its own layout (jsonl: the file)"
    )
    split: str = Field("train", description="split of the task to train on, never its test split")
    limit: int | None = Field(None, ge=1, description="use only the first N questions")
    prompt: str | None = Field(
        None, description="prompt template instead of the task's own, with {question} in it"
    )
    prompt_style: PromptStyle = Field(
        None, description="own (the task's prompt) or paper (the prompt of the paper's public code)"
    )
    seed: int = Field(42, description="seed of tasks that generate their questions")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the task, as key=value"
    )
    held_out: float = Field(
        0.05, ge=0, lt=1, description="share of the questions kept for the validation loss"
    )
    max_length: int = Field(
        4096,
        ge=2,
        description="leave out questions that are longer than this with their solutions, in tokens",
    )


class TrainingSection(Section):
    """How the weights are learned."""

    samples: int = Field(20, ge=1, description="samples of one optimizer step, over all processes")
    epochs: float | None = Field(
        None, gt=0, description="passes over the questions (mbpp 100, gsm8k 10, math500 3, else 10)"
    )
    max_steps: int | None = Field(
        None, ge=1, description="optimizer steps in all, instead of epochs"
    )
    lr: float | None = Field(
        None, gt=0, description="peak learning rate (the method's published one)"
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps of the linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    clip: float = Field(1.0, ge=0, description="maximum gradient norm; 0: no clipping")
    every: int | None = Field(
        None,
        ge=1,
        description="validate and write a checkpoint every N steps (an epoch, at least 50)",
    )
    early_stop: int | None = Field(
        None,
        ge=1,
        description="stop after N validations without a lower loss, and keep the best weights",
    )
    tracker: str = Field("none", description=TRACKER)
    batch_tokens: int = Field(
        8192,
        ge=1,
        description="maximum tokens of a forward pass; changes no result but the draw of LoRA's "
        "dropout",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass instead of keeping them"
    )


class PrecisionSection(Section):
    """Where and how the model runs."""

    dtype: str = Field(
        "auto",
        description="dtype of the computation: auto, float32 or bfloat16 (auto: bfloat16 on a "
        "GPU); trained weights stay in float32",
    )
    quantize: Quantize | None = Field(None, description=f"{QUANTIZE}; for the method lora")
    device: str = Field("auto", description="auto, cpu or cuda")


class FinetuneConfig(Section):
    """One fine-tuning: a method on a task's gold solutions with a model."""

    method: str = Field(description="full, lora, adapter, ia3, ln-tuning or prefix")
    model: ModelName = Field(
        EMBEDDED_MODEL, min_length=1, description="hub name, folder, GGUF file, or smollm2-135m"
    )
    template_args: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the model's chat template, as key=value (enable_thinking=false)",
    )
    task: str = Field("arithmetic", description="a task of `fttt list tasks`, or module:Class")
    seed: int = Field(42, description="seed of fresh weights, dropout and the order of questions")
    data: GoldSection = section(GoldSection)
    training: TrainingSection = section(TrainingSection)
    engine: PrecisionSection = section(PrecisionSection)
    settings: dict[str, Any] = Field(
        default_factory=dict, description="settings of the method, as key=value"
    )

    def to_toml(self) -> dict[str, Any]:
        """The settings in the form of a recipe, without unset fields."""
        return self.model_dump(mode="json", exclude_none=True)


class FullSettings(Section):
    """All weights."""

    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of the stored weights (bfloat16: stochastic rounding, which needs "
        "optimizer adamw-8bit)",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw", description="adamw, or with its two moments in 8 bits (needs torchao)"
    )


class FinetuneLoRASettings(Section):
    """Low-rank updates of some projections."""

    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout of the update's input")
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="projections to update"
    )
    share: float = Field(
        0.25, gt=0, le=1, description="share of the layers to update, counted from the last"
    )


class AdapterSettings(Section):
    """Bottleneck adapters after attention and after the MLP."""

    reduction: int = Field(16, ge=1, description="the model's width over the adapter's")


class IA3Settings(Section):
    """Learned scales of keys, values and the MLP's inner activations."""

    targets: tuple[str, ...] = Field(
        ("k_proj", "v_proj"), min_length=1, description="projections whose outputs are scaled"
    )
    feedforward: tuple[str, ...] = Field(
        ("down_proj",), min_length=1, description="projections whose inputs are scaled"
    )


class LNSettings(Section):
    """The weights of all normalisation layers."""


class PrefixSettings(Section):
    """Learned keys and values before every sequence, in all layers."""

    length: int = Field(10, ge=1, description="positions of the prefix")
    encoder: int | None = Field(
        None,
        ge=1,
        description="inner width of the network that the prefix is made by while it is trained (as "
        "many parameters as a width of 512 has where every query head has its own key head)",
    )


SETTINGS: dict[str, type[Section]] = {
    "full": FullSettings,
    "lora": FinetuneLoRASettings,
    "adapter": AdapterSettings,
    "ia3": IA3Settings,
    "ln-tuning": LNSettings,
    "prefix": PrefixSettings,
}
"""The settings of each method."""


class OpTuneConfig(Section):
    """One training: a model's attempts at a task, and what the network learns from them."""

    attempts_from: LocalPath = Field(
        description="run folder with attempts at a training split (`fttt optune generate`)"
    )
    model: ModelName | None = Field(
        None, description="hub name, folder, GGUF file or embedded name (the attempts' own)"
    )
    task: str | None = Field(
        None, description="a task of `fttt list tasks`, or module:Class (the attempts' own)"
    )
    data_dir: LocalPath | None = Field(
        None, description="folder with the benchmark in its own layout (the attempts' own)"
    )
    seed: int = Field(42, description="seed of the network, dropout, order and held-out questions")

    attempts: Literal["wrong", "all"] = Field(
        "wrong", description="attempts that are learned from: wrong, or all (as published)"
    )
    max_attempts: int | None = Field(
        None, ge=1, description="at most N attempts of each question (all)"
    )
    limit: int | None = Field(None, ge=1, description="only the first N questions")
    held_out: float = Field(
        0.05, ge=0, lt=1, description="share of the questions kept for the validation loss"
    )
    max_length: int = Field(
        4096, ge=8, description="leave out conversations of more tokens than this"
    )
    ablation: Literal["none", "shuffle-attempts", "constant-input"] = Field(
        "none", description="none, shuffle-attempts or constant-input"
    )
    feedback: str = Field(
        "Your answer is incorrect.", min_length=1, description="the user's turn after an attempt"
    )

    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="linear layers to edit"
    )
    layers: int = Field(2, ge=1, description="number of the last layers to edit")
    rank: int = Field(16, ge=1, description="rank of the network")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the network's hidden features")
    alpha: float = Field(1e-4, gt=0, description="initial step size of every matrix, then learned")

    window: int = Field(20, ge=1, description="examples of one optimizer step, over all processes")
    epochs: int | None = Field(
        None, ge=1, description="passes over the examples (mbpp 10, gsm8k and math500 3, else 3)"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after N optimizer steps")
    lr: float = Field(1e-5, gt=0, description="AdamW's peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    clip: float | None = Field(
        None, gt=0, description="maximum gradient norm (no clipping, as published)"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate over the steps: constant, or cosine down to 0"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps of the linear warm-up")
    validate_every: int = Field(250, ge=1, description="validation loss every N steps")
    checkpoint_every: int = Field(100, ge=1, description="checkpoint every N steps")
    tracker: str = Field("none", description=TRACKER)

    batch_tokens: int = Field(
        16384,
        ge=1,
        description="maximum tokens of a forward pass; changes no result beyond rounding",
    )
    dtype: str = Field(
        "auto",
        description="the model's precision: auto, float32 or bfloat16 (auto: bfloat16 on a GPU); "
        "the network is float32",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    def to_toml(self) -> dict[str, Any]:
        """The settings in the form of a recipe, without unset fields."""
        return self.model_dump(mode="json", exclude_none=True)
