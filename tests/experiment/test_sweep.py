"""A grid of runs in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fttt.config import build
from fttt.engine.request import GenerateRequest
from fttt.errors import RunError, UsageError
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.sweep import DEMO, Grid, SweepConfig, run_sweep
from fttt.progress import Quiet
from fttt.store import Run
from fttt.testing import FakeEngine, fake_model

BASE = {"data": {"limit": 6}, "budget": {"trials": 2}, "sampling": {"max_new_tokens": 32}}


def config(**values: Any) -> SweepConfig:
    return build(SweepConfig, {"base": BASE, **values}, "the test")


def write(conversation: str, request: GenerateRequest) -> str:
    return f"The final answer is {(len(conversation) + request.noise_key) % 60}."


class Play:
    """Runs sweeps on scripted engines and counts what was loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loads = 0
        self.engines: list[FakeEngine] = []
        self.script: Any = write

    def __call__(self, sweep: SweepConfig) -> list[Run]:
        return run_sweep(sweep, self.folder, self._load, Quiet())

    def _load(self, _config: object) -> Any:
        self.loads += 1
        return LocalExecutor(fake_model(100_000), self._engine)

    def _engine(self, _plans: Sequence[object], _loaded: object) -> FakeEngine:
        self.engines.append(FakeEngine(self.script))
        return self.engines[-1]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path / "sweep")


