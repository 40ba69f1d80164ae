"""One model under two names is one model, and a torn file of weights is told from a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.models import find_model
from fttt.models.locate import check_model, find_fault, same_model
from fttt.testing import save_tiny_model


def test_the_embedded_model_is_its_file_wherever_that_lies(tmp_path: Path) -> None:
    file = find_model("smollm2-135m").path
    linked = tmp_path / "another.gguf"
    linked.symlink_to(file)
    assert same_model("smollm2-135m", file)
    assert same_model(str(linked), "smollm2-135m")


def test_a_folder_is_told_by_its_weights_and_its_config(tmp_path: Path) -> None:
    one = save_tiny_model(tmp_path / "one")
    other = tmp_path / "other"
    shutil.copytree(one, other)
    assert same_model(str(one), str(other))
    assert not same_model(str(one), "smollm2-135m")
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not same_model(str(one), str(other))
    weights.write_bytes((one / "model.safetensors").read_bytes())
    (other / "config.json").write_text((one / "config.json").read_text() + "\n")
    assert not same_model(str(one), str(other))


@pytest.mark.parametrize(
    ("name", "same"), [("owner/one", True), ("elsewhere/one", True), ("owner/other", False)]
)
def test_what_is_not_here_is_told_by_the_last_part_of_its_name(
    tmp_path: Path, name: str, same: bool
) -> None:
    assert same_model(name, str(save_tiny_model(tmp_path / "one"))) is same
    assert same_model(name, str(tmp_path / "gone" / "one")) is same


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
