"""OpTune's training loop over windows of attempts (arXiv 2502.15771, section 4).

All random numbers are drawn from keys that name the seed and the purpose: the order by epoch,
dropout by step and example. So a killed training resumes from its checkpoint as if it had never
stopped, and the number of processes does not matter: each reads the same data and takes its share
of every window, and sums over the processes are those of one process but for rounding.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fttt.config import to_toml
from fttt.config.training_configs import OpTuneConfig
from fttt.engine.free_memory import free_bytes
from fttt.engine.ops import current_device
from fttt.engine.selfcheck import check_outputs
from fttt.engine.sequences import prepared
from fttt.errors import DivergedError, RunError, UsageError
from fttt.files import begin_folder, held_folder
from fttt.models import LoadedModel, load_model, pick_device
from fttt.optune.attempts import AttemptExample, attempt_examples, in_windows, with_ablation
from fttt.optune.checkpoint import (
    OpTuneInfo,
    TrainingState,
    load_checkpoint,
    load_training,
    write_checkpoint,
)
from fttt.optune.gradient import GradientRunner
from fttt.optune.network import OpTuneNetwork
from fttt.optune.optune_plan import CONFIG, OpTunePlan
from fttt.progress import StepProgress
from fttt.trackers import LOGS, plain_values
from fttt.training import gold_examples, held_out

__all__ = [
    "Examples",
    "OpTuneTrainer",
    "ProcessGroup",
    "TrainingResult",
    "prepare_examples",
    "train",
]


@dataclass(frozen=True)
class Examples:
    """Training and validation examples."""

    training: list[AttemptExample]
    validation: list[AttemptExample]
    """One attempt at each held-out question."""
    too_long: int


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training."""

    step: int
    skipped: int
    """Examples left out because their loss or gradient was not finite."""
    base_loss: float | None
    """Validation loss of the unchanged model."""
    validation: dict[int, float]
    """Validation loss by step, since the training was last resumed."""
    shuffled_loss: float | None
    """Validation loss at the end where each question gets the attempt of another: as low as the
    ordinary one where the network does not use the attempt."""
    examples_per_second: float


def train(plan: OpTunePlan, folder: Path, *, resume: bool = False) -> TrainingResult:
    """Train a network in ``folder``, which one training at a time may use.

    Args:
        plan: the settings, checked.
        folder: new or empty; with ``resume``, the folder of an earlier training.
        resume: start from the newest checkpoint in ``folder``.

    Raises:
        UsageError: the folder is not empty, another process trains in it, or the engine cannot
            reproduce the model's outputs.
        RunError: see :meth:`OpTuneTrainer.run`.
    """
    config = plan.config
    processes = ProcessGroup(config.device, config.tracker, folder)
    if processes.main and not resume:  # another process may look when this one has begun
        begin_folder(folder, "fttt optune train --resume")
    with held_folder(folder) if processes.main else nullcontext():
        loaded = load_model(plan.model, dtype=config.dtype, device=processes.device)
        progress = StepProgress("optune", shown=processes.main)
        trainer = OpTuneTrainer(plan, loaded, folder, processes, progress)
        if processes.main and not resume:  # only now are all checks passed
            text = f"# fttt optune train --recipe {CONFIG}\n" + to_toml(config)
            (folder / CONFIG).write_text(text, encoding="utf-8")
        return trainer.run()


def prepare_examples(plan: OpTunePlan, loaded: LoadedModel) -> Examples:
    """Turn the plan's attempts into examples, and hold out some questions for validation.

    Raises:
        UsageError: no example is left.
    """
    config = plan.config
    chat = loaded.chat.with_arguments(plan.attempts.config.get("template_args", {}))
    golds = {gold.question_id: gold for gold in gold_examples(plan.questions, chat)}
    examples, too_long = attempt_examples(
        plan.attempts, golds, chat,
        feedback=config.feedback, attempts=config.attempts, max_attempts=config.max_attempts,
        max_length=min(config.max_length, loaded.max_context),
    )  # fmt: skip
    examples = with_ablation(examples, config.ablation)
    kept = held_out([e.gold.question_id for e in examples], config.held_out, config.seed)
    first = {e.gold.question_id: e for e in reversed(examples) if e.gold.question_id in kept}
    training = [e for e in examples if e.gold.question_id not in kept]
    return Examples(training, [first[q] for q in sorted(first)], too_long)


