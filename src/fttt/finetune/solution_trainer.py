"""The trainer of ``transformers``, fed with whole optimizer steps.

``transformers.Trainer`` keeps the schedule, the optimizer, checkpoints, resuming, validation and
distribution over devices. One batch of its loader is one whole step, so its gradient accumulation
is not used: :meth:`SolutionTrainer.training_step` runs the batch in groups
(:mod:`fttt.finetune.packing`), and the loss is exact whatever the groups are. The loss of a step is
the mean over its samples of each solution's mean cross-entropy over its tokens, the last token that
ends the answer included.

A GPU works while the host prepares what comes next: the figures of a step are read when the next
one has been launched (:data:`LATE`), and before anything is written or validated.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState

from fttt.config.run_config import Section
from fttt.config.training_configs import FullSettings
from fttt.errors import DivergedError
from fttt.finetune.captured_step import CapturedSteps, captures_steps
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
"""Errors by which a full disk shows; torch raises a RuntimeError."""

LATE = {"cuda": 1}
"""Steps that are launched before the figures of a step are read, by the kind of device. To read
them at once would leave a GPU idle until the host had launched the next step."""


@dataclass
class Counts:
    """The cost of a training so far, over all processes."""

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    """Before the last resume; this process counts from ``since``."""
    since: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.since


@dataclass(frozen=True)
class _StepReport:
    """A step's figures, on their way from the device."""

    state: TrainerState
    """As it was after the step."""
    rate: float
    """The learning rate of its update."""
    figures: Tensor
    """The loss and the gradients' norm, in the host's memory once they are ``there``."""
    there: torch.cuda.Event | None

    @classmethod
    def of(cls, state: TrainerState, rate: float, loss: Tensor, norm: Any) -> _StepReport:
        """Send them to the host, which goes on meanwhile."""
        if hasattr(norm, "full_tensor"):  # FSDP's, of which each process holds a part
            norm = norm.full_tensor()
        norm = torch.as_tensor(norm, dtype=loss.dtype, device=loss.device)
        figures = torch.stack([loss, norm]).to("cpu", non_blocking=True)
        there = torch.cuda.Event() if loss.is_cuda else None
        if there is not None:
            there.record()
        return cls(copy(state), rate, figures, there)

    def read(self) -> tuple[float, float]:
        """The loss and the gradients' norm, as soon as they are there."""
        if self.there is not None:
            self.there.synchronize()
        loss, norm = self.figures.tolist()
        return loss, norm


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, by step."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{INFO_FILE}")]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def best_checkpoint(state: TrainerState, folder: Path) -> Path | None:
    """The checkpoint in ``folder`` with the lowest validation loss, if the trainer records it.

    The state names it by a path that may have been relative, or moved since.
    """
    best = state.best_model_checkpoint
    return None if best is None else folder / Path(best).name


