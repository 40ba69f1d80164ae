"""The trainer of ``transformers``, fed with whole optimizer steps.

``transformers.Trainer`` keeps the schedule, the optimizer, checkpoints, resuming, validation and
distribution over devices. One batch of its loader is one whole step, so its gradient accumulation
is not used: :meth:`SolutionTrainer.training_step` runs the batch in groups
(:mod:`fttt.finetune.packing`), and the loss is exact whatever the groups are. The loss of a step is
the mean over its samples of each solution's mean cross-entropy over its tokens, the last token that
ends the answer included.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState

from fttt.config.finetune_config import FullSettings
from fttt.config.run_config import Section
from fttt.errors import DivergedError
from fttt.finetune.metadata import INFO_FILE, FinetuneInfo, cannot_save, write_info
from fttt.finetune.packing import PackedPasses, SampleGroup, collate, groups
from fttt.finetune.parameters import export, read_trained, write_trained
from fttt.progress import StepProgress
from fttt.training import GoldExample

__all__ = [
    "Counts",
    "EarlyStop",
    "ShowSteps",
    "SolutionTrainer",
    "best_checkpoint",
    "checkpoints",
    "has_stopped",
]

SAVING_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk shows as; torch raises a RuntimeError."""


@dataclass
class Counts:
    """What a training has cost so far, over all processes."""

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    """Of earlier processes; those of this one begin at ``since``."""
    since: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.since


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, by step."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{INFO_FILE}")]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def best_checkpoint(state: TrainerState, folder: Path) -> Path | None:
    """The checkpoint in ``folder`` with the lowest validation loss, where training looks for it.

    The state names it by the path that the folder had then, from the working folder of then.
    """
    best = state.best_model_checkpoint
    return None if best is None else folder / Path(best).name


