"""Folders of output: the one that was named, or one that nobody else has."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.cli.output import output_folder
from fttt.errors import RunError

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_folder_that_was_named_is_left_as_it_is() -> None:
    with output_folder(Path("mine"), "name") as folder:
        assert folder == Path("mine")
        assert not folder.exists()


def test_two_that_begin_at_once_have_a_folder_each() -> None:
    with output_folder(None, "a:b") as one, output_folder(None, "a:b") as other:
        assert one.parent == Path("outputs")
        assert one.name.startswith("a_b-2")
        assert other != one
        (one / "config.toml").touch()
    assert list(Path("outputs").iterdir()) == [one]  # nothing was begun in the other


def test_nothing_is_left_of_what_was_not_begun() -> None:
    with output_folder(None, "name") as folder:
        assert folder.is_dir()
    assert not Path("outputs").exists()


def test_a_place_that_cannot_be_written_is_named() -> None:
    Path("outputs").touch()
    with pytest.raises(RunError, match="Cannot write the output folder 'outputs/"):
        output_folder(None, "name").__enter__()
