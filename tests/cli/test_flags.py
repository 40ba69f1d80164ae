"""Flags that come from a config: their names, their types and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import Field
from typer.testing import CliRunner

from fttt.cli.flags import with_flags
from fttt.config import build
from fttt.config.run_config import Section, section


class Inner(Section):
    seed: int = Field(3, description="another seed")
    names: tuple[str, ...] = Field(("a", "b"), description="some names")
    options: dict[str, Any] = Field(default_factory=dict, description="more")
    file: Path | None = Field(None, description="a file")


class Outer(Section):
    seed: int = Field(1, description="a seed")
    kind: Literal["one", "two"] = Field("one", description="which kind")
    loud: bool | None = Field(None, description="whether it is loud")
    plain: bool = Field(False, description="on or off")
    hidden: int = Field(0, description="never shown")
    data: Inner = section(Inner)
    settings: dict[str, Any] = Field(default_factory=dict, description="settings")


def call(*words: str) -> tuple[dict[str, Any] | None, str]:
    """What a command is given of its flags, and what it prints."""
    seen: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @with_flags(Outer, without=["hidden"])
    def command(flags: dict[str, Any], own: str = "") -> None:
        seen.append(flags | ({"own": own} if own else {}))

    result = CliRunner().invoke(app, words, env={"COLUMNS": "120", "NO_COLOR": "1"})
    return seen[0] if seen else None, result.output


def test_what_is_not_given_is_not_there() -> None:
    assert call() == ({}, "")
    assert call("--own", "x")[0] == {"own": "x"}


def test_values_go_where_their_fields_are() -> None:
    words = [
        "--seed",
        "7",
        "--data-seed",
        "8",
        "--names",
        "c, d,",
        "--file",
        "f",
        "--no-loud",
        "--plain",
    ]
    words += [
        "--plain",
        "--task-option",
        "a=1",
        "--task-option",
        "b=two",
        "--set",
        "c=[3]",
        "--kind",
        "two",
    ]
    flags, _ = call(*words)
    assert flags == {
        "seed": 7,
        "kind": "two",
        "loud": False,
        "plain": True,
        "data": {"seed": 8, "names": ["c", "d"], "options": {"a": 1, "b": "two"}, "file": "f"},
        "settings": {"c": [3]},
    }
    assert build(Outer, flags, "a test").data.file == Path("f")


def test_the_help_is_the_fields_own_with_its_default() -> None:
    shown = " ".join(call("--help")[1].split())
    for text in (
        "a seed [1]",
        "another seed [3]",
        "some names [a,b]",
        "which kind [one]",
        "one|two",
    ):
        assert text in shown
    assert "hidden" not in shown
    assert call("--hidden", "1")[0] is None
    assert call("--no-plain")[0] is None
    assert call("--seed", "x")[0] is None