class SolutionTrainer(Trainer):
    """Trains on gold solutions."""

    def __init__(
        self,
        *,
        settings: Section,
        describe: Callable[[int, float, Counts, float | None], FinetuneInfo],
        counts: Counts,
        batch_tokens: int,
        tokenizer: Any,
        train_dataset: list[GoldExample],
        eval_dataset: list[GoldExample],
        **trainer: Any,
    ) -> None:
        """Take what :class:`transformers.Trainer` takes, and beside:

        Args:
            settings: of the method.
            describe: makes a checkpoint's description of step, epoch, counts and validation loss.
            counts: at zero, or of the checkpoint that is resumed.
            batch_tokens: tokens that run at once.
            tokenizer: goes into the folder of a whole model.
            train_dataset: what is learned.
            eval_dataset: what the validation loss is of; may be empty.
        """
        super().__init__(
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **trainer,
        )
        self.settings = settings
        self.counts = counts
        self.validation_loss: float | None = None
        self.last_loss = math.nan
        self._describe = describe
        self._batch_tokens = batch_tokens
        self._tokenizer = tokenizer
        whole: Any = self.model
        half = torch.bfloat16 if self.args.bf16 else None
        # FSDP puts other weights in the place of those that fused kernels would hold
        self._packed = PackedPasses(whole, dtype=half, fused=not self.is_fsdp_enabled)
        self._bound = 2 * math.log(whole.config.get_text_config().vocab_size)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, in packed passes."""
        with self._packed:
            return super().train(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Add up the gradient of one whole step.

        Raises:
            DivergedError: the loss says so; the weights are those before.
        """
        model.train()
        own, everyone = self._share(inputs["samples"], self.train_dataset)
        passes = self._passes(own, inputs["samples"][0])
        scale = self.args.world_size / everyone  # processes take the mean of their gradients
        total = torch.zeros((), device=self.args.device)
        for i, (group, counts) in enumerate(passes):
            waits = i + 1 < len(passes) and not self.is_fsdp_enabled
            with self.accelerator.no_sync(model) if waits else nullcontext():
                with self.compute_loss_context_manager():
                    logits_MV = self._packed(model, group)
                    loss = group.loss(logits_MV) * (scale * counts)
                del logits_MV
                self.accelerator.backward(loss)
            total += loss.detach()
        self._count(own)
        self.last_loss = self.accelerator.reduce(total, "mean").item()
        if self.state.global_step == 0 and math.isfinite(self.last_loss):
            self._bound = max(self._bound, 2 * self.last_loss)
        self._check(self.last_loss, f"the loss of step {self.state.global_step + 1}")
        return total

    def _share(self, samples: list[GoldExample], of: Any) -> tuple[list[GoldExample], int]:
        """This process's samples that count, and how many count in all processes.

        Where the samples ``of`` a pass do not divide, each process's last batch is filled up with
        some from the beginning; those do not count, and for some process all may be such.
        """
        size = self.args.per_device_train_batch_size
        everyone = size * self.args.world_size
        if self.accelerator.gradient_state.end_of_dataloader:
            everyone = len(of) % everyone or everyone
        return samples[: max(everyone - self.args.process_index * size, 0)], everyone

    def _passes(self, own: list[GoldExample], other: GoldExample) -> list[tuple[SampleGroup, bool]]:
        """The groups of a batch, and whether they count.

        Every process runs one pass at least, and under FSDP as many as the others; it runs
        ``other`` for nothing where it has no more samples of its own.
        """
        cuts = groups(own, self._batch_tokens)
        most = 1
        if self.is_fsdp_enabled:
            count = torch.tensor([len(cuts)], device=self.args.device)
            most = int(self.accelerator.gather(count).max())
            cuts = groups(own, self._batch_tokens, at_least=most)
        idle = max(most - len(cuts), 0)
        return [(group, True) for group in cuts] + [(SampleGroup((other,)), False)] * idle

    def _count(self, samples: list[GoldExample]) -> None:
        solutions = sum(len(e.solution_ids) for e in samples)
        both = sum(e.length for e in samples)
        own = torch.tensor([both, solutions], device=self.args.device)
        tokens, trained = self.accelerator.reduce(own, "sum").tolist()
        self.counts.tokens += tokens
        self.counts.trained_tokens += trained

    def _check(self, loss: float, what: str) -> None:
        """A guess among all tokens costs ln V; twice that is no learning any more."""
        if math.isfinite(loss) and loss <= self._bound:
            return
        kept = checkpoints(Path(str(self.args.output_dir)))
        last = (
            f"the last good checkpoint is {str(kept[-1])!r}"
            if kept
            else "no checkpoint was written yet"
        )
        raise DivergedError(
            f"Training diverged: {what} is {loss:.4g} at a learning rate of "
            f"{self._get_learning_rate():.3g}; {last}: train again with a lower --lr."
        )

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The mean over all processes' samples of each solution's mean cross-entropy."""
        own, everyone = self._share(inputs["samples"], self.eval_dataset)
        total = torch.zeros((), device=self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            for group, counts in self._passes(own, inputs["samples"][0]):
                total += group.loss(self._packed(model, group)) * counts
        return self.accelerator.reduce(total, "sum") / everyone, None, None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As ever, and keep the loss for the checkpoint that follows.

        Raises:
            DivergedError: the loss says so; nothing is saved of it.
        """
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.validation_loss = metrics["eval_loss"]
        step = self.state.global_step
        self._check(self.validation_loss, f"the validation loss after step {step}")
        return metrics

    def info(self) -> FinetuneInfo:
        """What a checkpoint of now says of itself."""
        epoch = float(self.state.epoch or 0.0)
        return self._describe(self.state.global_step, epoch, self.counts, self.validation_loss)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside the earlier ones, which go only once it is whole.

        Its ``finetune.json`` is written last and marks it as whole.
        """
        root = Path(str(self.args.output_dir))
        folder = root / f"checkpoint-{self.state.global_step}"
        # nothing resumes from the last one, so its optimizer state need not be written
        self.args.save_only_model = self.state.global_step >= self.state.max_steps
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                write_info(folder, self.info())
        except SAVING_ERRORS as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise cannot_save(folder, error) from error
        if self.args.should_save:
            kept = (folder, best_checkpoint(self.state, root))
            for other in checkpoints(root):
                if other not in kept:
                    shutil.rmtree(other)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights, and no arguments object that would have to be unpickled."""
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = self.accelerator.unwrap_model(self.model)
        export(model, self.settings, folder, self.info().model, state_dict)
        if isinstance(self.settings, FullSettings):
            self._tokenizer.save_pretrained(folder)
        else:
            write_trained(model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if isinstance(self.settings, FullSettings):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            whole: Any = self.model
            read_trained(whole, Path(resume_from_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As ever, but a tied weight is saved once, and its other name is not missing."""
        whole: Any = self.model
        tied = whole._tied_weights_keys or {}
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def has_stopped(state: Any, patience: int | None) -> bool:
    """Whether so many validations up to a ``TrainerState`` have not lowered the loss."""
    if patience is None:
        return False
    since: int = state.global_step - (state.best_global_step or 0)
    return since >= patience * int(state.eval_steps)


class EarlyStop(TrainerCallback):
    """Stops once so many validations have not lowered the loss; each one is saved."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has compared the validation loss with the best one before it saves."""
        control.should_training_stop |= has_stopped(state, self._patience)


class ShowSteps(TrainerCallback):
    """Shows step, losses, tokens/s and the time left."""

    def __init__(self, progress: StepProgress) -> None:
        self.trainer: SolutionTrainer | None = None
        """Set once it is made."""
        self._progress = progress
        self._began = time.monotonic()
        self._first_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to show."""
        assert self.trainer is not None
        self._began, self._first_tokens = time.monotonic(), self.trainer.counts.tokens
        self._progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show one step more."""
        trainer = self.trainer
        assert trainer is not None
        taken = max(time.monotonic() - self._began, 1e-9)
        rate = (trainer.counts.tokens - self._first_tokens) / taken
        self._progress.validation = trainer.validation_loss
        self._progress.stepped(state.global_step, trainer.last_loss, f"{rate:,.0f} tokens/s")
