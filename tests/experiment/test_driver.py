"""Replicas without Ray: in this process, on scripted engines, with deaths after any exchange."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fttt.config import resolve
from fttt.engine.request import GenerateRequest, Generation, Trained, TrainRequest
from fttt.errors import RunError, UsageError
from fttt.experiment import replica
from fttt.experiment.driver import LostError, ReplicatedExecutor, Seat
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.plan import Plan, plan_run, settle
from fttt.experiment.replica import About, Replica
from fttt.experiment.runner import Cell, StoppedError, run_cells
from fttt.progress import Quiet
from fttt.store import Run
from fttt.testing import FakeEngine, fake_model, tiny_tokenizer
from fttt.testing.run_facts import journal_lines, trial_facts

from .conftest import write

METHODS = ["greedy", "best-of-n", "self-consistency", "beam-search", "revision", "fttt"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges of scripted engines cost nothing that would have to be spread."""
    monkeypatch.setattr(replica, "_APART", 0.0)


class FakeReplica(Replica):
    """A replica with a scripted engine."""

    def load(self, config: Any) -> None:
        self._executor = LocalExecutor(fake_model(100_000), self._make_engine)


@dataclass(eq=False)
class Handle:
    """A replica in this process, which dies with its nth exchange."""

    replica: FakeReplica
    dies_at: int | None
    about: About = field(default_factory=lambda: About("here", os.getpid(), {}, ()))
    exchanges: int = 0
    most: int = 0
    dead: bool = False

    async def call(self, name: str, *arguments: Any) -> Any:
        if self.dead:
            raise LostError("killed")
        await asyncio.sleep(0)
        if name == "exchange":
            self.exchanges += 1
            if self.exchanges == self.dies_at:
                self.dead = True
                await self.replica.release()
                raise LostError("killed")
        found = getattr(self.replica, name)(*arguments)
        done = await found if asyncio.iscoroutine(found) else found
        self.most = max(self.most, len(self.replica._tasks))
        return done

    def kill(self) -> None:
        self.dead = True


class Crew:
    """Starts replicas and remembers them."""

    def __init__(self, count: int, dies_at: Sequence[int | None] = (), script: Any = write) -> None:
        self.seats = [Seat() for _ in range(count)]
        self.handles: list[Handle] = []
        self.engines: list[FakeEngine] = []
        self.notes: list[str] = []
        self._dies_at = [*dies_at]
        self.make_engine: Callable[[], FakeEngine] = lambda: FakeEngine(script)

    async def start(self) -> Handle:
        dies_at = self._dies_at.pop(0) if self._dies_at else None
        self.handles.append(Handle(FakeReplica(str(Path.cwd()), {}, self._engine), dies_at))
        return self.handles[-1]

    def run(self, plan: Plan, folder: Path, *, resume: bool = False) -> Run:
        executor = ReplicatedExecutor(self.seats, self.start, plan.config, self.notes.append)
        return run_cells([Cell(plan, folder, resume=resume)], executor, Quiet())[0]

    def _engine(self, *_: object) -> FakeEngine:
        self.engines.append(self.make_engine())
        return self.engines[-1]


def make(method: str, trials: int = 3, limit: int = 5, **more: Any) -> Plan:
    settings = {"settings": {"reflection": True}} if method == "fttt" else {}
    values = {"method": method, "budget": {"trials": trials}, "save_correct_cases": False}
    return plan_run(settle(resolve({**values, "data": {"limit": limit}, **settings, **more})))


@pytest.fixture
def alone(tmp_path: Path) -> Callable[[Plan], Run]:
    def play(plan: Plan) -> Run:
        executor = LocalExecutor(fake_model(100_000), lambda *_: FakeEngine(write))
        return run_cells([Cell(plan, tmp_path / "alone")], executor, Quiet())[0]

    return play


