"""The processes of one training, started by ``accelerate launch`` or ``torchrun``, or just one.

Every process reads the same data and takes its share of each window; what they find is added up,
so the result is that of one process but for the rounding of sums. Only the main one writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fttt.errors import UsageError
from fttt.models import pick_device

__all__ = ["Processes"]

RUNS = "logs"
"""The trackers' folder in a training folder."""


class Processes:
    """What ``accelerate`` knows of this process and the others, and its trackers."""

    def __init__(self, device: str, tracker: str, folder: Path) -> None:
        """Join the other processes.

        Args:
            device: ``cpu`` keeps to the CPU, and so does ``auto`` without a GPU; with several
                processes and ``cuda``, each has the GPU of its number.
            tracker: a name that ``accelerate`` knows, or ``none``.
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
        # where that is not said of a machine without a GPU, each process would be the only one
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
        """Processes on this computer, as ``torchrun`` and ``accelerate`` tell."""
        self.main = self._accelerator.is_main_process
        self.device = device
        if self.count > 1 and device in {"auto", "cuda"}:
            self.device = str(self._accelerator.device)

    def track(self, settings: Mapping[str, Any]) -> None:
        """Begin the trackers' run with the settings; values that are no numbers go as texts."""
        if self._tracked:
            plain = {
                key: value if isinstance(value, int | float | str) else str(value)
                for key, value in settings.items()
            }
            self._accelerator.init_trackers(RUNS, config=plain)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand values to the trackers; the main process does."""
        if self._tracked:
            self._accelerator.log(dict(values), step=step)

    def sum(self, values: Tensor) -> Tensor:
        """Added up over the processes."""
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
        """Until every process is here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the trackers' run and leave the other processes."""
        self._accelerator.end_training()
