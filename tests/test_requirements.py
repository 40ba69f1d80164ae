"""The versions that packages may have: ranges, their lowest ends, and what tests run with."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
APART = {"torch", "inspect-ai"}
"""Whose lowest version ``requirements/lowest.txt`` says why it has not."""


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    asked = [line.partition("#")[0].strip() for line in lines]
    pairs = [line.split("==") for line in asked if "==" in line]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def ranges() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from (r for r in map(Requirement, group) if r.name != "fttt")


def test_the_lowest_versions_are_the_lower_ends_of_the_ranges() -> None:
    lowest = pins("lowest.txt")
    found = {}
    for wanted in ranges():
        name = canonicalize_name(wanted.name)
        [low] = [Version(s.version) for s in wanted.specifier if s.operator == ">="]
        assert found.setdefault(name, low) == low, "two extras name one range"
    assert {n: v for n, v in found.items() if n not in APART} == {
        n: v for n, v in lowest.items() if n not in APART
    }


@pytest.mark.parametrize("file", ["run.txt", "gym.txt", "lowest.txt"])
def test_what_is_installed_lies_in_the_ranges(file: str) -> None:
    installed = pins(file)
    for wanted in ranges():
        version = installed.get(canonicalize_name(wanted.name))
        assert version is None or version in wanted.specifier, f"{wanted}: {version}"


def test_every_package_of_a_range_is_installed_for_tests() -> None:
    installed = pins("run.txt") | pins("gym.txt")
    assert {canonicalize_name(r.name) for r in ranges()} - {*installed} == {"inspect-ai"}
