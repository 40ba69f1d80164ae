"""Independent samples from a fine-tuned checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from fttt.methods.base import MethodSettings
from fttt.methods.best_of_n import BestOfN

__all__ = ["Finetuned", "FinetunedSettings"]


def _absolute(path: Path) -> Path:
    """The path; from the root where it is a folder here, so that a run can be resumed elsewhere."""
    return path.absolute() if path.exists() else path


class FinetunedSettings(MethodSettings):
    """Settings of ``finetuned``."""

    checkpoint: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None, description="folder that `fttt finetune train` wrote (else that of --adapter)"
    )

    @property
    def starts_from(self) -> Path | None:
        """The checkpoint."""
        return self.checkpoint


class Finetuned(BestOfN):
    """Sample anew after each wrong answer, from weights that were trained before the test.

    The fine-tuning baselines of the papers: all that is spent on learning is spent on gold
    solutions, and the test is pass@N with an oracle, as for ``best-of-n``.
    """

    name = "finetuned"
    summary = "independent samples from a fine-tuned checkpoint (--checkpoint DIR)"
    Settings = FinetunedSettings
    needs_checkpoint = True

    def __init__(self, settings: FinetunedSettings) -> None:
        self.settings = settings
