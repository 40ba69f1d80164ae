"""A fine-tuning's settings, questions and model, checked before any weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fttt.config import SETTINGS, FinetuneConfig, build, merge, read_toml
from fttt.config.run_config import Section
from fttt.errors import UsageError
from fttt.files import file_name, model_label
from fttt.finetune.metadata import METHODS, ModelShape, model_shape
from fttt.models.quantized import quantized_by, wanted
from fttt.registry import unknown_name
from fttt.tasks import Task, TaskOptions, get_task, load_questions, task_name
from fttt.tasks.benchmark_data import local_data, local_note
from fttt.trackers import check_tracker
from fttt.training import check_trainable, refuse_float16
from fttt.types import Question

__all__ = [
    "FinetunePlan",
    "check_names",
    "plan_finetune",
    "processes",
    "published",
    "read_settings",
    "settle_finetune",
    "sharded",
]

PACKAGES = ("accelerate", "peft")
LEARNING_RATES = {
    "full": 1e-5,
    "lora": 2e-5,
    "adapter": 1e-4,
    "ia3": 5e-5,
    "ln-tuning": 4e-4,
    "prefix": 2e-4,
}
"""As published for Llama-3.1-8B and Mistral-7B (arXiv 2502.15771), which differ in one method."""
MISTRAL_PREFIX_RATE = 5e-5
EPOCHS = {"mbpp": 100.0, "gsm8k": 10.0, "math500": 3.0}
OTHER_EPOCHS = 10.0
LENGTHS = {"epochs", "max_steps"}
"""Settings of which one says how long to train."""


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tuning that is ready to begin."""

    config: FinetuneConfig
    """Resolved: learning rate, epochs and the method's settings are filled in."""
    settings: Section
    questions: tuple[Question, ...]
    shape: ModelShape
    """Of the base model."""
    trained_parameters: int
    notes: tuple[str, ...] = ()
    """What was found without being asked for, a sentence each."""

    @property
    def folder_name(self) -> str:
        """The output folder's name without ``--out``, but for the time.

        Raises:
            UsageError: there are several processes, which would each choose another time.
        """
        if processes()[1] > 1:
            raise UsageError("With several processes the folder must be named; give --out DIR.")
        config = self.config
        label = model_label(config.model)
        return file_name("finetune", config.method, config.task, label, f"s{config.seed}")


def processes() -> tuple[int, int]:
    """This process's rank and the number of processes, as ``accelerate launch`` sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def sharded() -> bool:
    """Whether FSDP shards the weights over the processes (``accelerate launch --use_fsdp``)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in {"1", "true"}


def settle_finetune(flags: Mapping[str, Any], recipe: Path | None = None) -> FinetuneConfig:
    """Flags over a recipe over defaults.

    Args:
        flags: only what was given on the command line, in the recipe's shape.
        recipe: a TOML file.

    Raises:
        UsageError: no method, or a key or value that is not allowed.
    """
    file = {} if recipe is None else read_toml(recipe)
    if "method" not in flags and "method" not in file:
        raise UsageError(
            "No method was given; write `fttt finetune train METHOD ...` with full, lora, adapter, "
            "ia3, ln-tuning or prefix."
        )
    if recipe is not None:
        build(FinetuneConfig, merge({"method": "?"}, file), str(recipe))  # the file's own faults
    if LENGTHS & set(flags.get("training", {})):  # a length given replaces the recipe's
        kept = {k: v for k, v in file.get("training", {}).items() if k not in LENGTHS}
        file = {**file, "training": kept}
    return build(FinetuneConfig, merge(file, flags), "the command line")


def read_settings(folder: Path) -> FinetuneConfig:
    """The settings of the fine-tuning in ``folder``, to resume it.

    Raises:
        UsageError: there is none.
    """
    file = folder / "config.toml"
    values = read_toml(file) if file.is_file() else {}
    if "training" not in values:
        raise UsageError(
            f"The folder {str(folder)!r} holds no fine-tuning to resume: there is no config.toml "
            "of `fttt finetune train` in it; name one that was given as its --out."
        )
    return build(FinetuneConfig, values, str(file))


def published(method: str, model_type: str, task: str) -> tuple[float, float]:
    """The published learning rate and number of epochs; other tasks have a default for both."""
    rate = LEARNING_RATES[method]
    if method == "prefix" and model_type == "mistral":
        rate = MISTRAL_PREFIX_RATE
    return rate, EPOCHS.get(task, OTHER_EPOCHS)


def check_names(config: FinetuneConfig) -> tuple[FinetuneConfig, Section, Task]:
    """Resolve the method's settings and check them without data or model.

    Raises:
        UsageError: an unknown method, task or setting, a task without a training split, options
            that exclude each other, or a package that is not installed.
    """
    if config.method not in METHODS:
        raise unknown_name("fine-tuning method", config.method, METHODS)
    kind = SETTINGS[config.method]
    settings = build(kind, config.settings, f"the settings of {config.method!r}")
    task = get_task(config.task, **config.data.options)
    check_trainable(task, config.data.split)
    _check_options(config, settings)
    check_tracker(config.training.tracker)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"Fine-tuning needs the package {missing[0]!r}, which is not installed; "
            "run: pip install 'fttt[train]'"
        )
    over = {
        "task": task_name(config.task),
        "settings": settings.model_dump(mode="json", exclude_none=True),
    }
    return build(FinetuneConfig, merge(config.to_toml(), over), "the settings"), settings, task


