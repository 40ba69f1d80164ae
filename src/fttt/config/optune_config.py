"""What a training of OpTune is made of; each field's description is its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fttt.config.run_config import Section

__all__ = ["OpTuneConfig"]


class OpTuneConfig(Section):
    """One training: a model's attempts at a task, and what the network learns from them."""

    attempts_from: Path = Field(
        description="run folder with attempts at a training split (`fttt optune generate`)"
    )
    model: str | None = Field(
        None, description="hub name, folder, GGUF file or embedded name (the attempts' own)"
    )
    task: str | None = Field(
        None, description="a task of `fttt list tasks`, or module:Class (the attempts' own)"
    )
    data_dir: Path | None = Field(
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
    tracker: str = Field(
        "tensorboard", description="tensorboard, none, or another of accelerate's (wandb, mlflow)"
    )

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
