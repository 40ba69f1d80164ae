"""Replicas, without a cluster; their exchanges with a driver are in test_driver.py."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
import torch

from fttt.experiment.executor import LocalExecutor
from fttt.experiment.replica import Fact, PlannedRun, Replica, Report
from fttt.store import DivergenceEvent, GenerationEvent, ScoreEvent
from fttt.testing import FakeEngine, fake_model
from fttt.types import Completion, Scores, Trial, Usage, Verdict

from .conftest import make_plan


def test_a_replica_takes_no_more_threads_than_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever ``OMP_NUM_THREADS`` gives a process that has the machine to itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", "somewhere"])
    taken: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for threads in (2, 8, None):
        Replica(str(tmp_path), {}, threads=threads)
    assert taken == [2, 4]


def test_facts_arrive_as_they_were_sent() -> None:
    usage = Usage(*range(1, 9))
    answer = Completion("4", (1, 2), "length", 3, usage, (-0.5, -1.0), "hm", 1)
    verdict = Verdict("correct", "4", "fine", 0.1, "", 0.5, tests_passed=1, tests_total=2)
    trial = Trial("q", 1, 3, "4", (1, 2), "stop", "4", "correct", "", 0.2, usage, divergence=0.1)
    scores = Scores((1, 2), (-0.5, -1.0), ((1,), (2,)), ((-0.5,), (-1.0,)), usage)
    facts = (
        Fact(0, "q", "generation", (GenerationEvent("q", 1, answer),)),
        Fact(0, "q", "verdict", ("q", 3, verdict)),
        Fact(1, "q", "score", (ScoreEvent("q", 0, scores),)),
        Fact(1, "q", "divergence", (DivergenceEvent("q", 0, 0.1, usage),)),
        Fact(0, "q", "trial", (trial,)),
        Fact(0, "q", "done", ("q",)),
        Fact(0, "q", "ended", (True, 2)),
    )
    assert Report.of(facts, 7).facts == facts


@pytest.mark.usefixtures("nothing_frozen")
def test_the_collector_looks_seldom_while_a_replica_asks(tmp_path: Path) -> None:
    before = gc.get_threshold()

    async def prepared() -> tuple[tuple[int, ...], tuple[int, ...]]:
        replica = Replica(str(tmp_path), {})
        replica._executor = LocalExecutor(fake_model(100_000), lambda *_: FakeEngine("1"))
        await replica.prepare([PlannedRun.of(make_plan())])
        seldom = gc.get_threshold()
        await replica.prepare([PlannedRun.of(make_plan())])
        again = gc.get_threshold()
        await replica.release()
        return seldom, again

    seldom, again = asyncio.run(prepared())
    assert seldom == again
    assert seldom[0] > before[0]
    assert gc.get_threshold() == before
