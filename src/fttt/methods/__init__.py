"""The methods, one file each, and how to find them by name."""

from typing import Any

from fttt.methods.base import (
    Adapter,
    Attempt,
    BoundedSettings,
    Group,
    LoRASettings,
    Method,
    MethodSettings,
    Session,
)
from fttt.registry import Registry

__all__ = [
    "METHODS",
    "Adapter",
    "Attempt",
    "BoundedSettings",
    "Group",
    "LoRASettings",
    "Method",
    "MethodSettings",
    "Session",
    "find_method",
]


def _fault(found: Any) -> str | None:
    if isinstance(found, type) and issubclass(found, Method):
        return None
    return "derive the class from fttt.Method and write solve()"


METHODS: Registry[Method] = Registry(
    "method",
    {
        "greedy": "fttt.methods.greedy:Greedy",
        "best-of-n": "fttt.methods.best_of_n:BestOfN",
        "sample": "fttt.methods.sample:Sample",
        "self-consistency": "fttt.methods.self_consistency:SelfConsistency",
        "beam-search": "fttt.methods.beam_search:BeamSearch",
        "revision": "fttt.methods.revision:Revision",
        "self-refine": "fttt.methods.self_refine:SelfRefine",
        "fttt": "fttt.methods.fttt:FTTT",
        "unlearn": "fttt.methods.unlearn:Unlearn",
        "policy": "fttt.methods.policy:Policy",
        "self-distill": "fttt.methods.self_distill:SelfDistill",
        "memory": "fttt.methods.memory:Memory",
        "optune": "fttt.methods.optune:OpTune",
        "finetuned": "fttt.methods.finetuned:Finetuned",
    },
    _fault,
)
"""The built-in methods by name."""


def find_method(name: str) -> type[Method]:
    """The method of that name, or the class that ``module:Class`` names.

    Raises:
        UsageError: there is none, or what was found is no method.
    """
    return METHODS.find(name)
