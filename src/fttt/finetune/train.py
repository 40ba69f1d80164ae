"""Runs a fine-tuning, from its first step or from its last checkpoint, to its result in a folder.

The folder holds ``config.toml`` (which is a recipe, too), ``tensorboard/``, ``checkpoints/`` during
training, and at the end the trained weights with ``finetune.json``.
"""

from __future__ import annotations

import inspect
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState, TrainingArguments, set_seed

from fttt.config import FinetuneConfig, to_toml
from fttt.config.training_configs import FullSettings
from fttt.engine.adapters.bank import check_gradients
from fttt.engine.selfcheck import check_outputs
from fttt.errors import RunError, UsageError
from fttt.files import begin_folder, held_folder
from fttt.finetune.finetune_plan import (
    FinetunePlan,
    plan_finetune,
    processes,
    read_settings,
    sharded,
)
from fttt.finetune.metadata import INFO_FILE, FinetuneInfo, publish, read_info, write_info
from fttt.finetune.parameters import prepare
from fttt.finetune.solution_trainer import (
    Counts,
    EarlyStop,
    ShowSteps,
    SolutionTrainer,
    best_checkpoint,
    checkpoints,
    has_stopped,
)
from fttt.models import LoadedModel, load_model, pick_device, pick_dtype
from fttt.progress import StepProgress
from fttt.trackers import NO_TRACKER
from fttt.training import GoldExample, gold_examples, held_out

__all__ = ["optimizer", "resume_training", "train", "training_arguments"]

CHECKPOINTS = "checkpoints"
FSDP_FILE = "pytorch_model_fsdp.bin"
"""The weights in a checkpoint that FSDP resumes from."""
STATE_FILES = (
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json",
    "trained.safetensors", FSDP_FILE,
)  # fmt: skip
"""Files of a checkpoint that only resuming needs."""
LEAST_EVERY = 50
"""Steps between two checkpoints, at least, where ``every`` is not set."""


def train(plan: FinetunePlan, folder: Path, *, resume: bool = False) -> FinetuneInfo:
    """Train, and write the result into ``folder``, which one training at a time may use.

    Args:
        plan: the settings, checked.
        folder: new or empty; with ``resume``, the folder of an earlier training.
        resume: start from the last checkpoint in ``folder``, if there is one.

    Raises:
        UsageError: the folder is not empty, or another process trains in it.
        RunError: training diverged, or memory or disk ran out; checkpoints stay.
    """
    first = processes()[0] == 0
    if first and not resume:
        begin_folder(folder, "fttt finetune train --resume")
    with held_folder(folder) if first else nullcontext():
        return _train(plan, folder, resume)


def resume_training(folder: Path) -> FinetuneInfo:
    """Resume the training in ``folder``; what is finished is only read.

    Raises:
        UsageError: there is no training in the folder, or its model or data are gone.
        RunError: see :func:`train`.
    """
    config = read_settings(folder)
    if (folder / INFO_FILE).is_file():
        return read_info(folder)
    return train(plan_finetune(config), folder, resume=True)


def _train(plan: FinetunePlan, folder: Path, resume: bool) -> FinetuneInfo:
    rank, _ = processes()
    last = next(reversed(checkpoints(folder / CHECKPOINTS)), None) if resume else None
    if last is not None:
        _check_launch(last)
        state = TrainerState.load_from_json(str(last / "trainer_state.json"))
        early = has_stopped(state, plan.config.training.early_stop)
        if early or state.global_step >= state.max_steps:  # killed after its last step
            return _finish_together(folder, state, last, plan.config.engine.device)
    progress = StepProgress(f"finetune {plan.config.method}", shown=rank == 0)
    progress.say(
        f"{plan.trained_parameters:,} trained parameters, learning rate "
        f"{plan.config.training.lr:g}, into {folder}"
    )
    try:
        trainer = _trainer(plan, folder, last, progress)
        if rank == 0 and not resume:  # only now are all checks passed
            (folder / "config.toml").write_text(to_toml(plan.config), encoding="utf-8")
        with closing(progress):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The device is out of memory; lower --batch-tokens or use --gradient-checkpointing, "
            "and train again."
        ) from error
    info = trainer.info()
    if rank == 0:
        info = _finish(folder, trainer.state, trainer.counts)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # else a process may fail because another one has ended
    return info


