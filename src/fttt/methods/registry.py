"""Methods by name."""

from __future__ import annotations

import difflib

from fttt.errors import UsageError
from fttt.extension import find_own
from fttt.methods.base import Method
from fttt.methods.beam_search import BeamSearch
from fttt.methods.best_of_n import BestOfN
from fttt.methods.finetuned import Finetuned
from fttt.methods.fttt import FTTT
from fttt.methods.greedy import Greedy
from fttt.methods.optune import OpTune
from fttt.methods.revision import Revision
from fttt.methods.sample import Sample
from fttt.methods.self_consistency import SelfConsistency
from fttt.methods.self_refine import SelfRefine

__all__ = ["METHODS", "find_method"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Greedy,
        BestOfN,
        Sample,
        SelfConsistency,
        BeamSearch,
        Revision,
        SelfRefine,
        FTTT,
        OpTune,
        Finetuned,
    )
}
"""The built-in methods."""


def find_method(name: str) -> type[Method]:
    """The method of that name, or the class that ``module:Class`` names.

    Modules are found as Python finds them, the working directory included.

    Raises:
        UsageError: there is none, or what was found is no method.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return _imported(name)
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"No method {name!r}: {hint}There are {', '.join(METHODS)}; "
        "a class of your own is named as module:Class."
    )


def _imported(name: str) -> type[Method]:
    found = find_own(name, "method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(
            f"{name!r} is no method: derive the class from fttt.Method and write solve()."
        )
    return found