class OpTuneTrainer:
    """One training, from its first step or from a checkpoint."""

    def __init__(
        self,
        plan: OpTunePlan,
        loaded: LoadedModel,
        folder: Path,
        processes: ProcessGroup,
        progress: StepProgress,
    ) -> None:
        """Make the network and its optimizer, or read them from ``folder``'s newest checkpoint.

        Raises:
            UsageError: the engine cannot reproduce the model's outputs.
        """
        check_outputs(loaded.model, loaded.name)
        config = plan.config
        self.plan, self.loaded, self.folder = plan, loaded, folder
        self.processes, self.progress = processes, progress
        self.examples = prepare_examples(plan, loaded)
        self.step = self.skipped = 0
        self.base_loss: float | None = None
        self.shuffled_loss: float | None = None
        self.validation: dict[int, float] = {}
        going_on = any(folder.glob("step-*"))
        if going_on:
            self.network = load_checkpoint(folder, loaded.device).network
        else:
            self.network = OpTuneNetwork(
                plan.layers, rank=config.rank, dropout=config.dropout, alpha=config.alpha,
                seed=config.seed,
            ).to(loaded.device)  # fmt: skip
        self.runner = GradientRunner(
            loaded.model, self.network, config.batch_tokens, self._reusable_bytes()
        )
        self.optimizer = torch.optim.AdamW(
            self.runner.parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        if going_on:
            self._restore(load_training(folder))
        per_epoch = math.ceil(len(self.examples.training) / config.window)
        whole = per_epoch * plan.epochs
        self.total = whole if config.max_steps is None else min(whole, config.max_steps)

    def run(self) -> TrainingResult:
        """Train to the last step; checkpoints are written on the way.

        Raises:
            RunError: a checkpoint could not be written, the device ran out of memory, or a whole
                window was not finite.
        """
        self._greet()
        seconds, seen = 0.0, 0
        try:
            with (
                current_device(self.loaded.device),
                prepared(self.loaded.model),
                closing(self.progress.begin(self.step, self.total)),
            ):
                if self.step == 0:
                    self._begin()
                windows = in_windows(
                    self.examples.training,
                    self.plan.config.window,
                    self.plan.config.seed,
                    self.step,
                )
                for window in islice(windows, max(0, self.total - self.step)):
                    start = time.perf_counter()
                    loss, norm = self._learn(window)
                    seconds += time.perf_counter() - start
                    seen += len(window)
                    self._report(loss, norm, seen / seconds)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"{self.loaded.device} ran out of memory; resume with --batch-tokens lower than "
                f"{self.plan.config.batch_tokens}, which changes no result."
            ) from error
        finally:
            self.processes.close()
        rate = seen / seconds if seconds else 0.0
        return TrainingResult(
            self.step, self.skipped, self.base_loss, self.validation, self.shuffled_loss, rate
        )

    def _reusable_bytes(self) -> int:
        """Host memory for reuse of hidden states: with a GPU, a share of the free memory.

        On a CPU nothing, so that a resumed training repeats the very same numbers:
        what is reused was computed in another batch, and so rounded in another way.
        """
        if self.loaded.device.startswith("cpu"):
            return 0
        return free_bytes(torch.device("cpu")) // (4 * self.processes.local_count)

    def _greet(self) -> None:
        shared, steps = self.network.count_parameters()
        examples = self.examples
        self.progress.say(
            f"{shared:,} + {steps} parameters; {len(examples.training):,} attempts to learn from; "
            f"held-out questions: {len(examples.validation):,}; attempts too long: "
            f"{examples.too_long:,}; {self.total:,} steps on {self.processes.count} x "
            f"{self.loaded.device}"
        )
        if not self.plan.attempts.finished:
            self.progress.say("the attempts' run has not ended; what it holds so far is used")
        self.processes.track(self.plan.config.to_toml())

    def _begin(self) -> None:
        """Set the constant input and take the first validation losses, before the first step."""
        if self.plan.config.ablation == "constant-input":
            parts = self.runner.record(self.examples.training[:1])
            if not parts:
                raise UsageError(
                    f"The attempt {self.examples.training[0].key!r}, which --constant-input gives "
                    "every question, has a gradient that is not finite; leave its question out."
                )
            self.network.constant = parts[0].factors
        if self.examples.validation:
            self.base_loss = self._validation_loss(self.examples.validation, change=False)
            self.progress.say(f"validation loss of the unchanged model {self.base_loss:.4f}")
            self._validate()

    def _learn(self, window: Sequence[AttemptExample]) -> tuple[float, float]:
        """One optimizer step; returns the window's loss and the norm of its gradient."""
        config, processes = self.plan.config, self.processes
        parts = self.runner.record(window[processes.rank :: processes.count])
        for summary in processes.gather(self.network.summarize(p.factors for p in parts)):
            self.network.observe(summary)
        sums = self.runner.gradient(parts, config.seed, self.step)
        counted = torch.stack([sums.loss, sums.loss.new_tensor(sums.examples)])
        whole = processes.sum(torch.cat([sums.gradient_P, counted]))
        used = int(whole[-1])
        self.skipped += len(window) - used
        if not used:
            raise DivergedError(
                f"Training diverged: no example of step {self.step + 1} has a finite loss and "
                f"gradient at a learning rate of {config.lr:g}; the checkpoints in "
                f"{str(self.folder)!r} are from before, so train again with a lower --lr."
            )
        norm = self._update(whole[:-2] / used)
        self.step += 1
        return float(whole[-2]) / used, norm

    def _update(self, gradient_P: Tensor) -> float:
        """One step of AdamW on the window's mean gradient."""
        config, parameters = self.plan.config, self.runner.parameters
        norm = gradient_P.norm()
        if config.clip is not None:
            gradient_P = gradient_P * (config.clip / norm.clamp(min=config.clip))
        for parameter, part in zip(
            parameters, gradient_P.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = part.view_as(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def _report(self, loss: float, norm: float, rate: float) -> None:
        config, last = self.plan.config, self.step == self.total
        self.processes.log(
            {
                "train/loss": loss,
                "train/gradient_norm": norm,
                "train/lr": self.optimizer.param_groups[0]["lr"],
                "train/skipped": self.skipped,
                "train/examples_per_second": rate,
                "train/alpha": float(self.network.alpha_L.detach().mean()),
            },
            self.step,
        )
        self.progress.stepped(self.step, loss, f"{rate:.1f} examples/s")
        if self.examples.validation and (last or self.step % config.validate_every == 0):
            self._validate()
        if last and config.ablation == "none" and len(self.examples.validation) > 1:
            others = with_ablation(self.examples.validation, "shuffle-attempts")
            self.shuffled_loss = self._validation_loss(others)
            self.processes.log({"validation/loss_shuffled": self.shuffled_loss}, self.step)
        if last or self.step % config.checkpoint_every == 0:
            self._save()

    def _validate(self) -> None:
        loss = self._validation_loss(self.examples.validation)
        self.validation[self.step] = loss
        self.progress.validation = loss
        self.progress.say(f"step {self.step:,}/{self.total:,} · validation loss {loss:.4f}")
        self.processes.log({"validation/loss": loss}, self.step)

    def _validation_loss(self, examples: Sequence[AttemptExample], *, change: bool = True) -> float:
        """Mean over the examples, without dropout."""
        mine = examples[self.processes.rank :: self.processes.count]
        sums = self.runner.losses(self.runner.record(mine), change=change)
        loss, used = self.processes.sum(
            torch.stack([sums.loss, sums.loss.new_tensor(sums.examples)])
        ).tolist()
        return loss / used if used else math.nan

    def _save(self) -> None:
        if self.processes.main:
            write_checkpoint(self.folder, self.info(), self.network, self._state())
        self.processes.wait()

    def info(self) -> OpTuneInfo:
        """The metadata of a checkpoint written now."""
        plan, config = self.plan, self.plan.config
        return OpTuneInfo(
            model=plan.model, task=plan.task, layers=plan.layers, rank=config.rank,
            dropout=config.dropout, feedback=config.feedback, step=self.step,
            parameters=sum(self.network.count_parameters()), ablation=config.ablation,
            validation_loss=self.validation.get(self.step), settings=config.to_toml(),
        )  # fmt: skip

    def _state(self) -> TrainingState:
        tensors = {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        numbers = {"step": self.step, "skipped": self.skipped, "base_loss": self.base_loss}
        return TrainingState(numbers, tensors)

    def _restore(self, state: TrainingState) -> None:
        self.step, self.skipped = int(state.numbers["step"]), int(state.numbers["skipped"])
        self.base_loss = state.numbers["base_loss"]
        moments: dict[int, dict[str, Any]] = {}
        for key, value in state.tensors.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def learning_rate(config: OpTuneConfig, step: int, total: int) -> float:
    """The learning rate of a step: a linear warm-up, then constant or a cosine."""
    rising = round(config.warmup * total)
    if step < rising:
        return config.lr * (step + 1) / rising
    if config.schedule == "constant":
        return config.lr
    done = (step - rising) / max(1, total - rising)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


class ProcessGroup:
    """The processes of one training, through ``accelerate``, and its trackers.

    They are started by ``accelerate launch`` or ``torchrun``; without these there is one.
    """

    def __init__(self, device: str, tracker: str, folder: Path) -> None:
        """Join the other processes.

        Args:
            device: ``cpu``, or ``auto`` without a GPU, uses the CPU; with several processes and
                ``cuda``, each uses the GPU of its number.
            tracker: a tracker of ``accelerate``, or ``none``.
            folder: the training folder, for trackers that write files.

        Raises:
            UsageError: there is no such device, or it is one GPU for several processes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and device.startswith("cuda:"):
            raise UsageError(
                f"--device {device} names one GPU for several processes; use --device cuda, which "
                "gives each process its own, and choose GPUs by CUDA_VISIBLE_DEVICES."
            )
        accelerate: Any = import_module("accelerate")
        # without this, each process on a machine without a GPU would think that it is the only one
        cpu = pick_device(device).type == "cpu"
        self._accelerator = accelerate.Accelerator(
            cpu=cpu,
            log_with=None if tracker == "none" else tracker,
            project_dir=str(folder),
        )
        self._tracked = tracker != "none"
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        """Processes on this computer, as ``torchrun`` and ``accelerate`` set it."""
        self.main = self._accelerator.is_main_process
        self.device = device
        if self.count > 1 and device in {"auto", "cuda"}:
            self.device = str(self._accelerator.device)

    def track(self, settings: Mapping[str, Any]) -> None:
        """Start the trackers' run with the settings; values other than numbers become texts."""
        if self._tracked:
            self._accelerator.init_trackers(LOGS, config=plain_values(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values to the trackers, in the main process."""
        if self._tracked:
            self._accelerator.log(dict(values), step=step)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count == 1:
            return values
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def gather(self, values: Tensor) -> Tensor:
        """Every process's values, ``[P, ...]``, by the processes' numbers."""
        if self.count == 1:
            return values[None]
        return torch.as_tensor(self._accelerator.gather(values[None]))

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the trackers' run and leave the other processes."""
        self._accelerator.end_training()
