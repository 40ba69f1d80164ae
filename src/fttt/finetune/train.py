"""Carries out a fine-tuning and leaves its result in a folder.

The folder holds ``config.toml`` (runs again as a recipe), ``tensorboard/``, ``checkpoints/`` while
it trains, and at its end the trained weights with ``finetune.json``.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState, TrainingArguments, set_seed

from fttt.config import FinetuneConfig, to_toml
from fttt.config.finetune_config import FullSettings
from fttt.engine.selfcheck import check_outputs
from fttt.errors import RunError, UsageError
from fttt.finetune.finetune_plan import FinetunePlan, processes, sharded
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
from fttt.training import GoldExample, gold_examples, held_out

__all__ = ["optimizer", "train", "training_arguments"]

CHECKPOINTS = "checkpoints"
FSDP_FILE = "pytorch_model_fsdp.bin"
"""The weights in a checkpoint that FSDP resumes from."""
STATE_FILES = (
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json",
    "trained.safetensors", FSDP_FILE,
)  # fmt: skip
"""What a checkpoint holds only for training to resume."""
LEAST_EVERY = 50


def train(plan: FinetunePlan, folder: Path, *, resume: bool = False) -> FinetuneInfo:
    """Train, and write the result into ``folder``.

    Args:
        plan: what to train, checked.
        folder: new or empty, or with ``resume`` that of an earlier training.
        resume: start from the last checkpoint in ``folder``, if there is one.

    Raises:
        RunError: training diverged, memory or disk ran out; checkpoints stay.
    """
    rank, _ = processes()
    begin = checkpoints(folder / CHECKPOINTS)[-1:] if resume else []
    if begin:
        _check_launch(begin[0])
        state = TrainerState.load_from_json(str(begin[0] / "trainer_state.json"))
        early = has_stopped(state, plan.config.training.early_stop)
        if early or state.global_step >= state.max_steps:  # it was stopped after its last step
            return _finish_together(folder, state, begin[0], plan.config.engine.device)
    try:
        trainer, progress = _trainer(plan, folder, begin[0] if begin else None)
        if rank == 0 and not resume:  # only now is it known that nothing is refused
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.toml").write_text(to_toml(plan.config), encoding="utf-8")
        try:
            trainer.train(resume_from_checkpoint=str(begin[0]) if begin else None)
        finally:
            progress.close()
    except torch.OutOfMemoryError as error:
        raise RunError(
            "The device is out of memory; lower --batch-tokens or use --gradient-checkpointing, "
            "and train again."
        ) from error
    info = trainer.info()
    if rank == 0:
        info = _finish(folder, trainer.state, trainer.counts)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # or a process may die of another's having gone
    return info


def _check_launch(begin: Path) -> None:
    """FSDP writes what it resumes from in its own form.

    Raises:
        UsageError: ``begin`` was written under the other launch.
    """
    if (begin / FSDP_FILE).is_file() == sharded():
        return
    how = "without --use_fsdp" if sharded() else "with the `accelerate launch --use_fsdp` of then"
    raise UsageError(
        f"The checkpoint {str(begin)!r} was written {'without' if sharded() else 'with'} FSDP; "
        f"resume it {how}."
    )


def _trainer(
    plan: FinetunePlan, folder: Path, begin: Path | None
) -> tuple[SolutionTrainer, StepProgress]:
    config, settings = plan.config, plan.settings
    loaded, half = _load(plan)
    progress = StepProgress(f"finetune {config.method}", shown=processes()[0] == 0)
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
            architecture=plan.architecture,
            task=config.task,
            seed=config.seed,
            settings=dict(config.settings),
            step=step,
            epoch=epoch,
            trained_parameters=plan.trained_parameters,
            trained_tokens=spent.trained_tokens,
            tokens=spent.tokens,
            seconds=spent.elapsed,
            validation_loss=loss,
        )

    shown = ShowSteps(progress)
    trainer = SolutionTrainer(
        settings=settings,
        describe=describe,
        counts=_counts(begin),
        batch_tokens=config.training.batch_tokens,
        tokenizer=loaded.tokenizer,
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=validation,
        optimizer_cls_and_kwargs=optimizer(config, settings),
        callbacks=[shown, *_callbacks(config, folder)],
    )
    if half and sharded():  # or gradients would be added up over the processes in bfloat16
        plugin: Any = trainer.accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32
        )
    trainer.remove_callback(PrinterCallback)
    shown.trainer = trainer
    return trainer, progress


def _load(plan: FinetunePlan) -> tuple[LoadedModel, bool]:
    """The model where and as it is trained, and whether it is computed in bfloat16 by autocast."""
    config = plan.config
    device = pick_device(config.engine.device)
    compute = pick_dtype(config.engine.dtype, device)
    weights, half = compute, compute == torch.bfloat16
    if isinstance(plan.settings, FullSettings):
        weights = getattr(torch, plan.settings.weights)
        half = half and weights == torch.float32
    where = device.type
    if sharded():
        where = "cpu"  # each process keeps its own part of it on its device
    elif where == "cuda":
        where = f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"
    loaded = load_model(config.model, dtype=str(weights).removeprefix("torch."), device=where)
    check_outputs(loaded.model, loaded.name)
    return loaded, half


def _examples(
    plan: FinetunePlan, loaded: LoadedModel, progress: StepProgress
) -> tuple[list[GoldExample], list[GoldExample]]:
    """What is trained on and what is validated on."""
    data = plan.config.data
    prefix = getattr(plan.settings, "length", 0)
    most = min(data.max_length, loaded.max_context - prefix)
    all_of_them = gold_examples(plan.questions, loaded.chat)
    fitting = [e for e in all_of_them if e.length <= most]
    kept = held_out([e.question_id for e in fitting], data.held_out, plan.config.seed)
    learned = [e for e in fitting if e.question_id not in kept]
    if not learned:
        raise UsageError(
            f"None of the {len(all_of_them)} solutions fits into {most} tokens with its question; "
            f"{'raise --max-length' if most == data.max_length else 'the context is too short'}."
        )
    if len(fitting) < len(all_of_them):
        progress.say(f"{len(all_of_them) - len(fitting)} samples over {most:,} tokens are left out")
    return learned, [e for e in fitting if e.question_id in kept]


def training_arguments(
    config: FinetuneConfig, folder: Path, *, samples: int, validates: bool, half: bool, cpu: bool
) -> TrainingArguments:
    """The settings as ``transformers`` names them.

    Args:
        config: resolved.
        folder: for checkpoints.
        samples: that are trained on.
        validates: whether there are validation samples.
        half: compute in bfloat16 by autocast.
        cpu: train there even if there is a GPU.
    """
    training = config.training
    _, world = processes()
    per_epoch = math.ceil(samples / training.samples)
    every = training.every or max(LEAST_EVERY, per_epoch)
    steps = training.max_steps or math.ceil(per_epoch * (training.epochs or 1.0))
    own = training.samples // world
    # else `accelerate launch --mixed_precision` would have its way where ``half`` is false
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if half else "no"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=own,
        per_device_eval_batch_size=own,
        num_train_epochs=training.epochs or 1.0,
        max_steps=training.max_steps or -1,
        learning_rate=training.lr or 0.0,
        lr_scheduler_type="cosine",
        # of a share ``transformers`` makes one step at least, whose rate is 0
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
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not cpu,
        report_to="none",
        disable_tqdm=True,
    )
    if world == 1 and not cpu:
        # several GPUs without a launcher: one is used, and not torch's DataParallel
        _ = arguments.device
        arguments._n_gpu = 1
    return arguments


def _counts(begin: Path | None) -> Counts:
    """What was spent before."""
    if begin is None:
        return Counts()
    before = read_info(begin)
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
    if processes()[0] == 0:
        from torch.utils.tensorboard import SummaryWriter

        board: Any = import_module("transformers.integrations").TensorBoardCallback
        callbacks.append(board(SummaryWriter(str(folder / "tensorboard"))))
    if config.training.early_stop is not None:
        callbacks.append(EarlyStop(config.training.early_stop))
    return callbacks


def _finish_together(folder: Path, state: TrainerState, last: Path, device: str) -> FinetuneInfo:
    """Finish once every process has seen that nothing is left to train; one of them does."""
    others: Any = import_module("accelerate").PartialState(cpu=pick_device(device).type == "cpu")
    info = read_info(last)
    others.wait_for_everyone()
    if others.is_main_process:
        info = _finish(folder, state, _counts(last))
    others.wait_for_everyone()
    others.destroy_process_group()
    return info


def _finish(folder: Path, state: TrainerState, spent: Counts) -> FinetuneInfo:
    """Move the result out of its checkpoint and drop what was only there to resume from.

    The result are the last weights, or the best ones where training stops early by validation.
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
    """Let ``target`` be the file, by a second name where the file system has such, else a copy."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
