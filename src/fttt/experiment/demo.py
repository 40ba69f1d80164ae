"""The demo's sweep: the main job on the embedded default, in minutes on two processors."""

from __future__ import annotations

from fttt.config import build
from fttt.experiment.sweep import SweepConfig

__all__ = ["DEMO", "DEMO_QUESTIONS"]

DEMO_QUESTIONS = 32
DEMO_LR = 1e-4
"""Ten times the paper's: with it, eight trials of a few tokens leave the draws as they were."""

DEMO = build(
    SweepConfig,
    {
        "methods": ["greedy", "best-of-n", {"method": "fttt", "settings": {"lr": DEMO_LR}}],
        "tasks": ["arithmetic"],
        "hard_only": True,
        "base": {
            "model": "smollm2-135m",
            "save_correct_cases": False,
            "data": {"limit": DEMO_QUESTIONS},
            "budget": {"trials": 8},
            "sampling": {"max_new_tokens": 96},
        },
    },
    "the demo",
)
"""Greedy on :data:`DEMO_QUESTIONS` questions; the other two on those that it fails."""