def _check_launch(checkpoint: Path) -> None:
    """FSDP writes the weights to resume from in its own form.

    Raises:
        UsageError: the checkpoint was written with FSDP and this launch is without, or vice versa.
    """
    if (checkpoint / FSDP_FILE).is_file() == sharded():
        return
    how = "without --use_fsdp" if sharded() else "by the same `accelerate launch --use_fsdp`"
    raise UsageError(
        f"The checkpoint {str(checkpoint)!r} was written {'without' if sharded() else 'with'} "
        f"FSDP; resume it {how}."
    )


def _trainer(
    plan: FinetunePlan, folder: Path, last: Path | None, progress: StepProgress
) -> SolutionTrainer:
    config, settings = plan.config, plan.settings
    loaded, half = _load(plan)
    train_set, validation = _examples(plan, loaded, progress)
    set_seed(config.seed)
    model = prepare(loaded.model, settings)
    arguments = training_arguments(
        config,
        folder / CHECKPOINTS,
        samples=len(train_set),
        validates=bool(validation),
        half=half,
        cpu=pick_device(config.engine.device).type == "cpu",
    )

    def describe(step: int, epoch: float, spent: Counts, loss: float | None) -> FinetuneInfo:
        return FinetuneInfo(
            method=config.method,  # type: ignore[arg-type] # checked by the plan
            model=config.model,
            base_model=loaded.name,
            architecture=plan.shape,
            task=config.task,
            seed=config.seed,
            settings=dict(config.settings),
            quantize=config.engine.quantize,
            step=step,
            epoch=epoch,
            trained_parameters=plan.trained_parameters,
            trained_tokens=spent.trained_tokens,
            tokens=spent.tokens,
            seconds=spent.elapsed,
            validation_loss=loss,
        )

    trainer = SolutionTrainer(
        settings=settings,
        describe=describe,
        counts=_counts(last),
        batch_tokens=config.training.batch_tokens,
        tokenizer=loaded.tokenizer,
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=validation,
        optimizer_cls_and_kwargs=optimizer(config, settings),
        callbacks=_callbacks(config, folder),
    )
    if half and sharded():  # else gradients would be summed over the processes in bfloat16
        plugin: Any = trainer.accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ShowSteps(trainer, progress))
    return trainer


def _load(plan: FinetunePlan) -> tuple[LoadedModel, bool]:
    """The model in its training precision and place; whether autocast computes in bfloat16."""
    config = plan.config
    device = pick_device(config.engine.device)
    compute = pick_dtype(config.engine.dtype, device)
    weights, half = compute, compute == torch.bfloat16
    if isinstance(plan.settings, FullSettings):
        weights = getattr(torch, plan.settings.weights)
        half = half and weights == torch.float32
    where = device.type
    if sharded():
        where = "cpu"  # each process keeps only its shard on its device
    elif where == "cuda":
        where = f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"
    loaded = load_model(
        config.model,
        dtype=str(weights).removeprefix("torch."),
        device=where,
        quantize=config.engine.quantize,
    )
    check_outputs(loaded.model, loaded.name)
    check_gradients(loaded.model)
    return loaded, half


def _examples(
    plan: FinetunePlan, loaded: LoadedModel, progress: StepProgress
) -> tuple[list[GoldExample], list[GoldExample]]:
    """The training set and the validation set."""
    data = plan.config.data
    prefix = getattr(plan.settings, "length", 0)
    most = min(data.max_length, loaded.max_context - prefix)
    chat = loaded.chat.with_arguments(plan.config.template_args)
    examples = gold_examples(plan.questions, chat)
    fitting = [e for e in examples if e.length <= most]
    kept = held_out([e.question_id for e in fitting], data.held_out, plan.config.seed)
    learned = [e for e in fitting if e.question_id not in kept]
    if not learned:
        raise UsageError(
            f"None of the {len(examples)} solutions fits into {most} tokens with its question; "
            f"{'raise --max-length' if most == data.max_length else 'the context is too short'}."
        )
    if len(fitting) < len(examples):
        progress.say(f"{len(examples) - len(fitting)} samples over {most:,} tokens are left out")
    return learned, [e for e in fitting if e.question_id in kept]


