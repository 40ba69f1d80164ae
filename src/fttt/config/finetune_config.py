"""What a fine-tuning is made of; each field's description is its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fttt.config.run_config import PromptStyle, Section, section

__all__ = [
    "SETTINGS",
    "AdapterSettings",
    "FinetuneConfig",
    "FinetuneLoRASettings",
    "FullSettings",
    "IA3Settings",
    "LNSettings",
    "PrefixSettings",
]


class GoldSection(Section):
    """Which gold solutions are learned."""

    data_dir: Path | None = Field(
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
    device: str = Field("auto", description="auto, cpu or cuda")


class FinetuneConfig(Section):
    """One fine-tuning: a method on a task's gold solutions with a model."""

    method: str = Field(description="full, lora, adapter, ia3, ln-tuning or prefix")
    model: str = Field(
        "smollm2-135m", min_length=1, description="hub name, folder, GGUF file, or smollm2-135m"
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
