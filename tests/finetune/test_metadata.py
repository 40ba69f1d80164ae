"""What a checkpoint says of itself, and that it is there as a whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import RunError, UsageError
from fttt.finetune.metadata import (
    INFO_FILE,
    FinetuneInfo,
    check_base,
    model_shape,
    publish,
    read_info,
    write_info,
)
from fttt.testing import tiny_model


def info(**changes: Any) -> FinetuneInfo:
    facts = {
        "method": "lora", "model": "tiny", "base_model": "tiny", "task": "arithmetic", "seed": 1,
        "architecture": model_shape(tiny_model().model.config), "settings": {"rank": 16},
        "step": 3, "epoch": 0.5, "trained_parameters": 10, "trained_tokens": 20, "tokens": 30,
        "seconds": 1.5, "validation_loss": 2.25,
    }  # fmt: skip
    return FinetuneInfo(**facts | changes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_info(tmp_path, info())
    assert read_info(tmp_path) == info()


def test_a_folder_that_is_no_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint folder"):
        read_info(tmp_path / "nowhere")
    for step in (9, 10):
        (tmp_path / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
        write_info(tmp_path / f"checkpoints/checkpoint-{step}", info(step=step))
    with pytest.raises(UsageError, match=r"last checkpoint is .*checkpoint-10'"):
        read_info(tmp_path)
    (tmp_path / INFO_FILE).write_text('{"format": 2}')
    with pytest.raises(UsageError, match=r"format: Input should be 1"):
        read_info(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    check_base(info(), tiny_model().model.config, "tiny", tmp_path)
    with pytest.raises(UsageError, match="with layers 2, but the model 'deep' has 3"):
        check_base(info(), tiny_model(layers=3).model.config, "deep", tmp_path)


def save(folder: Path, text: str, *, full: bool = False) -> None:
    with publish(folder) as beside:
        write_info(beside, info())
        (beside / "weights").write_text(text)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_what_was_there_whole(tmp_path: Path) -> None:
    save(tmp_path, "first")
    with pytest.raises(RunError, match=r"No space left on device.*saved earlier is whole"):
        save(tmp_path, "sec", full=True)
    assert (tmp_path / "weights").read_text() == "first"
    assert {p.name for p in tmp_path.iterdir()} == {"weights", INFO_FILE}
    save(tmp_path, "second")
    assert (tmp_path / "weights").read_text() == "second"


def test_a_full_disk_at_the_first_checkpoint_promises_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing was saved before.* from the first step"):
        save(tmp_path, "fir", full=True)


def test_a_checkpoint_is_read_without_torch() -> None:
    code = "import sys, fttt.finetune.metadata; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
