"""A training's settings, attempts, questions and layers, checked before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fttt.config import RunConfig, build, merge, read_toml, resolve
from fttt.config.training_configs import OpTuneConfig
from fttt.errors import UsageError
from fttt.files import file_name
from fttt.optune.attempts import check_attempts
from fttt.optune.checkpoint import EditedLayer, check_training, edited_layers
from fttt.store import Run, fingerprint
from fttt.tasks import TaskOptions, get_task, load_questions, task_name
from fttt.trackers import check_tracker
from fttt.training import check_trainable, refuse_float16
from fttt.types import Question

__all__ = [
    "CONFIG",
    "OpTunePlan",
    "attempt_flags",
    "check_resumable",
    "default_folder",
    "plan_training",
    "read_settings",
    "settle_training",
]

CONFIG = "config.toml"
EPOCHS = {"mbpp": 10, "gsm8k": 3, "math500": 3}
OTHER_EPOCHS = 3
FREE = frozenset(
    {"device", "batch_tokens", "max_steps", "validate_every", "checkpoint_every", "tracker"}
)
"""Settings that may change when a training is resumed."""


@dataclass(frozen=True)
class OpTunePlan:
    """A training that is ready to begin."""

    config: OpTuneConfig
    """Resolved: model, task and epochs are filled in."""
    model: str
    task: str
    epochs: int
    attempts: Run
    questions: tuple[Question, ...]
    """Those of the attempts, in their order, with their solutions."""
    layers: tuple[EditedLayer, ...]


def attempt_flags(
    flags: Mapping[str, Any], attempts: int | None, *, resumes: bool
) -> dict[str, Any]:
    """The settings of a run that makes attempts to learn from.

    Args:
        flags: only what was given on the command line, in a recipe's shape.
        attempts: at each question (10).
        resumes: whether the run resumes an earlier one, whose settings are the defaults.

    Raises:
        UsageError: the task has no training split, or another split was given.
    """
    own: dict[str, Any] = {"method": "sample"}
    if not resumes:
        own |= {"data": {"split": "train"}, "budget": {"trials": 10}}
    if attempts is not None:
        own["budget"] = {"trials": attempts}
    flags = merge(own, flags)
    if not resumes:
        config = resolve(flags)
        check_trainable(get_task(config.task, **config.data.options), config.data.split)
    return flags


def settle_training(
    flags: Mapping[str, Any], recipe: Path | None = None, resume: Path | None = None
) -> OpTuneConfig:
    """Flags over a recipe over the settings of the training to resume over defaults.

    Args:
        flags: only what was given on the command line.
        recipe: a TOML file.
        resume: the folder of the training to resume.

    Raises:
        UsageError: a key or value that is not allowed, no attempts, or a training that cannot be
            resumed with these settings.
    """
    file = {} if recipe is None else read_toml(recipe)
    build(OpTuneConfig, merge({"attempts_from": "?"}, file), str(recipe))  # the file's own faults
    given = merge(file, flags)
    if resume is not None:
        before = read_settings(resume)
        config = build(OpTuneConfig, merge(before.to_toml(), given), "the command line")
        check_resumable(before, config, resume)
        return config
    if "attempts_from" not in given:
        raise UsageError(
            "No attempts were given; name a run folder by --from, as `fttt optune generate` "
            "makes one."
        )
    return build(OpTuneConfig, given, "the command line")


def plan_training(config: OpTuneConfig) -> OpTunePlan:
    """Find attempts, task, questions and model, without loading weights.

    Raises:
        UsageError: any of them does not exist, or they do not fit together.
    """
    _check_packages(config)
    refuse_float16(config.dtype)
    attempts = Run.open(config.attempts_from)
    model, task = config.model or attempts.model, task_name(config.task or attempts.task)
    check_attempts(attempts, model, task)
    questions = _questions(attempts, config)

    from fttt.models import pick_device, pick_dtype
    from fttt.models.loader import model_outline

    pick_dtype(config.dtype, pick_device(config.device))
    layers = edited_layers(model_outline(model), config.targets, config.layers)
    epochs = config.epochs or EPOCHS.get(task, OTHER_EPOCHS)
    over = {"model": model, "task": task, "epochs": epochs}
    config = build(OpTuneConfig, merge(config.to_toml(), over), "the settings")
    return OpTunePlan(config, model, task, epochs, attempts, tuple(questions), layers)


def default_folder(plan: OpTunePlan) -> Path:
    """The training folder without ``--out``; all processes derive the same name."""
    from fttt.models.locate import find_model

    ablation = "" if plan.config.ablation == "none" else f"-{plan.config.ablation}"
    label = file_name(find_model(plan.model).name)
    return Path("outputs") / f"optune-{plan.task}-{label}-s{plan.config.seed}{ablation}"


def read_settings(folder: Path) -> OpTuneConfig:
    """The settings of the training in ``folder``."""
    values = read_toml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "attempts_from" not in values:
        raise UsageError(
            f"The folder {str(folder)!r} holds no OpTune training to resume: there is no "
            f"{CONFIG} of `fttt optune train` in it; name one that was given as its --out."
        )
    return build(OpTuneConfig, values, str(folder / CONFIG))


def check_resumable(old: OpTuneConfig, new: OpTuneConfig, folder: Path) -> None:
    """Refuse other settings that would change what is learned, and a broken checkpoint."""
    before, after = old.to_toml(), new.to_toml()
    free = FREE
    if old.schedule != "constant" or old.warmup > 0:
        free = FREE - {"max_steps"}  # the learning rate depends on it
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name) and name not in free:
            raise UsageError(
                f"The training in {str(folder)!r} was started with {name} = {before.get(name)!r} "
                f"and cannot be resumed with {after.get(name)!r}; leave that setting out, or start "
                "a new training."
            )
    if any(folder.glob("step-*")):
        check_training(folder)


def _questions(attempts: Run, config: OpTuneConfig) -> list[Question]:
    """The attempts' questions as the task has them, with their worked solutions."""
    made = build(RunConfig, attempts.config, f"{attempts.path}/{CONFIG}")
    data = made.data
    task = get_task(made.task, **data.options)
    check_trainable(task, data.split)
    folder = config.data_dir or data.data_dir
    options = TaskOptions(folder, data.split, data.prompt, data.seed, data.prompt_style or "own")
    found = {question.id: question for question in load_questions(task, options)}
    questions = []
    for old in attempts.questions[: config.limit]:
        new = found.get(old.id)
        if new is None or fingerprint(new) != fingerprint(old):
            raise UsageError(
                f"The question {old.id!r} of {str(attempts.path)!r} has changed or is missing; "
                "restore the data of that run (--data-dir), or generate new attempts."
            )
        questions.append(new)
    if all(question.solution is None for question in questions):
        raise UsageError(
            f"None of the {len(questions)} questions of {str(attempts.path)!r} has a worked "
            "solution to learn from; choose another task or split."
        )
    return questions


def _check_packages(config: OpTuneConfig) -> None:
    check_tracker(config.tracker)
    if find_spec("accelerate") is None:
        raise UsageError(
            "Training needs the package 'accelerate', which is not installed; "
            "run: pip install 'fttt[train]'."
        )