class SolutionTrainer(Trainer):
    """:class:`transformers.Trainer` on gold solutions, in packed passes."""

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
        """Set up as :class:`transformers.Trainer`, whose arguments are taken too.

        Args:
            settings: the method's.
            describe: makes a checkpoint's metadata of step, epoch, counts and validation loss.
            counts: zero, or those of the checkpoint to resume from.
            batch_tokens: tokens of one pass.
            tokenizer: saved with a whole model.
            train_dataset: the training examples.
            eval_dataset: the examples of the validation loss; may be empty.
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
        self._taken: tuple[Tensor, float] | None = None
        self._reports: deque[_StepReport] = deque()
        self._late = LATE.get(self.args.device.type, 0)
        self._describe = describe
        self._batch_tokens = batch_tokens
        self._tokenizer = tokenizer
        whole: Any = self.model
        half = torch.bfloat16 if self.args.bf16 else None
        # FSDP replaces the weights that fused kernels would hold
        self._packed = PackedPasses(whole, dtype=half, fused=not self.is_fsdp_enabled)
        self._captured: CapturedSteps | None = None
        if captures_steps(whole, settings, self.args):
            self._captured = CapturedSteps(whole, self._packed, self.compute_loss_context_manager)
        self._bound = 2 * math.log(whole.config.get_text_config().vocab_size)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`transformers.Trainer.train` in packed passes."""
        whole: Any = self.model
        whole.train()
        with self._packed, self._captured.listed() if self._captured else nullcontext():
            return super().train(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Accumulate the gradient of one whole step, and return its loss over all processes."""
        whole: Any = self.model
        if not whole.training:  # after a validation; to tell each module takes milliseconds
            model.train()
        own, everyone = self._share(inputs["samples"], self.train_dataset)
        passes = self._passes(own, inputs["samples"][0])
        scale = self.args.world_size / everyone  # processes take the mean of their gradients
        total = torch.zeros((), device=self.args.device)
        if self._captured is not None:
            self._captured.begin()
        for i, (group, counts) in enumerate(passes):
            if self._captured is not None:
                found = self._captured.run(group, scale * counts)
                if found is not None:
                    total += found
                    continue
            waits = i + 1 < len(passes) and not self.is_fsdp_enabled
            with self.accelerator.no_sync(model) if waits else nullcontext():
                with self.compute_loss_context_manager():
                    logits_MV = self._packed(model, group)
                    loss = group.loss(logits_MV) * (scale * counts)
                del logits_MV
                self.accelerator.backward(loss)
            total += loss.detach()
        self._count(own)
        mean: Tensor = self.accelerator.reduce(total, "mean")
        self._taken = mean, self._get_learning_rate()
        return mean

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any
    ) -> None:
        """After a step or an epoch, report what is due, then validate and save if it is time.

        Raises:
            DivergedError: a loss is too high or not finite.
        """
        if self._taken is not None:
            loss, rate = self._taken
            self._reports.append(_StepReport.of(self.state, rate, loss, grad_norm))
            self._taken = None
        self._report(0 if self.control.should_training_stop else self._late)
        self.control.should_log = False  # the trainer's own log would wait for the device
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _report(self, later: int = 0) -> None:
        """Check and log the steps that were taken, except for the last ``later``."""
        while len(self._reports) > later:
            step = self._reports.popleft()
            loss, norm = step.read()
            number = step.state.global_step
            if number == 1 and math.isfinite(loss):
                self._bound = max(self._bound, 2 * loss)
            self._check(loss, f"the loss of step {number}", step.rate)
            now, self.state = self.state, step.state
            try:
                self.log({"loss": loss, "grad_norm": norm, "learning_rate": step.rate})
            finally:
                self.state = now

    def _share(self, samples: list[GoldExample], of: Any) -> tuple[list[GoldExample], int]:
        """This process's samples that count, and the number that count in all processes.

        Where the dataset ``of`` a pass does not divide evenly, the loader fills each process's last
        batch up with samples from the beginning. Those do not count; a process may have no others.
        """
        size = self.args.per_device_train_batch_size
        everyone = size * self.args.world_size
        if self.accelerator.gradient_state.end_of_dataloader:
            everyone = len(of) % everyone or everyone
        return samples[: max(everyone - self.args.process_index * size, 0)], everyone

    def _passes(self, own: list[GoldExample], other: GoldExample) -> list[tuple[SampleGroup, bool]]:
        """The groups of a batch, and whether they count.

        Every process runs at least one pass, and under FSDP as many as the others; where it has no
        more samples of its own, it runs ``other`` with a weight of zero.
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
        if self.args.world_size > 1:
            own = torch.tensor([both, solutions], device=self.args.device)
            both, solutions = self.accelerator.reduce(own, "sum").tolist()
        self.counts.tokens += both
        self.counts.trained_tokens += solutions

    def _check(self, loss: float, what: str, rate: float) -> None:
        """Refuse a loss above twice that of a uniform guess, ln V, or above twice the first."""
        if math.isfinite(loss) and loss <= self._bound:
            return
        kept = checkpoints(Path(str(self.args.output_dir)))
        last = (
            f"the last good checkpoint is {str(kept[-1])!r}"
            if kept
            else "no checkpoint was written yet"
        )
        raise DivergedError(
            f"Training diverged: {what} is {loss:.4g} at a learning rate of {rate:.3g}; {last}; "
            "train again with a lower --lr."
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
        """:meth:`transformers.Trainer.evaluate`; keeps the loss for the checkpoint that follows.

        Raises:
            DivergedError: the loss is too high or not finite; no checkpoint is written of it.
        """
        self._report()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.validation_loss = metrics["eval_loss"]
        step = self.state.global_step
        what = f"the validation loss after step {step}"
        self._check(self.validation_loss, what, self._get_learning_rate())
        return metrics

    def info(self) -> FinetuneInfo:
        """The metadata of a checkpoint written now."""
        epoch = float(self.state.epoch or 0.0)
        return self._describe(self.state.global_step, epoch, self.counts, self.validation_loss)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside the earlier ones, which are deleted once it is whole.

        Its ``finetune.json`` is written last and marks it as whole.

        Raises:
            DivergedError: the loss of a step that led to it is too high or not finite.
        """
        self._report()
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
            raise cannot_save(folder, error, earlier=bool(checkpoints(root))) from error
        if self.args.should_save:
            kept = (folder, best_checkpoint(self.state, root))
            for other in checkpoints(root):
                if other not in kept:
                    shutil.rmtree(other)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights without the trainer's pickled arguments."""
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
        """The same, except that the second name of a tied weight is not missing."""
        whole: Any = self.model
        tied = whole._tied_weights_keys or {}
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def has_stopped(state: Any, patience: int | None) -> bool:
    """Whether the last ``patience`` validations of a ``TrainerState`` did not lower the loss."""
    if patience is None:
        return False
    since: int = state.global_step - (state.best_global_step or 0)
    return since >= patience * int(state.eval_steps)


class EarlyStop(TrainerCallback):
    """Stops after ``patience`` validations without a lower loss; each one has a checkpoint."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if it is time; the trainer has compared the validation loss before it saves."""
        control.should_training_stop |= has_stopped(state, self._patience)


class ShowSteps(TrainerCallback):
    """Shows the step, the losses, tokens/s and the time left."""

    def __init__(self, trainer: SolutionTrainer, progress: StepProgress) -> None:
        self._trainer, self._progress = trainer, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._began, self._first_tokens = time.monotonic(), self._trainer.counts.tokens
        self._progress.begin(state.global_step, state.max_steps)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Show the state after a step; what else is logged has a loss of another name."""
        if logs is None or "loss" not in logs:
            return
        trainer = self._trainer
        taken = max(time.monotonic() - self._began, 1e-9)
        rate = (trainer.counts.tokens - self._first_tokens) / taken
        self._progress.validation = trainer.validation_loss
        self._progress.stepped(state.global_step, logs["loss"], f"{rate:,.0f} tokens/s")
