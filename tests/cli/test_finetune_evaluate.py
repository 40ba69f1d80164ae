"""``fttt finetune evaluate`` on checkpoints of a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fttt.store import Run
from fttt.testing import call

COMMON = ["--limit", "3", "--trials", "2", "--max-new-tokens", "8", "--device", "cpu"]
Make = Any


pytestmark = pytest.mark.usefixtures("elsewhere")


def test_two_checkpoints_end_in_one_table(make_checkpoint: Make) -> None:
    folders = [str(make_checkpoint(kind).folder) for kind in ("ln-tuning", "prefix")]
    words = [sys.executable, "-m", "fttt", "finetune", "evaluate", *folders, *COMMON, "--out", "e"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path("e").iterdir()) == [
        "finetuned-arithmetic-tuned-ln-tuning-s42",
        "finetuned-arithmetic-tuned-prefix-s42",
        "greedy-arithmetic-tuned-ln-tuning",
        "greedy-arithmetic-tuned-prefix",
        "sweep.toml",
    ]
    for name, folder in zip(("ln-tuning", "prefix"), folders, strict=True):
        greedy = Run.open(f"e/greedy-arithmetic-tuned-{name}")
        samples = Run.open(f"e/finetuned-arithmetic-tuned-{name}-s42")
        assert greedy.adapter == samples.adapter == folder
        unsolved = [r.question.id for r in greedy.records if r.trials[0].verdict != "correct"]
        assert [q.id for q in samples.questions] == unsolved
        for record in samples.records:
            assert len(record.trials) == 2 or record.trials[-1].verdict == "correct"
        facts = json.loads((Path(folder) / "finetune.json").read_text())
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"tuned-{name}"))
        for figure in (f"{facts['trained_parameters']:,}", "1,234", "5.5"):
            assert figure in row
    assert "note: --max-new-tokens 8 cut off" in done.stdout
    before = {path: path.read_bytes() for path in Path("e").rglob("*.jsonl")}
    assert call("finetune", "evaluate", *folders, *COMMON, "--out", "e") == 0  # nothing is owed
    assert {path: path.read_bytes() for path in Path("e").rglob("*.jsonl")} == before


def test_the_hard_questions_can_be_the_base_models(make_checkpoint: Make) -> None:
    folder = str(make_checkpoint("full").folder)
    Path("cases.json").write_text("[1]")
    words = ["finetune", "evaluate", folder, *COMMON, "--skip-cases", "cases.json", "--out", "e"]
    assert call(*words) == 0
    greedy = Run.open("e/greedy-arithmetic-tuned-full")
    samples = Run.open("e/finetuned-arithmetic-tuned-full-s42")
    ids = [q.id for q in greedy.questions]
    assert len(ids) == 3
    assert ids[1] not in [q.id for q in samples.questions]


def test_faults_are_named_before_any_model_is_loaded(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fttt.models.loader._read_weights", lambda *_: pytest.fail("loaded"))
    good = str(make_checkpoint("lora").folder)
    other = make_checkpoint("ia3", "qwen", task="gsm8k").folder
    for words, message in (
        ([good, "nowhere"], "no checkpoint folder 'nowhere'"),
        ([good, good], "named twice"),
        ([good, str(other)], "say with --task"),
        ([good, "--task", "nothing"], "nothing"),
        ([good, "--hard-limit", "2", "--skip-cases", "c.json"], "cannot be combined"),
    ):
        assert call("finetune", "evaluate", *words, *COMMON) == 2
        assert message in capsys.readouterr().err
    (Path(good) / "adapter_model.safetensors").unlink()
    assert call("finetune", "evaluate", good, *COMMON) == 2
    assert "no adapter_model.safetensors" in capsys.readouterr().err
    assert not Path("outputs").exists()
