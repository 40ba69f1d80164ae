"""OpTune: a trained network predicts each update of the weights (arXiv 2502.15771, section 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from fttt.errors import UsageError
from fttt.methods.base import Method, MethodSettings, Session
from fttt.types import Example, Question, user

if TYPE_CHECKING:
    from fttt.engine.adapters.delta import Delta, Factors
    from fttt.engine.request import AdapterSpec
    from fttt.optune import OpTuneInfo
    from fttt.optune.network import OpTuneNetwork

__all__ = ["OpTune", "OpTuneSettings"]


def _absolute(name: str) -> str:
    """The name; from the root where it is a folder here, so that a run can be resumed elsewhere."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name


class OpTuneSettings(MethodSettings):
    """Settings of ``optune``."""

    checkpoint: Annotated[str, AfterValidator(_absolute)] = Field(
        min_length=1,
        description="the trained network: a folder of `fttt optune train`, or owner/name",
    )
    schedule: Literal["alternate", "accumulate"] = Field(
        "alternate",
        description="alternate: every other trial runs the base model, and the next one the change "
        "that is predicted from it; accumulate: every wrong trial adds a change",
    )
    feedback: str | None = Field(
        None, description="the user's turn after a wrong answer: the one of the network's training"
    )

    @property
    def _folder(self) -> Path:
        """The folder of one checkpoint, downloaded where it is a hub's."""
        from fttt.optune.checkpoint import fetch

        return fetch(self.checkpoint).resolve()

    @property
    def _info(self) -> OpTuneInfo:
        from fttt.optune import read_info

        return read_info(self._folder)

    @property
    def base_model(self) -> str | None:
        """The model that the network was trained for."""
        return self._info.model

    def settled(self) -> Self:
        """The settings with the network's very folder and its feedback.

        A folder of several checkpoints stands for its newest, once and for all: a resumed run uses
        the network that it began with.

        Raises:
            UsageError: there is no such network, or it was trained with another feedback.
        """
        feedback = self._info.feedback
        if self.feedback not in (None, feedback):
            raise UsageError(
                f"The network in {str(self._folder)!r} was trained with the feedback {feedback!r} "
                f"and knows no other, so feedback cannot be {self.feedback!r}; leave that setting "
                "away."
            )
        return self.model_copy(update={"checkpoint": str(self._folder), "feedback": feedback})

    def check_model(self, model: Any) -> None:
        """Refuse a model that lacks the weights that the network changes.

        Raises:
            UsageError: a weight is missing or has another shape; both shapes are named. Or the name
                is that of another model: shapes alone tell few models of one size apart.
        """
        from fttt.models.loader import model_outline
        from fttt.models.locate import same_model
        from fttt.optune.checkpoint import check_layers

        info, named = self._info, isinstance(model, str)
        check_layers(info.layers, model_outline(model) if named else model, info.model)
        if named and not same_model(info.model, model):
            raise UsageError(
                f"The checkpoint {self.checkpoint!r} was trained on {info.model!r} and cannot be "
                f"used with {model!r}; give --model {info.model}, or train one for this model."
            )

    def fingerprint(self) -> str | None:
        """SHA-256 of the network."""
        from fttt.optune.checkpoint import NETWORK

        return hashlib.sha256((self._folder / NETWORK).read_bytes()).hexdigest()

    def adapter(self) -> AdapterSpec | None:
        """A change of the edited weights, predicted by the network."""
        from fttt.engine.request import WeightDeltaSpec

        folder = self.checkpoint

        def predict(factors: Factors) -> Mapping[str, Delta]:
            return _network(folder, str(factors.segment_N.device)).changes(factors)

        layers = tuple(layer.name for layer in self._info.layers)
        return WeightDeltaSpec(layers, predict, self.schedule == "accumulate", folder)


@lru_cache(maxsize=1)
def _network(folder: str, device: str) -> OpTuneNetwork:
    from fttt.optune.checkpoint import load_checkpoint

    return load_checkpoint(folder, device).network


class OpTune(Method):
    """Answer under a change of the weights that is predicted from the factors of an attempt.

    The loss is that of question, attempt and feedback together, as in the network's training.
    """

    name = "optune"
    summary = "after a wrong trial a trained network predicts how to change a few weights"
    Settings = OpTuneSettings

    def __init__(self, settings: OpTuneSettings) -> None:
        self.settings = settings

    async def solve(self, question: Question, session: Session) -> None:
        feedback = self.settings.feedback
        assert feedback is not None, "the checkpoint says what it is"
        alternate = self.settings.schedule == "alternate"
        async with session.adapter() as adapter:
            async for trial in session.trials():
                base = alternate and trial.index % 2 == 0
                attempt = await trial.generate(adapter=None if base else adapter)
                verdict = await trial.verify(attempt)
                if verdict.correct or trial.last:
                    return
                if base or not alternate:
                    said = Example(user(feedback), after=(attempt,), whole=True)
                    await trial.train(adapter, [said])
