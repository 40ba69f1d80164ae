"""The main job on the embedded model, a real one, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fttt.models import load_model
from fttt.store import Run
from fttt.tasks import get_task
from fttt.tasks.task import TaskOptions
from fttt.testing import call


def run(*words: str) -> Run:
    assert call("run", *words) == 0
    return Run.open(Path(words[words.index("--out") + 1]))


@pytest.mark.slow
def test_the_batch_size_changes_no_completion(tmp_path: Path) -> None:
    seen = {}
    for size in (1, 16):
        out = tmp_path / str(size)
        made = run(
            *("fttt", "--task", "arithmetic", "--limit", "4", "--trials", "2", "--device", "cpu"),
            *("--max-new-tokens", "24", "--batch-size", str(size), "--out", str(out)),
        )
        seen[size] = {(t.question_id, t.trial): t.token_ids for t in made.trials}
    assert seen[1] == seen[16]
    assert len(seen[1]) > 4
    assert all(ids[-1] == 2 for ids in seen[1].values() if len(ids) < 24)  # <|im_end|>


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers(tmp_path: Path) -> None:
    made = run(
        *("greedy", "--task", "arithmetic", "--limit", "2", "--device", "cpu"),
        *("--max-new-tokens", "32", "--no-save-correct-cases", "--out", str(tmp_path / "run")),
    )
    answers = {trial.question_id: trial.token_ids for trial in made.trials}
    loaded = load_model("smollm2-135m", device="cpu")
    for question in get_task("arithmetic").load(TaskOptions())[:2]:
        ids = torch.tensor([loaded.chat.prompt_ids(question.prompt)])
        expected = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32,
            eos_token_id=list(loaded.stop_ids), pad_token_id=2,
        )  # fmt: skip
        assert tuple(expected[0, ids.shape[1] :].tolist()) == answers[question.id]