def training_arguments(
    config: FinetuneConfig, folder: Path, *, samples: int, validates: bool, half: bool, cpu: bool
) -> TrainingArguments:
    """The settings as ``transformers`` names them.

    Args:
        config: resolved.
        folder: for checkpoints.
        samples: number of training samples.
        validates: whether there are validation samples.
        half: compute in bfloat16 by autocast.
        cpu: train on the CPU even if there is a GPU.
    """
    training = config.training
    _, world = processes()
    per_epoch = math.ceil(samples / training.samples)
    every = training.every or max(LEAST_EVERY, per_epoch)
    steps = training.max_steps or math.ceil(per_epoch * (training.epochs or 1.0))
    own = training.samples // world
    # else `accelerate launch --mixed_precision` would decide where ``half`` is false
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if half else "no"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=own,
        per_device_eval_batch_size=own,
        num_train_epochs=training.epochs or 1.0,
        max_steps=training.max_steps or -1,
        learning_rate=training.lr or 0.0,
        lr_scheduler_type="cosine",
        # ``transformers`` would turn a share into at least one step, with a rate of 0
        warmup_steps=round(training.warmup * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip,
        seed=config.seed,
        bf16=half,
        use_cpu=cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        metric_for_best_model="loss" if training.early_stop else None,
        greater_is_better=False if training.early_stop else None,
        **_checkpointing(training.gradient_checkpointing),
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not cpu,
        report_to=[] if training.tracker in (NO_TRACKER, "tensorboard") else [training.tracker],
        run_name=folder.parent.name,
        disable_tqdm=True,
    )
    if world == 1 and not cpu:
        # several GPUs without a launcher: use one of them, not torch's DataParallel
        _ = arguments.device
        arguments._n_gpu = 1
    return arguments


def _checkpointing(on: bool) -> dict[str, Any]:
    """The trainer's arguments for it, whose names later versions of ``transformers`` change."""
    known = inspect.signature(TrainingArguments).parameters
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in known)
    return {name: on, f"{name}_kwargs": {"use_reentrant": False}}


def _counts(checkpoint: Path | None) -> Counts:
    """Tokens and seconds up to a checkpoint."""
    if checkpoint is None:
        return Counts()
    before = read_info(checkpoint)
    return Counts(before.tokens, before.trained_tokens, before.seconds)


def optimizer(config: FinetuneConfig, settings: Any) -> tuple[type, dict[str, Any]] | None:
    """The 8-bit optimizer, or ``None`` for the trainer's own AdamW."""
    if not isinstance(settings, FullSettings) or settings.optimizer == "adamw":
        return None
    from torchao.optim import AdamW8bit

    return AdamW8bit, {
        "lr": config.training.lr,
        "bf16_stochastic_round": settings.weights == "bfloat16",
    }


def _callbacks(config: FinetuneConfig, folder: Path) -> Sequence[Any]:
    callbacks: list[Any] = []
    if processes()[0] == 0 and config.training.tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        board: Any = import_module("transformers.integrations").TensorBoardCallback
        callbacks.append(board(SummaryWriter(str(folder / "tensorboard"))))
    if config.training.early_stop is not None:
        callbacks.append(EarlyStop(config.training.early_stop))
    return callbacks


def _finish_together(folder: Path, state: TrainerState, last: Path, device: str) -> FinetuneInfo:
    """Finish, in one process, once all processes have seen that nothing is left to train."""
    others: Any = import_module("accelerate").PartialState(cpu=pick_device(device).type == "cpu")
    info = read_info(last)
    others.wait_for_everyone()
    if others.is_main_process:
        info = _finish(folder, state, _counts(last))
    others.wait_for_everyone()
    others.destroy_process_group()
    return info


def _finish(folder: Path, state: TrainerState, spent: Counts) -> FinetuneInfo:
    """Move the result out of its checkpoint, and delete what only resuming needed.

    The result is the last weights, or the best ones where training stops early by validation.
    """
    last = folder / CHECKPOINTS / f"checkpoint-{state.global_step}"
    chosen = best_checkpoint(state, folder / CHECKPOINTS) or last
    info = read_info(chosen).model_copy(
        update={
            "tokens": spent.tokens,
            "trained_tokens": spent.trained_tokens,
            "seconds": spent.elapsed,
        }
    )
    with publish(folder) as beside:
        for file in chosen.iterdir():
            if not any(fnmatch(file.name, pattern) for pattern in STATE_FILES):
                _place(file, beside / file.name)
        (beside / INFO_FILE).unlink()
        write_info(beside, info)
    shutil.rmtree(folder / CHECKPOINTS)
    return info


def _place(file: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file, or a copy on a file system without links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
