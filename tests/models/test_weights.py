"""A torn file of weights is told from a whole one without loading it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.models.source import check_model
from fttt.models.weights import find_fault
from fttt.testing import save_tiny_model


def test_a_torn_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    (file,) = folder.glob("*.safetensors")
    whole = file.read_bytes()
    assert find_fault(file) is None
    check_model(str(folder))
    for content in (whole[: len(whole) // 2], whole + b"x", whole[:50], whole[:4], b""):
        file.write_bytes(content)
        assert find_fault(file) is not None
        with pytest.raises(UsageError, match=r"is broken: model.safetensors .* from a copy"):
            check_model(str(folder))
    file.unlink()
    assert find_fault(file) == "model.safetensors cannot be read (No such file or directory)"
