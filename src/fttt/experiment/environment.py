"""What a run ran on: versions, device, dtype, git."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fttt.experiment.plan import Settled
from fttt.models import ReadyModel, ServedModel
from fttt.models.locate import model_content

__all__ = ["code_fingerprint", "describe_environment", "package_versions"]

_PACKAGES = ("fttt", "torch", "transformers", "tokenizers", "numpy", "bitsandbytes")


def describe_environment(loaded: ReadyModel, settled: Settled) -> dict[str, Any]:
    """The content of ``environment.json``."""
    network = settled.settings.fingerprint()
    judges = getattr(settled.task, "judges", [])
    content = model_content(settled.config.model)
    return {
        "versions": {"python": platform.python_version(), **package_versions()},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": loaded.device,
        "device_name": _device_name(loaded),
        "dtype": loaded.dtype,
        **({} if loaded.quantized is None else {"quantized": loaded.quantized}),
        "model": loaded.name,
        **({"endpoint": loaded.facts()} if isinstance(loaded, ServedModel) else {}),
        **({} if content is None else {"model_content": content}),
        **({} if loaded.adapter is None else {"adapter": dict(loaded.adapter)}),
        **({} if network is None else {"network": network}),
        **({"judges": judges} if judges else {}),
        "git": _commit(),
        "decided_by": settled.method.decided_by,
        "model_sampling": _sampling(loaded),
    }


def _sampling(loaded: ReadyModel) -> dict[str, float]:
    """How the model's authors sample, where its generation settings say so; nothing applies it."""
    model = None if isinstance(loaded, ServedModel) else loaded.model
    settings: Any = getattr(model, "generation_config", None)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    found = {name: getattr(settings, name, None) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def package_versions() -> dict[str, str]:
    """Versions of what results depend on, as installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_fingerprint() -> str:
    """Twelve hexadecimal digits of the SHA-256 of this package's modules, in their order."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _device_name(loaded: ReadyModel) -> str | None:
    if isinstance(loaded, ServedModel):
        return None  # it says nothing of its machine
    if loaded.device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(loaded.device)
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