@pytest.mark.parametrize("method", METHODS)
def test_trials_are_the_same_for_any_number_of_replicas(
    method: str, alone: Callable[[Plan], Run], tmp_path: Path
) -> None:
    plan = make(method)
    whole = alone(plan)
    for count in (1, 2, 3):
        crew = Crew(count)
        run = crew.run(plan, tmp_path / f"{count}")
        assert trial_facts(run) == trial_facts(whole)
        assert journal_lines(run.path) == journal_lines(whole.path)
        assert {key: run.summary[key] for key in ("solved", "accuracy_at", "trials_total")} == {
            key: whole.summary[key] for key in ("solved", "accuracy_at", "trials_total")
        }
        assert run.environment["replicas"] == [handle.about.host for handle in crew.handles]
        assert len(crew.handles) == count
        assert all(engine.closed for engine in crew.engines)
        assert all(thing.closed for e in crew.engines for thing in (*e.kept, *e.slots))
        assert max(handle.most for handle in crew.handles) <= -(-5 // count)  # a fair share
        assert not crew.notes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2])
def test_what_a_dead_replica_asked_is_resumed_without_loss_or_double(
    method: str, count: int, alone: Callable[[Plan], Run], tmp_path: Path
) -> None:
    plan = make(method)
    whole = alone(plan)
    for dies_at in range(1, 100):
        crew = Crew(count, [dies_at])
        run = crew.run(plan, tmp_path / f"{dies_at}")
        if not crew.notes:
            break
        assert trial_facts(run) == trial_facts(whole)
        assert journal_lines(run.path) == journal_lines(whole.path)
        assert "died: killed" in crew.notes[0]
        assert "Replicas died during the run (1)" in crew.notes[-1]
    assert dies_at > (1 if method in ("greedy", "beam-search") else 2)  # these take one step


