"""Everything about a training that can be wrong before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fttt.config import RunConfig, build, merge, read_toml
from fttt.config.optune_config import OpTuneConfig
from fttt.errors import UsageError
from fttt.files import file_name
from fttt.optune.attempts import check_attempts
from fttt.optune.checkpoint import check_training
from fttt.optune.edited_layers import EditedLayer, edited_layers
from fttt.store import Run, fingerprint
from fttt.tasks import TaskOptions, get_task, load_questions, task_name
from fttt.training import check_trainable, refuse_float16
from fttt.types import Question

__all__ = ["CONFIG", "OpTunePlan", "default_folder", "plan_training", "read_settings", "resumed"]

CONFIG = "config.toml"
EPOCHS = {"mbpp": 10, "gsm8k": 3, "math500": 3}
OTHER_EPOCHS = 3
FREE = frozenset(
    {"device", "batch_tokens", "max_steps", "validate_every", "checkpoint_every", "tracker"}
)
"""Settings that may differ when a training is resumed."""
TRACKERS = {
    "tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "aim": "aim",
    "mlflow": "mlflow", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab",
    "trackio": "trackio",
}  # fmt: skip
"""What ``accelerate`` can log to, and the package that it needs."""


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


def plan_training(config: OpTuneConfig) -> OpTunePlan:
    """Find attempts, task, questions and model, without loading weights.

    Raises:
        UsageError: any of them does not exist or does not go with the others.
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
    """Where a training goes without ``--out``; every process of it finds the same name."""
    from fttt.models.locate import find_model

    ablation = "" if plan.config.ablation == "none" else f"-{plan.config.ablation}"
    label = file_name(find_model(plan.model).name)
    return Path("outputs") / f"optune-{plan.task}-{label}-s{plan.config.seed}{ablation}"


def read_settings(folder: Path) -> OpTuneConfig:
    """The settings of the training in ``folder``.

    Raises:
        UsageError: there is none.
    """
    values = read_toml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "attempts_from" not in values:
        raise UsageError(
            f"The folder {str(folder)!r} holds no OpTune training to resume: there is no "
            f"{CONFIG} of `fttt optune train` in it; name one that was given as its --out."
        )
    return build(OpTuneConfig, values, str(folder / CONFIG))


def resumed(own: OpTuneConfig, asked: OpTuneConfig, folder: Path) -> None:
    """Refuse to resume a training under other settings than its own.

    Raises:
        UsageError: a setting that shapes what is learned differs, or the checkpoint is broken.
    """
    before, after = own.to_toml(), asked.to_toml()
    free = FREE
    if own.schedule != "constant" or own.warmup > 0:
        free = FREE - {"max_steps"}  # the learning rate depends on it
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name) and name not in free:
            raise UsageError(
                f"The training in {str(folder)!r} was begun with {name} = {before.get(name)!r} and "
                f"cannot resume with {after.get(name)!r}; leave that setting away, or begin a new "
                "training."
            )
    if any(folder.glob("step-*")):
        check_training(folder)


def _questions(attempts: Run, config: OpTuneConfig) -> list[Question]:
    """The attempts' questions as the task has them, worked solutions included."""
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
                f"The question {old.id!r} of {str(attempts.path)!r} has changed or is gone; bring "
                "the data of that run back (--data-dir), or generate attempts anew."
            )
        questions.append(new)
    if all(question.solution is None for question in questions):
        raise UsageError(
            f"None of the {len(questions)} questions of {str(attempts.path)!r} has a worked "
            "solution to learn from; choose another task or split."
        )
    return questions


def _check_packages(config: OpTuneConfig) -> None:
    tracker = config.tracker
    if tracker != "none" and tracker not in TRACKERS:
        raise UsageError(
            f"There is no tracker {tracker!r}; choose from none, {', '.join(TRACKERS)}."
        )
    needed = ["accelerate", *([] if tracker == "none" else [TRACKERS[tracker]])]
    for package in needed:
        if find_spec(package) is None:
            raise UsageError(
                f"Training needs the package {package!r}, which is not installed; "
                "run: pip install 'fttt[train]' (or --tracker none to do without a tracker)."
            )