def plan_finetune(config: FinetuneConfig) -> FinetunePlan:
    """Find method, task, questions and model, without loading weights.

    Data are looked for in ``./datasets`` where no folder is given.

    Raises:
        UsageError: any of them does not exist, or they do not fit together.
    """
    config, settings, task = check_names(config)
    notes: tuple[str, ...] = ()
    if config.data.data_dir is None:
        folder = local_data(task, config.data.split)
        if folder is not None:
            over = {"data": {"data_dir": str(folder)}}
            config = build(FinetuneConfig, merge(config.to_toml(), over), "the settings")
            notes = (local_note(task.name),)
    from fttt.models import (
        check_model,
        context_of,
        load_config,
        pick_device,
        pick_dtype,
        read_chat,
    )

    pick_dtype(config.engine.dtype, pick_device(config.engine.device))
    check_model(config.model, config.engine.quantize)
    model_config: Any = load_config(config.model)
    _check_learns(config, model_config)
    if config.template_args:
        read_chat(config.model).with_arguments(config.template_args)
    _check_prefix(settings, context_of(model_config))
    data = config.data
    options = TaskOptions(
        data.data_dir, data.split, data.prompt, data.seed, data.prompt_style or "own"
    )
    questions = load_questions(task, options)[: data.limit]
    if not questions:
        raise UsageError(f"The task {config.task!r} has no questions in split {data.split!r}.")

    from fttt.finetune.parameters import count_trained, on_meta

    trained = count_trained(on_meta(model_config, settings))
    shape = model_shape(model_config)
    rate, epochs = published(config.method, shape.model_type, config.task)
    given = config.training
    training: dict[str, Any] = {"lr": given.lr or rate}
    if given.max_steps is None:
        training["epochs"] = given.epochs or epochs
    config = build(FinetuneConfig, merge(config.to_toml(), {"training": training}), "the settings")
    return FinetunePlan(config, settings, tuple(questions), shape, trained, notes)


def _check_learns(config: FinetuneConfig, model_config: Any) -> None:
    """Refuse a method that is none for a base model whose weights are quantised.

    Raises:
        UsageError: it is such.
    """
    quantize, own = config.engine.quantize, quantized_by(vars(model_config))
    if config.method == "lora" or not (wanted(quantize) or own):
        return
    how = f"--quantize {quantize}" if wanted(quantize) else f"{own}, by its config.json"
    raise UsageError(
        f"The method {config.method!r} does not train a base model whose weights are quantised "
        f"({how}); take lora, whose weights lie beside them, or the model in full precision."
    )


def _check_prefix(settings: Section, context: int) -> None:
    length = getattr(settings, "length", 0)
    if length >= context:
        raise UsageError(
            f"A prefix of {length} positions leaves nothing of the model's {context}; "
            "choose a smaller --set length."
        )


def _check_options(config: FinetuneConfig, settings: Section) -> None:
    training = config.training
    refuse_float16(config.engine.dtype)
    if config.engine.device not in {"auto", "cpu", "cuda"}:
        raise UsageError(
            f"--device cannot be {config.engine.device!r} here; use auto, cpu or cuda, and choose "
            "a GPU by CUDA_VISIBLE_DEVICES."
        )
    if sharded():
        _check_sharded(config, settings)
    _, world = processes()
    if training.samples % world:
        raise UsageError(
            f"The {training.samples} samples of a step cannot be shared evenly by {world} "
            "processes; choose --samples or --num_processes so that they divide."
        )
    if training.epochs is not None and training.max_steps is not None:
        raise UsageError("--epochs and --max-steps both say how long to train; give one of them.")
    if training.early_stop is not None and config.data.held_out == 0:
        raise UsageError("--early-stop needs a validation loss; choose --held-out above 0.")
    if training.gradient_checkpointing and config.method == "prefix":
        raise UsageError(
            "The method 'prefix' cannot take --gradient-checkpointing, since its keys and values "
            "are passed in a cache; lower --batch-tokens instead."
        )
    if getattr(settings, "optimizer", "adamw") == "adamw-8bit" and find_spec("torchao") is None:
        raise UsageError(
            "The optimizer 'adamw-8bit' needs the package 'torchao', which is not installed; "
            "run: pip install torchao, or leave the setting out."
        )
    if (
        getattr(settings, "weights", "float32") == "bfloat16"
        and getattr(settings, "optimizer", "") == "adamw"
    ):
        raise UsageError(
            "weights=bfloat16 needs optimizer=adamw-8bit, which rounds stochastically: a plain "
            "step of a usual learning rate is lost in bfloat16's rounding."
        )


def _check_sharded(config: FinetuneConfig, settings: Section) -> None:
    """Refuse what FSDP cannot do and would fail at, or lose, only while training or saving."""
    if config.method != "full":
        raise UsageError(
            f"FSDP is for the method 'full'; launch {config.method!r} with --multi_gpu."
        )
    if getattr(settings, "optimizer", "adamw") != "adamw":
        raise UsageError(
            "FSDP cannot shard 8-bit moments; leave weights and optimizer at float32 and adamw, "
            "or train on one GPU."
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("Only version 2 of FSDP is supported; add --fsdp_version 2.")
    if os.environ.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT":
        raise UsageError(
            "With FSDP the weights must be saved whole; "
            "add --fsdp_state_dict_type FULL_STATE_DICT to `accelerate launch`."
        )
