"""Names for the sides of a comparison: the method, and what tells two of one method apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

__all__ = ["name_sides", "shorten_paths", "show"]

PATHS = frozenset({"checkpoint", "adapter"})
"""Settings whose values are folders."""
LONGEST = 40


def name_sides(methods: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """A name for each side, or ``None`` where method and settings tell it from no other.

    Args:
        methods: by side.
        settings: by side, those that make it what it is.
    """
    names: list[str | None] = []
    for method, own in zip(methods, settings, strict=True):
        twins = [s for m, s in zip(methods, settings, strict=True) if m == method and s is not own]
        differing = [key for key in own if any(twin.get(key) != own[key] for twin in twins)]
        if "checkpoint" in differing and own.get("adapter") == own["checkpoint"]:
            differing.remove("adapter")  # the same folder, by its other name
        told = ", ".join(_told(key, [own, *twins]) for key in differing)
        if len(differing) == 1 and all(_is_path(differing[0], s) for s in [own, *twins]):
            told = _value(differing[0], [own, *twins])  # folders speak for themselves
        names.append((f"{method} ({told})" if told else None) if twins else method)
    # Two sides may still share a name: settings that only the other has, texts that were cut.
    times = Counter(names)
    return [None if times[name] > 1 else name for name in names]


def shorten_paths(paths: Iterable[str]) -> dict[str, str]:
    """Each path without the leading and trailing parts that all of them share.

    At least one part of each stays.
    """
    split = {path: PurePath(path).parts for path in paths}
    shortest = min(map(len, split.values()))
    leading = _shared(list(split.values()), shortest - 1)
    backwards = [parts[::-1] for parts in split.values()]
    trailing = _shared(backwards, shortest - leading - 1)
    return {
        path: str(PurePath(*parts[leading : len(parts) - trailing])) if parts else path
        for path, parts in split.items()
    }


def show(value: Any) -> str:
    """A setting's value on one short line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _told(key: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """``rank 8``, ``reflection`` or ``no reflection``."""
    value = settings[0][key]
    if isinstance(value, bool):
        return key if value else f"no {key}"
    return f"{key} {_value(key, settings)}"


def _value(key: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """How the first side's value is shown beside the others'."""
    value = settings[0][key]
    if _is_path(key, settings[0]):
        others = {str(s[key]) for s in settings if s.get(key) is not None}
        value = shorten_paths(others)[value]
        return value if len(value) <= LONGEST else "…" + value[1 - LONGEST :]
    return show(value)


def _is_path(key: str, settings: Mapping[str, Any]) -> bool:
    return key in PATHS and isinstance(settings.get(key), str)


def _shared(all_parts: Sequence[Sequence[str]], most: int) -> int:
    """How many of the first parts all have in common, at most ``most``."""
    for n, parts in enumerate(zip(*all_parts, strict=False)):
        if n >= most or len(set(parts)) > 1:
            return n
    return max(0, most)
