"""A model's shape without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.models.outline import model_outline
from fttt.testing import save_tiny_model, tiny_model


def test_the_layers_are_those_of_the_model_and_hold_nothing(tmp_path: Path) -> None:
    outline = model_outline(str(save_tiny_model(tmp_path, "gemma2")))
    shapes = {name: weight.shape for name, weight in outline.named_parameters()}
    assert shapes == {n: w.shape for n, w in tiny_model("gemma2").model.named_parameters()}
    assert all(weight.is_meta for weight in outline.parameters())


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UsageError, match=r"cannot be read: .*no-such-type"):
        model_outline(str(tmp_path))
