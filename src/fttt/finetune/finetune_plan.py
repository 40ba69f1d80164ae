"""Everything about a fine-tuning that can be wrong before a model is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fttt.config import SETTINGS, FinetuneConfig, build, merge
from fttt.config.run_config import Section
from fttt.errors import UsageError
from fttt.files import file_name, model_label
from fttt.finetune.metadata import METHODS, ModelShape, model_shape
from fttt.registry import unknown_name
from fttt.tasks import Task, TaskOptions, get_task, load_questions, task_name
from fttt.training import check_trainable, refuse_float16
from fttt.types import Question

__all__ = [
    "FinetunePlan",
    "check_names",
    "label",
    "plan_finetune",
    "processes",
    "published",
    "sharded",
]

PACKAGES = ("accelerate", "peft", "tensorboard")
LEARNING_RATES = {
    "full": 1e-5,
    "lora": 2e-5,
    "adapter": 1e-4,
    "ia3": 5e-5,
    "ln-tuning": 4e-4,
    "prefix": 2e-4,
}
"""Published for Llama-3.1-8B and Mistral-7B (arXiv 2502.15771), which differ in one."""
MISTRAL_PREFIX_RATE = 5e-5
EPOCHS = {"mbpp": 100.0, "gsm8k": 10.0, "math500": 3.0}
OTHER_EPOCHS = 10.0


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tuning that is ready to begin."""

    config: FinetuneConfig
    """Resolved: learning rate, epochs and the method's settings are filled in."""
    settings: Section
    questions: tuple[Question, ...]
    architecture: ModelShape
    trained_parameters: int


def processes() -> tuple[int, int]:
    """This process's place and how many there are, as ``accelerate launch`` says it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def sharded() -> bool:
    """Whether the processes share the weights out, as ``accelerate launch --use_fsdp`` says it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in {"1", "true"}


def label(config: FinetuneConfig) -> str:
    """What a fine-tuning is called in the names of folders."""
    return file_name(config.method, config.task, model_label(config.model), f"s{config.seed}")


def published(method: str, model_type: str, task: str) -> tuple[float, float]:
    """The published learning rate and number of epochs, and their like for other tasks."""
    rate = LEARNING_RATES[method]
    if method == "prefix" and model_type == "mistral":
        rate = MISTRAL_PREFIX_RATE
    return rate, EPOCHS.get(task, OTHER_EPOCHS)


def check_names(config: FinetuneConfig) -> tuple[FinetuneConfig, Section, Task]:
    """Resolve the method's settings and refuse what is wrong in itself, without data or model.

    Raises:
        UsageError: an unknown method, task or setting, a task that has nothing to learn from,
            options that exclude each other, or a package that is missing.
    """
    if config.method not in METHODS:
        raise unknown_name("fine-tuning method", config.method, METHODS)
    kind = SETTINGS[config.method]
    settings = build(kind, config.settings, f"the settings of {config.method!r}")
    task = get_task(config.task, **config.data.options)
    check_trainable(task, config.data.split)
    _check_options(config, settings)
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

    Raises:
        UsageError: any of them does not exist or does not go with the others.
    """
    config, settings, task = check_names(config)
    from fttt.models import context_of, load_config, pick_device, pick_dtype

    pick_dtype(config.engine.dtype, pick_device(config.engine.device))
    shape_of: Any = load_config(config.model)
    _check_prefix(settings, context_of(shape_of))
    data = config.data
    options = TaskOptions(
        data.data_dir, data.split, data.prompt, data.seed, data.prompt_style or "own"
    )
    questions = load_questions(task, options)[: data.limit]
    if not questions:
        raise UsageError(f"The task {config.task!r} has no questions in split {data.split!r}.")

    from fttt.finetune.parameters import count_trained, on_meta

    trained = count_trained(on_meta(shape_of, settings))
    shape = model_shape(shape_of)
    rate, epochs = published(config.method, shape.model_type, config.task)
    given = config.training
    over: dict[str, Any] = {"training": {"lr": given.lr or rate}}
    if given.max_steps is None:
        over["training"]["epochs"] = given.epochs or epochs
    config = build(FinetuneConfig, merge(config.to_toml(), over), "the settings")
    return FinetunePlan(config, settings, tuple(questions), shape, trained)


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
        raise UsageError("--early-stop needs a validation loss; leave --held-out away or above 0.")
    if training.gradient_checkpointing and config.method == "prefix":
        raise UsageError(
            "The method 'prefix' cannot take --gradient-checkpointing: its keys and values are "
            "handed over in a cache; lower --batch-tokens instead."
        )
    if getattr(settings, "optimizer", "adamw") == "adamw-8bit" and find_spec("torchao") is None:
        raise UsageError(
            "The optimizer 'adamw-8bit' needs the package 'torchao', which is not installed; "
            "run: pip install torchao, or leave the setting away."
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
    """What FSDP can take; each of these would fail, or be lost, only while it trains or saves."""
    if config.method != "full":
        raise UsageError(
            f"FSDP is for the method 'full'; launch {config.method!r} with --multi_gpu."
        )
    if getattr(settings, "optimizer", "adamw") != "adamw":
        raise UsageError(
            "FSDP cannot share out moments in 8 bits; leave weights and optimizer at float32 and "
            "adamw, or train on one GPU."
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP serves in version 2 only; add --fsdp_version 2.")
    if os.environ.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT":
        raise UsageError(
            "With FSDP the weights must be saved as one; "
            "add --fsdp_state_dict_type FULL_STATE_DICT to `accelerate launch`."
        )
