"""What the questions of one run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fttt.config import BudgetSection, SamplingSection
from fttt.engine.request import AdapterSpec, Engine
from fttt.methods import Method
from fttt.models.chat import ChatFormat
from fttt.store import Journal
from fttt.types import Trial
from fttt.verifiers.verifier import Verifier

__all__ = ["Bench", "Observer"]


class Observer(Protocol):
    """Somebody who watches a run."""

    def trial_ended(self, trial: Trial) -> None:
        """A trial ended in this process."""

    def question_ended(self, *, solved: bool, spared: int) -> None:
        """A question's method returned; ``spared`` trials of its budget were not needed."""


@dataclass(frozen=True)
class Bench:
    """What the questions of one run share."""

    engine: Engine
    chat: ChatFormat
    stop_ids: tuple[int, ...]
    verifier: Verifier
    journal: Journal
    observer: Observer
    seed: int
    sampling: SamplingSection
    budget: BudgetSection
    adapter_spec: AdapterSpec | None
    method: Method
    """What it says of itself counts: see :class:`fttt.methods.Method`."""
