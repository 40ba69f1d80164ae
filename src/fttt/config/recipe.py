"""Recipes in TOML, and flags over file over defaults."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from fttt.config.run_config import RunConfig, Section
from fttt.errors import UsageError

__all__ = ["build", "in_sections", "key_values", "merge", "read_toml", "resolve", "to_toml"]

COMMAND_LINE = "the command line"

_PLAIN = {
    "string_too_short": "should not be empty",
    "too_short": "should not be empty",
    "tuple_type": 'should be a list as ["one", "two"]',
}
"""Our words for some of the validator's messages."""

M = TypeVar("M", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: it is missing or malformed; the sentence names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the file {str(path)!r}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The file {str(path)!r} is no valid TOML: {error}.") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` in place of its own, table by table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def in_sections(values: Mapping[str, Any], model: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """Put settings under the sections that they belong to, as a recipe has them.

    Args:
        values: by the field's name, or ``section.name`` where a name alone means another field.
            ``None`` and empty tables count as not given and are left out.
        model: whose fields they are.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is not None and value != {}:
            section, _, field = name.rpartition(".")
            section = section or _section_of(field, model)
            table = found.setdefault(section, {}) if section else found
            table[field] = value
    return found


def _section_of(field: str, model: type[BaseModel]) -> str:
    """The section with a field of that name; none where the config itself has one."""
    if field in model.model_fields:
        return ""
    return next(
        name
        for name, held in model.model_fields.items()
        if isinstance(held.annotation, type)
        and issubclass(held.annotation, Section)
        and field in held.annotation.model_fields
    )


def resolve(
    flags: Mapping[str, Any], *, recipe: Mapping[str, Any] | None = None, source: str = "the recipe"
) -> RunConfig:
    """Flags over file over defaults.

    Args:
        flags: only what was given on the command line, in the recipe's shape.
        recipe: the file's content.
        source: how an error names the file.

    Raises:
        UsageError: a key or a value that is not allowed.
    """
    if recipe is not None:
        build(RunConfig, merge({"method": "?"}, recipe), source)  # the file's own faults first
    merged = merge(recipe or {}, flags)
    budget = flags.get("budget", {})
    if {"token_budget", "time_budget"} & set(budget) and "trials" not in budget:
        # another budget on the command line takes the place of the recipe's trials
        merged["budget"] = {k: v for k, v in merged["budget"].items() if k != "trials"}
    return build(RunConfig, merged, COMMAND_LINE)


def build(model: type[M], values: Mapping[str, Any], source: str) -> M:
    """Validate ``values``, with one sentence for the first fault.

    A list of words may also be one text with commas between them, as help texts show it.

    Raises:
        UsageError: a key or a value that is not allowed.
    """
    try:
        return model.model_validate(_with_lists(model, values))
    except ValidationError as error:
        raise UsageError(_sentence(model, error, source)) from None


def _with_lists(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the words of lists of words apart: ``"a,b"`` is ``["a", "b"]``."""
    read = dict(values)
    for name, field in model.model_fields.items():
        if field.annotation == tuple[str, ...] and isinstance(given := read.get(name), str):
            read[name] = [word.strip() for word in given.split(",") if word.strip()]
    return read


def key_values(pairs: list[str], flag: str) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are TOML, and plain words are texts.

    Raises:
        UsageError: a pair without ``=``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"{flag} {pair!r} is not of the form key=value.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        found[key.strip()] = value
    return found


def to_toml(config: BaseModel) -> str:
    """The resolved settings as a recipe, without unset fields."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _sentence(model: type[BaseModel], error: ValidationError, source: str) -> str:
    fault = error.errors(include_url=False)[0]
    path = [part for part in fault["loc"] if isinstance(part, str)]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? Known" if near else "known"
        return f"Unknown key {name!r} in {source}; {hint} there: {', '.join(known) or 'none'}."
    if fault["type"] == "missing":
        return f"{name!r} is missing in {source}; give it there or by its flag."
    message = _PLAIN.get(fault["type"], str(fault["msg"]).removeprefix("Input "))
    if source == COMMAND_LINE:
        what = f"--{path[-1].replace('_', '-')}" if path else source
    else:
        what = f"{name!r} in {source}"
    return f"{what} cannot be {fault['input']!r}; it {message.rstrip('.')}."


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The fields of the section that ``path`` leads to."""
    for part in path:
        found = model.model_fields[part].annotation
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return []
        model = found
    return list(model.model_fields)
