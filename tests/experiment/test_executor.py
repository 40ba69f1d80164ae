"""What an answer costs beside the model's own passes, whatever its length."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.engine.decoder import SeenTokens
from fttt.engine.request import ThoughtBudget
from fttt.experiment import executor
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.runner import Cell, run_cells
from fttt.models.chat import ChatFormat
from fttt.progress import Quiet
from fttt.testing import tiny_model

from .conftest import make_plan

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_work_for_an_answer_grows_with_its_length_and_not_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, thought, journal and repetition penalty, of answers that nothing ends before time."""
    loaded = tiny_model(layers=1, max_context=4096, template="deepseek-r1")
    with torch.no_grad():
        weight = loaded.model.get_output_embeddings().weight
        weight *= 8
        weight[140:], weight[:40] = 0, 0  # what ends an answer, or a thought, is never likely
    work: Counter[str] = Counter()
    decode, mark, closes = ChatFormat._decode, SeenTokens.mark, ThoughtBudget.closes

    def decoding(self: Any, ids: Any, **more: Any) -> str:
        work["decoded"] += len(ids)
        return decode(self, ids, **more)

    def marking(self: Any, row: int, ids: Any) -> None:
        work["marked"] += len(ids)
        mark(self, row, ids)

    def closing(self: Any, ids: Any) -> tuple[int, ...]:
        work["searched"] += len(ids)
        return closes(self, ids)

    monkeypatch.setattr(ChatFormat, "_decode", decoding)
    monkeypatch.setattr(SeenTokens, "mark", marking)
    monkeypatch.setattr(ThoughtBudget, "closes", closing)

    def work_of(tokens: int) -> dict[str, int]:
        work.clear()
        plan = make_plan(
            trials=1,
            count=1,
            sampling={
                "max_new_tokens": tokens,
                "think_tokens": tokens // 2,
                "repetition_penalty": 1.1,
            },
        )
        (run,) = run_cells([Cell(plan, tmp_path / f"{tokens}")], LocalExecutor(loaded), Quiet())
        (trial,) = run.trials
        assert len(trial.token_ids) == tokens
        assert tokens // 2 < trial.thought_tokens < tokens
        work["written"] = sum(file.stat().st_size for file in run.path.iterdir())
        return dict(work)

    short, long = work_of(80), work_of(320)
    assert short.keys() == long.keys() == {"decoded", "marked", "searched", "written"}
    assert long["marked"] < 2 * 320 + 200  # once when it begins, and after its thought is closed
    for kind, amount in long.items():
        assert amount < 5 * short[kind], kind


@pytest.mark.parametrize(
    ("engine", "share"),
    [
        ({}, None),
        ({"memory_share": 0.7}, 0.7),
        ({"gpus_per_replica": 0.5}, 0.5),
        ({"gpus_per_replica": 0.5, "memory_share": 0.2}, 0.2),
        ({"gpus_per_replica": 0.5, "memory_share": 0.9}, 0.5),
    ],
)
def test_a_replica_holds_no_more_memory_than_its_part_of_a_gpu(
    engine: dict[str, float], share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas that share one begin at once, so that each finds all of it free."""
    taken: dict[str, Any] = {}
    monkeypatch.setattr(executor, "BatchedEngine", lambda *_, **settings: taken.update(settings))
    replicas = {"replicas": 2} if "gpus_per_replica" in engine else {}
    sampling = {"max_new_tokens": 64}
    executor.make_engine(
        [make_plan(engine={**engine, **replicas}, sampling=sampling)], tiny_model()
    )
    assert taken["memory_share"] == share
