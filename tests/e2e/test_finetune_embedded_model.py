"""Every method of fine-tuning takes a step with the embedded model, a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fttt.cli import main
from fttt.finetune.metadata import METHODS, read_info

COUNTS = {
    "full": 134_515_008,
    "lora": 245_760,
    "adapter": 2_525_040,
    "ia3": 57_600,
    "ln-tuning": 35_136,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_the_embedded_model(method: str, tmp_path: Path) -> None:
    few = ["--limit", "3", "--held-out", "0.4", "--samples", "2", "--max-steps", "1"]
    where = ["--device", "cpu", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "train", method, "--task", "arithmetic", *few, *where])
    assert ended.value.code == 0
    info = read_info(tmp_path / "out")
    assert info.trained_parameters == COUNTS.get(method, info.trained_parameters)
    assert info.validation_loss is not None
    assert 0.3 < info.validation_loss < 3  # an instruction-tuned model knows such sentences
    assert info.architecture.layers == 30
