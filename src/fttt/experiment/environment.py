"""What a run ran on: versions, device, dtype, git."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fttt.experiment.adapters import network_fingerprint
from fttt.methods import Method, MethodSettings
from fttt.models import LoadedModel

__all__ = ["describe_environment"]

_PACKAGES = ("fttt", "torch", "transformers", "tokenizers", "numpy")


def describe_environment(loaded: LoadedModel, method: Method) -> dict[str, Any]:
    """The content of ``environment.json``."""
    network = network_fingerprint(getattr(method, "settings", MethodSettings()))
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": loaded.device,
        "device_name": _device_name(loaded.device),
        "dtype": loaded.dtype,
        "model": loaded.name,
        **({} if loaded.adapter is None else {"adapter": dict(loaded.adapter)}),
        **({} if network is None else {"network": network}),
        "git": _commit(),
        "decided_by": method.decided_by,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, ``None`` for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            # without optional locks: a look at the checkout must not write to it
            ["git", "--no-optional-locks", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
