"""The container: what is read of it, and what is refused."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from fttt.errors import UsageError
from fttt.models.gguf.file import open_gguf
from fttt.models.gguf.model import check_gguf


def test_metadata_and_tensors_are_what_was_written(workshop: Any) -> None:
    made = workshop.file().put("general.name", "Tiny").put("llama.flag", True)
    made.put("llama.numbers", [1, 2, 3]).put("llama.texts", ["a", "ä"])
    made.writer.add_key_value("llama.wide", 2**40, gguf.GGUFValueType.UINT64)
    path = made.tensor("one", torch.ones(2, 3)).tensor("two", torch.zeros(5)).write()
    file = open_gguf(path)
    assert file.architecture == "llama"
    assert (file.metadata["general.name"], file.metadata["llama.flag"]) == ("Tiny", True)
    assert file.metadata["llama.wide"] == 2**40
    assert file.metadata["llama.numbers"].tolist() == [1, 2, 3]
    assert file.metadata["llama.texts"] == ["a", "ä"]
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        "one": (2, 3),
        "two": (5,),
    }
    reader = gguf.GGUFReader(path)
    offsets = {tensor.name: tensor.data_offset for tensor in reader.tensors}
    assert {name: tensor.offset for name, tensor in file.tensors.items()} == offsets


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_file_that_was_not_copied_whole_is_refused_before_anything_is_loaded(
    workshop: Any, share: float
) -> None:
    path: Path = workshop.llama()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=r"tiny\.gguf.*(copied whole|copy or download it again)"):
        check_gguf(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4" + bytes(100), "not a GGUF file"),
        (b"GGUF" + bytes(64), "version 0"),
        (b"GGUF" + b"\0\0\0\3" + bytes(64), "little-endian"),
        (b"GGUF" + b"\3\0\0\0" + b"\xff" * 64, "is damaged"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(UsageError, match=rf"bad\.gguf.*{says}"):
        open_gguf(tmp_path / "bad.gguf")


def test_a_kind_of_tensor_that_cannot_be_read_is_named(workshop: Any) -> None:
    made = workshop.file()
    made.writer.add_tensor("counts", np.ones(32, np.int64))
    with pytest.raises(UsageError, match="kind I64"):
        open_gguf(made.write())


def test_the_parts_of_a_split_file_are_read_together(workshop: Any) -> None:
    for number, name in ((1, "one"), (2, "two")):
        part = workshop.file(name=f"tiny-0000{number}-of-00002.gguf")
        part.writer.add_uint16("split.count", 2)
        path = part.tensor(name, torch.full((3,), float(number))).write()
    first = path.with_name("tiny-00001-of-00002.gguf")
    assert set(open_gguf(first).tensors) == {"one", "two"}
    with pytest.raises(UsageError, match="ends with -00001-of-00002"):
        open_gguf(path)
    path.unlink()
    first.touch()  # else what was read of it is still known
    with pytest.raises(UsageError, match=r"lacks its part 'tiny-00002-of-00002\.gguf'"):
        open_gguf(first)
