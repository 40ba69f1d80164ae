"""Plans on the tiny task and runs of them on a scripted engine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fttt.config import resolve
from fttt.engine.request import GenerateRequest
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.plan import Plan, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.progress import Quiet
from fttt.store import Run
from fttt.tasks import TaskOptions
from fttt.testing import FakeEngine, FakeSlot, TinyTask, fake_model


def write(conversation: str, request: GenerateRequest) -> str:
    """A number that depends on all that a completion may depend on."""
    slot = request.adapter
    updates = slot.updates * 3 + slot.seed if isinstance(slot, FakeSlot) else 0
    number = request.noise_key + updates + len(conversation)
    return "no answer" if number % 5 == 0 else f"It is {number % 10}"


def make_plan(method: str = "best-of-n", trials: int = 4, count: int = 4, **flags: Any) -> Plan:
    config = resolve(
        {"method": method, "task": "arithmetic", "budget": {"trials": trials}, **flags}
    )
    questions = TinyTask().load(TaskOptions())[:count]
    return Plan(settle(config, task=TinyTask()), tuple(questions))


def play_cells(
    cells: Sequence[Cell], engines: list[FakeEngine] | None = None, script: Any = write
) -> list[Run]:
    def make_engine(plans: Sequence[Plan], loaded: object) -> FakeEngine:
        engine = FakeEngine(script)
        if engines is not None:
            engines.append(engine)
        return engine

    return run_cells(cells, LocalExecutor(fake_model(100_000), make_engine), Quiet())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy runs write beside the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_frozen() -> Iterator[None]:
    """As it is in a process where nobody has frozen objects, as the suite itself has."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture
def plan() -> Callable[..., Plan]:
    return make_plan


@pytest.fixture
def play_plan(tmp_path: Path) -> Callable[..., Run]:
    def run(plan: Plan, folder: str = "run", *, resume: bool = False, **more: Any) -> Run:
        return play_cells([Cell(plan, tmp_path / folder, resume=resume)], **more)[0]

    return run


@pytest.fixture
def play_all() -> Callable[..., list[Run]]:
    return play_cells