class Watching(FakeEngine):
    """An engine that looks, at each request, at what the run folder holds of its question."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(write)
        self.plan, self.folder = plan, folder
        self.written: Counter[str] = Counter()
        """Answers to each question."""

    async def generate(self, request: GenerateRequest) -> Generation:
        question = self.look(request.prompt_ids)
        generation = await super().generate(request)
        self.written[question] += 1
        return generation

    async def train(self, request: TrainRequest) -> Trained:
        self.look(request.lessons[0].context_ids)
        return await super().train(request)

    def look(self, token_ids: tuple[int, ...]) -> str:
        text = str(tiny_tokenizer().decode(token_ids))
        (question,) = [q.id for q in self.plan.questions if q.prompt in text]
        lines = map(json.loads, (self.folder / "events.jsonl").read_text().splitlines())
        there = Counter(x["event"] for x in lines if x.get("question_id") == question)
        assert there["generation"] == there["verdict"] == self.written[question]
        return question


@pytest.mark.parametrize("method", ["best-of-n", "fttt"])
def test_what_a_step_follows_from_is_on_disk_before_it(method: str, tmp_path: Path) -> None:
    plan = make(method, **({"settings": {"reflection": False}} if method == "fttt" else {}))
    crew = Crew(2)
    crew.make_engine = lambda: Watching(plan, tmp_path / "run")
    run = crew.run(plan, tmp_path / "run")
    assert len(run.trials) > len(plan.questions)
    assert sum(len(engine.trainings) for engine in crew.engines) == (
        len(run.trials) - len(plan.questions) if method == "fttt" else 0
    )


def test_answers_that_are_written_ahead_wait_for_no_exchange(tmp_path: Path) -> None:
    plan = make("best-of-n", trials=16, limit=1, sampling={"max_new_tokens": 4})
    exchanges = {}
    for idle in (0, 100):
        crew = Crew(1)
        crew.make_engine = lambda idle=idle: FakeEngine(lambda *_: "none", idle=idle)
        run = crew.run(plan, tmp_path / f"{idle}")
        assert len(run.trials) == 16
        exchanges[idle] = crew.handles[0].exchanges
    assert exchanges[0] >= 16
    assert exchanges[100] <= 8


def test_a_driver_that_is_stopped_leaves_a_folder_for_another_number_of_replicas(
    alone: Callable[[Plan], Run], tmp_path: Path
) -> None:
    plan = make("fttt", trials=4)
    whole = alone(plan)
    count = 0

    def fails(conversation: str, request: Any) -> str:
        nonlocal count
        count += 1
        if count == 12:
            raise RunError("the engine failed.")
        return write(conversation, request)

    with pytest.raises(RunError, match=r"the engine failed\."):
        Crew(2, script=fails).run(plan, tmp_path / "run")
    assert 0 < journal_lines(tmp_path / "run") < journal_lines(whole.path)
    run = Crew(3).run(plan, tmp_path / "run", resume=True)
    assert trial_facts(run) == trial_facts(whole)
    assert journal_lines(run.path) == journal_lines(whole.path)


def test_replicas_that_die_before_they_send_anything_end_the_run(tmp_path: Path) -> None:
    crew = Crew(2, [1] * 9)
    with pytest.raises(RunError, match="3 replicas died one after the other before they had sent"):
        crew.run(make("best-of-n"), tmp_path / "run")
    assert any("go on without another one" in note for note in crew.notes)


def test_an_error_that_is_no_ones_fault_travels_with_its_traceback(tmp_path: Path) -> None:
    def fails(*_: object) -> str:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError: division.*in fails"):
        Crew(2, script=fails).run(make("best-of-n"), tmp_path / "run")


def test_a_stop_ends_the_run_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make("best-of-n", trials=50)

    async def sets(event: asyncio.Event) -> None:
        while not any(handle.exchanges > 3 for handle in crew.handles):  # noqa: ASYNC110
            await asyncio.sleep(0)
        event.set()

    ask = ReplicatedExecutor.ask

    async def asked(self: Any, owed: Any, journals: Any, observer: Any, stop: Any) -> bool:
        stopper = asyncio.create_task(sets(stop))
        try:
            return await ask(self, owed, journals, observer, stop)
        finally:
            stopper.cancel()

    crew = Crew(2)
    monkeypatch.setattr(ReplicatedExecutor, "ask", asked)
    with pytest.raises(StoppedError):
        crew.run(plan, tmp_path / "run")
    assert all(engine.closed for engine in crew.engines)
    monkeypatch.undo()
    assert Crew(1).run(plan, tmp_path / "run", resume=True).finished


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"engine": {"gpus_per_replica": 2}},
            r"runs a model on one GPU: the weights of 'smollm2-135m' take 0\.3 GB in bfloat16, so "
            r"one of 1 GB or more holds it \(--quantize nf4 takes some 30 % of bfloat16's\); leave",
        ),
        (
            {"engine": {"gpus_per_replica": 8, "dtype": "float32"}},
            r"0\.5 GB in float32, so one of 1 GB or more holds it \(--dtype bfloat16 halves",
        ),
        (
            {"engine": {"gpus_per_replica": 2}, "model": "nobody/large"},
            "one of 80 GB holds some 30B parameters in bfloat16; choose a model that fits",
        ),
        (
            {"engine": {"gpus_per_replica": 0.5}},
            r"0\.5 divides a GPU.*give --replicas auto, or --gpus",
        ),
        ({"engine": {"replicas": 2, "device": "cuda:1"}}, "--device cuda:1 names one of them"),
        ({"engine": {"replicas": "auto"}, "settings": {"shared": True}}, "in one process; leave"),
        (
            {
                "method": "best-of-n",
                "model": "openai:m",
                "endpoint": "http://h/v1",
                "engine": {"replicas": 2},
            },
            "--endpoint names a server that has one already",
        ),
        ({"engine": {"replicas": 0}}, "should be a number of at least 1, or auto"),
        ({"engine": {"replicas": "many"}}, "should be a number of at least 1, or auto"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_a_sentence(
    flags: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        settle(resolve({"method": "policy", **flags}))
