"""Trackers of runs and trainings: TensorBoard, Weights & Biases and others, through ``accelerate``.

Nothing is imported, and nothing leaves the machine, where none is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fttt.errors import UsageError, first_line

__all__ = ["LOGS", "NO_TRACKER", "RunTracker", "check_tracker", "plain_values"]

NO_TRACKER = "none"
TRACKERS = {
    "tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "aim": "aim",
    "mlflow": "mlflow", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab",
    "trackio": "trackio",
}  # fmt: skip
"""The trackers of ``accelerate``, and the package that each of them needs."""
PROJECT = "fttt"
LOGS = "logs"
"""Folder of a tracker's files in a run or training folder."""
_NAMES = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
"""How a tracker's own argument for the name of a run is called."""


def check_tracker(name: str) -> None:
    """Refuse a tracker that does not exist or is not installed.

    Raises:
        UsageError: it is such.
    """
    if name == NO_TRACKER:
        return
    if name not in TRACKERS:
        raise UsageError(f"There is no tracker {name!r}; choose from none, {', '.join(TRACKERS)}.")
    for package in ("accelerate", TRACKERS[name]):
        if find_spec(package) is None:
            pip = "'fttt[train]'" if package in ("accelerate", "tensorboard") else package
            raise UsageError(
                f"The tracker {name!r} needs the package {package!r}, which is not installed; "
                f"run: pip install {pip}, or use --tracker none."
            )


def plain_values(settings: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Settings as every tracker takes them: nested names joined, all but numbers as texts."""
    found: dict[str, int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": v for name, v in plain_values(value).items()}
        else:
            found[key] = value if isinstance(value, int | float | str) else str(value)
    return found


class RunTracker:
    """One run in a tracker, which starts with its first figures."""

    def __init__(
        self, name: str, folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        """Take note of the run.

        Args:
            name: of the tracker, which :func:`check_tracker` has let pass; ``none`` logs nothing.
            folder: of the run; its name is the run's, and a tracker that writes files writes there.
            settings: of the run.
            say: is told, once, that the tracker failed.
        """
        self._name, self._folder, self._settings, self._say = name, folder, settings, say
        self._tracker: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log figures at a step; a tracker that fails is given up, and the run continues."""
        if self._name == NO_TRACKER:
            return
        try:
            if self._tracker is None:
                self._tracker = self._started()
            self._tracker.log(dict(values), step=step)
        except Exception as error:  # whatever its network, disk or log-in raises
            self._name = self._give_up(error)

    def close(self) -> None:
        """End the run, if it has begun."""
        try:
            if self._tracker is not None:
                self._tracker.finish()
        except Exception as error:
            self._give_up(error)
        self._tracker = None

    def _give_up(self, error: Exception) -> str:
        self._say(
            f"The tracker {self._name!r} failed ({first_line(error)}); the run continues without "
            "it, and everything is in its folder."
        )
        return NO_TRACKER

    def _started(self) -> Any:
        accelerate: Any = import_module("accelerate")
        accelerate.PartialState(cpu=True)  # its log needs one; a device is not its business here
        kind: Any = import_module("accelerate.tracking").LOGGER_TYPE_TO_CLASS[self._name]
        if kind.requires_logging_directory:
            tracker = kind(LOGS, logging_dir=str(self._folder))
        else:
            argument = _NAMES.get(self._name)
            tracker = kind(PROJECT, **({argument: self._folder.name} if argument else {}))
        tracker.main_process_only = False  # which would choose a device
        tracker.start()
        tracker.store_init_configuration(plain_values(self._settings))
        return tracker
