"""What a method's settings ask the engine to hold for each question, and the network they name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fttt.errors import UsageError
from fttt.methods import LoRASettings, MethodSettings
from fttt.methods.optune import OpTuneSettings

if TYPE_CHECKING:
    from fttt.engine.factors import Delta, Factors
    from fttt.engine.request import AdapterSpec
    from fttt.optune import OpTuneInfo
    from fttt.optune.network import OpTuneNetwork

__all__ = ["adapter_spec", "check_edits", "made_for", "network_fingerprint", "with_network"]


def adapter_spec(settings: MethodSettings) -> AdapterSpec | None:
    """The adapter that a method's settings ask for; ``None`` for a method that does not train."""
    from fttt.engine.request import LoRASpec, WeightDeltaSpec

    if isinstance(settings, OpTuneSettings):
        folder = settings.checkpoint

        def predict(factors: Factors) -> Mapping[str, Delta]:
            return _network(folder, str(factors.segment_N.device)).changes(factors)

        layers = tuple(layer.name for layer in _info(settings).layers)
        return WeightDeltaSpec(layers, predict, settings.schedule == "accumulate", folder)
    if not isinstance(settings, LoRASettings):
        return None
    return LoRASpec(
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
    )


def with_network(settings: MethodSettings) -> MethodSettings:
    """The settings with what their trained network fixes: its very folder, and its feedback.

    A folder of several checkpoints stands for its newest, once and for all: a run that is resumed
    goes on with the network that it began with.

    Raises:
        UsageError: there is no such network, or it was trained with another feedback.
    """
    if not isinstance(settings, OpTuneSettings):
        return settings
    folder = _folder(settings.checkpoint)
    settings = settings.model_copy(update={"checkpoint": str(folder)})
    feedback = _info(settings).feedback
    if settings.feedback not in (None, feedback):
        raise UsageError(
            f"The network in {str(folder)!r} was trained with the feedback {feedback!r} and knows "
            f"no other, so feedback cannot be {settings.feedback!r}; leave that setting away."
        )
    return settings.model_copy(update={"feedback": feedback})


def made_for(settings: MethodSettings) -> str | None:
    """The model that the settings' network was trained for, if they name one."""
    return _info(settings).model if isinstance(settings, OpTuneSettings) else None


def network_fingerprint(settings: MethodSettings) -> str | None:
    """SHA-256 of the settings' network, if they name one."""
    if not isinstance(settings, OpTuneSettings):
        return None
    from fttt.optune.checkpoint import NETWORK

    return hashlib.sha256((_folder(settings.checkpoint) / NETWORK).read_bytes()).hexdigest()


def check_edits(settings: MethodSettings, model: Any) -> None:
    """Refuse a model that lacks the weights that the settings' network changes.

    Args:
        model: a model, or the name of one, whose weights are then not loaded.

    Raises:
        UsageError: a weight is missing or has another shape; both shapes are named. Or the name is
            that of another model: shapes alone tell few models of one size apart.
    """
    if not isinstance(settings, OpTuneSettings):
        return
    from fttt.models.loader import model_outline
    from fttt.models.locate import same_model
    from fttt.optune.edited_layers import check_layers

    info = _info(settings)
    check_layers(info.layers, model_outline(model) if isinstance(model, str) else model, info.model)
    if isinstance(model, str) and not same_model(info.model, model):
        raise UsageError(
            f"The checkpoint {settings.checkpoint!r} was trained on {info.model!r} and cannot be "
            f"used with {model!r}; give --model {info.model}, or train one for this model."
        )


def _info(settings: OpTuneSettings) -> OpTuneInfo:
    from fttt.optune.checkpoint import read_info

    return read_info(_folder(settings.checkpoint))


def _folder(source: str) -> Path:
    """The folder of one checkpoint, downloaded where it is a hub's."""
    from fttt.optune.checkpoint import fetch

    return fetch(source).resolve()


@lru_cache(maxsize=1)
def _network(folder: str, device: str) -> OpTuneNetwork:
    from fttt.optune.checkpoint import load_checkpoint

    return load_checkpoint(folder, device).network