def test_a_grid_is_methods_by_tasks_by_seeds_by_settings(tmp_path: Path) -> None:
    sweep = config(
        methods=["greedy", "best-of-n", {"method": "fttt", "label": "hot", "settings": {"lr": 1}}],
        seeds=[1, 2],
        vary=[{"label": "t0.5", "sampling": {"temperature": 0.5}}, {}],
    )
    places = Grid(sweep, tmp_path).places
    assert [place.name for place in places] == [
        "greedy-arithmetic-t0.5",  # draws nothing, so one seed will do
        "best-of-n-arithmetic-t0.5-s1",
        "best-of-n-arithmetic-t0.5-s2",
        "hot-arithmetic-t0.5-s1",
        "hot-arithmetic-t0.5-s2",
        "greedy-arithmetic",
        "best-of-n-arithmetic-s1",
        "best-of-n-arithmetic-s2",
        "hot-arithmetic-s1",
        "hot-arithmetic-s2",
    ]
    hot = places[4].config
    assert (hot.seed, hot.settings["lr"], hot.sampling.temperature) == (2, 1, 0.5)
    assert hot.sampling.max_new_tokens == 32


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"methods": ["fttt", "fttt"]}, "Two runs of the sweep are called 'fttt-arithmetic-s42'"),
        ({"methods": ["fttt", {"method": "greedy", "model": "x/y"}]}, "A sweep loads one model"),
        ({"methods": []}, "'methods' in the test cannot be"),
        ({"method": ["fttt"], "methods": ["fttt"]}, r"Unknown key 'method' in the test; did you"),
        ({"methods": [{"method": "fttt", "sampling": {"temprature": 1}}]}, "did you mean"),
        (
            {
                "methods": [
                    {"method": "best-of-n", "engine": {"replicas": 2}},
                    {"method": "fttt", "engine": {"replicas": 2, "gpus_per_replica": 0.5}},
                ]
            },
            "share the replicas; give replicas, gpus_per_replica and ray_address once",
        ),
    ],
)
def test_faults_are_named(values: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        Grid(config(**values), tmp_path)


def test_all_cells_share_one_engine_and_one_model(play: Play) -> None:
    runs = play(config(methods=["best-of-n", "fttt"], seeds=[1, 2]))
    assert play.loads == 1
    assert len(play.engines) == 1
    assert [(run.method, run.seed) for run in runs] == [
        ("best-of-n", 1), ("best-of-n", 2), ("fttt", 1), ("fttt", 2),
    ]  # fmt: skip
    assert all(run.finished for run in runs)
    assert {run.path.parent for run in runs} == {play.folder}


def test_the_runs_of_a_sweep_share_the_processes_of_their_verifier(
    play: Play, tmp_path: Path
) -> None:
    """A zygote and a worker a processor for each of many runs brought a machine to a stop."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(f'{{"question": "{n}?", "answer": "60"}}\n' for n in range(3)))
    before, most = children(), 0

    def counts(conversation: str, request: GenerateRequest) -> str:
        nonlocal most
        most = max(most, len(children() - before))
        return write(conversation, request)

    play.script = counts  # by its last call, each run has checked an answer
    data = {"data_dir": str(file), "options": {"verifier": "regex:the answer is 6[01]"}}
    task = {"task": "jsonl", "data": data}
    runs = play(config(methods=["best-of-n"], tasks=[task], seeds=[1, 2, 3, 4]))
    assert [len(run.trials) for run in runs] == [6] * 4
    assert most == 1
    assert children() - before == set()


def children() -> set[int]:
    """Processes that this one has started."""
    found = set[int]()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found |= set(map(int, file.read_text().split()))
    return found


def test_only_hard_questions_go_on_after_greedy(play: Play) -> None:
    runs = play(config(methods=["best-of-n"], hard_only=True, hard_limit=3))
    greedy, best = runs
    assert (greedy.method, best.method) == ("greedy", "best-of-n")
    failed = [record.question.id for record in greedy.records if not record.solved]
    assert [question.id for question in best.questions] == failed[:3]
    assert best.config["data"]["questions"] == failed[:3]  # so that its recipe asks the same


def test_methods_have_nothing_to_do_where_greedy_solves_all(play: Play) -> None:
    golds: dict[str, str] = {}

    def right(conversation: str, _request: GenerateRequest) -> str:
        question = next(text for text in golds if text in conversation)
        return f"The final answer is {golds[question]}."

    from fttt.tasks import TaskOptions, get_task

    golds.update((q.prompt, str(q.gold)) for q in get_task("arithmetic").load(TaskOptions()))
    play.script = right
    runs = play(config(methods=["fttt"], hard_only=True))
    assert [run.method for run in runs] == ["greedy"]


def test_a_stopped_sweep_goes_on(play: Play) -> None:
    calls = 0

    def dies(conversation: str, request: GenerateRequest) -> str:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise RunError("out of memory.")
        return write(conversation, request)

    sweep = config(methods=["greedy", "best-of-n", "fttt"], hard_only=True)
    whole = Play(play.folder.with_name("whole"))(sweep)
    play.script = dies
    with pytest.raises(RunError, match="out of memory"):
        play(sweep)
    play.script = write
    resumed = play(sweep)
    assert [[t.completion for t in run.trials] for run in resumed] == [
        [t.completion for t in run.trials] for run in whole
    ]
    loads = play.loads
    assert play(sweep)[0].trials == resumed[0].trials
    assert play.loads == loads  # nothing is owed, so no model is loaded


def test_a_folder_of_other_things_is_refused(play: Play) -> None:
    play.folder.mkdir(parents=True)
    (play.folder / "sweep.toml.partial").touch()  # a beginning that was killed
    (play.folder / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"holds other things \(notes\.txt\) and no sweep"):
        play(config(methods=["best-of-n"]))
    (play.folder / "notes.txt").unlink()
    play(config(methods=["best-of-n"]))


def test_a_folder_of_another_sweep_is_refused(play: Play) -> None:
    play(config(methods=["best-of-n"]))
    with pytest.raises(UsageError, match="holds another sweep"):
        play(config(methods=["best-of-n"], seeds=[7]))


def test_a_sweep_file_that_was_cut_off_is_one_sentence(play: Play) -> None:
    play(config(methods=["best-of-n"]))
    (play.folder / "sweep.toml").write_text('methods = ["best')
    with pytest.raises(UsageError, match=r"sweep\.toml' cannot be read: .*; remove it"):
        play(config(methods=["best-of-n"]))


def test_a_sweep_goes_on_with_fewer_sequences_at_once(play: Play) -> None:
    (run,) = play(config(methods=["best-of-n"]))
    (again,) = play(config(methods=["best-of-n"], base={**BASE, "engine": {"batch_size": 2}}))
    assert again.trials == run.trials


def test_a_run_whose_beginning_was_killed_begins_again(play: Play) -> None:
    (run,) = play(config(methods=["best-of-n"]))
    torn = run.path
    shutil.rmtree(torn)
    torn.mkdir()
    (torn / "questions.jsonl.partial").write_text("")
    (torn / "environment.json").write_text(json.dumps({}))
    (again,) = play(config(methods=["best-of-n"]))
    assert again.finished


def test_the_demo_draws_the_frozen_model_again_and_learns_from_scores(tmp_path: Path) -> None:
    frozen, learner = (place.config for place in Grid(DEMO, tmp_path).places)
    assert (frozen.method, learner.method) == ("best-of-n", "policy")
    assert learner.settings["shared"]
    for name in ("model", "task", "seed", "data", "budget", "sampling", "engine"):
        assert getattr(frozen, name) == getattr(learner, name)
    assert (frozen.model, frozen.budget.trials) == ("smollm2-135m", 40)
