"""The methods, one file each, and how to find them by name."""

from fttt.methods.base import (
    Adapter,
    Attempt,
    LoRASettings,
    Method,
    MethodSettings,
    Session,
)
from fttt.methods.registry import METHODS, find_method

__all__ = [
    "METHODS",
    "Adapter",
    "Attempt",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Session",
    "find_method",
]
