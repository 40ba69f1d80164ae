"""Typed settings, TOML recipes, and flags over file over defaults."""

from fttt.config.recipe import build, in_sections, key_values, merge, read_toml, resolve, to_toml
from fttt.config.run_config import (
    BudgetSection,
    DataSection,
    EngineSection,
    RunConfig,
    SamplingSection,
    field_help,
)
from fttt.config.training_configs import SETTINGS, FinetuneConfig

__all__ = [
    "SETTINGS",
    "BudgetSection",
    "DataSection",
    "EngineSection",
    "FinetuneConfig",
    "RunConfig",
    "SamplingSection",
    "build",
    "field_help",
    "in_sections",
    "key_values",
    "merge",
    "read_toml",
    "resolve",
    "to_toml",
]
