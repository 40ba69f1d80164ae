"""Replicas as Ray actors: two processes on this machine's cores, with a tiny model each."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

import fttt
from fttt.config import EngineSection, RunConfig, build, merge
from fttt.errors import UsageError
from fttt.experiment import cluster
from fttt.experiment.cluster import Cluster
from fttt.experiment.driver import Asking, Seat
from fttt.experiment.plan import Plan, plan_resume, settle
from fttt.experiment.replica import About, Fact, Replica
from fttt.experiment.runner import Cell, run_cells
from fttt.experiment.sweep import SweepConfig, run_sweep
from fttt.methods import MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.progress import Quiet
from fttt.store import Run
from fttt.testing import call, save_tiny_model
from fttt.testing.run_facts import journal_lines, trial_facts
from fttt.testing.scripted_server import ScriptedServer

pytestmark = [
    pytest.mark.skipif(not find_spec("ray"), reason="needs pip install 'fttt[scale]'"),
    pytest.mark.usefixtures("one_thread"),
    # of Ray itself, which leaves files and sockets to the end of the process
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUESTIONS, TRIALS = 6, 4


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A Ray that all tests of this module use, since its start takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "cores", lambda: 5)
        patch.setenv("OMP_NUM_THREADS", "1")
        with cluster._connection(EngineSection(device="cpu")):
            yield


@dataclass
class Crew:
    """Two replicas, which all tests share, and what was said of them."""

    load: cluster.Load
    notes: list[str]


@pytest.fixture(scope="module")
def crew(running: None) -> Iterator[Crew]:
    notes: list[str] = []
    with cluster.executors(EngineSection(device="cpu", replicas=2), notes.append) as load:
        yield Crew(load, notes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    line = '{"question": "Question %d?", "answer": "123456789"}\n'
    (folder / "questions.jsonl").write_text("".join(line % n for n in range(QUESTIONS)))
    return folder


def flags(model: Path, out: Path, *more: str, method: str = "fttt") -> list[str]:
    """A run of questions whose answers no random model hits upon."""
    return [
        *("run", method, "--model", str(model), "--device", "cpu"),
        *("--task", "jsonl", "--data-dir", str(model / "questions.jsonl"), "--verifier", "number"),
        *("--trials", str(TRIALS), "--max-new-tokens", "24", "--out", str(out), *more),
    ]


def actors() -> list[psutil.Process]:
    """The processes of replicas that this process started."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if "Replica" in "".join(process.cmdline())]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert call(*flags(model, out)) == 0
    return out


def test_two_replicas_make_the_trials_of_one_process(
    crew: Crew, model: Path, whole: Path, tmp_path: Path
) -> None:
    old = Run.open(whole)
    plan = plan_resume(old, old.config)
    run = run_cells([Cell(plan, tmp_path / "two")], crew.load(plan.config), Quiet())[0]
    assert trial_facts(run.path) == trial_facts(whole)
    assert journal_lines(run.path) == journal_lines(whole)
    assert len(run.environment["replicas"]) == 2
    assert not crew.notes


def test_a_sweep_shares_the_replicas(crew: Crew, model: Path, tmp_path: Path) -> None:
    base = {
        "model": str(model),
        "save_correct_cases": False,
        "data": {"data_dir": str(model / "questions.jsonl"), "options": {"verifier": "number"}},
        "budget": {"trials": 2},
        "sampling": {"max_new_tokens": 8},
        "engine": {"device": "cpu", "replicas": 2},
    }
    grid = {"methods": ["greedy", "best-of-n"], "tasks": ["jsonl"], "hard_only": True, "base": base}
    before = {process.pid for process in actors()}
    runs = run_sweep(build(SweepConfig, grid, "the test"), tmp_path / "grid", crew.load, Quiet())
    assert [len(run.trials) for run in runs] == [QUESTIONS, 2 * QUESTIONS]
    assert {process.pid for process in actors()} == before


def test_questions_from_python_have_the_same_trials(
    crew: Crew, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "executors", lambda *_: nullcontext(crew.load))
    wanted = "3"
    asked: dict[str, Any] = {
        "verify": lambda text: wanted in text, "model": str(model), "device": "cpu", "trials": 3,
        "max_new_tokens": 24, "method": BestOfN(MethodSettings()),
    }  # fmt: skip
    texts = [f"Question {n}?" for n in range(QUESTIONS)]
    two = fttt.solve_many(texts, replicas=2, **asked)
    here = fttt.solve_many(texts, **asked)
    assert [[(t.token_ids, t.verdict) for t in one.trials] for one in two] == [
        [(t.token_ids, t.verdict) for t in one.trials] for one in here
    ]
    assert len({one.solved for one in here}) == 2
    lock = threading.Lock()
    with pytest.raises(UsageError, match="verifier or a question cannot be sent to replicas"):
        fttt.solve_many(texts, replicas=2, **{**asked, "verify": lambda text: lock.locked()})
    assert not crew.notes


def test_a_killed_replica_is_replaced_and_nothing_is_lost(
    crew: Crew,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    old = Run.open(whole)
    plan = plan_resume(old, old.config)
    out, killed = tmp_path / "killed", list[int]()
    write = Asking.write

    def write_and_kill(asking: Asking, fact: Fact, seat: Seat) -> None:
        """The first that sends a whole trial dies, while it holds that trial's question."""
        write(asking, fact, seat)
        if fact.kind == "trial" and not killed:
            assert seat.replica is not None
            killed.append(seat.replica.about.pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Asking, "write", write_and_kill)
    run_cells([Cell(plan, out)], crew.load(plan.config), Quiet())
    (pid,) = killed
    assert trial_facts(out) == trial_facts(whole)
    assert journal_lines(out) == journal_lines(whole)
    died, end = crew.notes
    assert f"(process {pid}) died: its process ended, killed or out of memory; the " in died
    assert "what they asked was resumed, and no trial is missing" in end
    assert not "".join(capfd.readouterr())  # nothing of Ray's own


def test_what_a_replica_refuses_ends_in_its_sentence(
    crew: Crew, whole: Path, tmp_path: Path
) -> None:
    old = Run.open(whole)
    plan = plan_resume(old, old.config)
    longer = merge(plan.config.to_toml(), {"sampling": {"max_new_tokens": 99999}})
    plan = Plan(settle(build(RunConfig, longer, "the test")), plan.questions)
    with pytest.raises(UsageError, match="99999 is longer than the context"):
        run_cells([Cell(plan, tmp_path / "no")], crew.load(plan.config), Quiet())
    assert not (tmp_path / "no").exists()
    missing = merge(longer, {"model": str(tmp_path)})
    with pytest.raises(UsageError, match="model"):
        crew.load(build(RunConfig, missing, "the test"))


def test_a_cluster_out_of_reach_is_refused_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_REACH_SECONDS", 100.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert call(*flags(model, tmp_path / "no", "--ray-address", address)) == 2
    assert f"No Ray cluster answers at '{address}'" in capfd.readouterr().err
    assert call(*flags(model, tmp_path / "no", "--ray-address", "ray://there:1")) == 2
    assert "give HOST:PORT as `ray start --head` prints it" in capfd.readouterr().err
    other = ScriptedServer(lambda _: {})
    address = other.url.split("/")[2]
    assert call(*flags(model, tmp_path / "no", "--ray-address", address)) == 2
    other.stop()
    assert f"at '{address}' (something else listens there)" in capfd.readouterr().err


def test_too_many_replicas_are_refused_before_ray_is_started(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "cores", lambda: 3)
    monkeypatch.setattr(cluster, "_connection", lambda _: pytest.fail("Ray was started"))
    assert call(*flags(model, tmp_path / "no", "--replicas", "4")) == 2
    assert "needs as many free processor cores, and there are 3" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("module", "sentence"),
    [("ray", "is not installed"), ("google", r"cannot be imported \(No module named 'google'\)")],
)
def test_a_missing_ray_is_refused(
    module: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        if name == "ray":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return import_module(name)

    monkeypatch.setattr(cluster, "import_module", missing)
    with (
        pytest.raises(UsageError, match=rf"need Ray, which {sentence}; .*fttt\[scale\]"),
        Cluster.connected(EngineSection(replicas=2)),
    ):
        pass


@pytest.mark.parametrize(
    ("versions", "unseen", "sentence"),
    [
        ({"torch": "1.0"}, (), "on far has torch 1.0 and this process 2"),
        ({"the code of fttt": "0"}, (), "has the code of fttt 0 and this process"),
        ({}, ("/data/model",), "on far cannot see '/data/model'; put it where all machines see it"),
    ],
)
def test_a_replica_that_differs_is_refused(
    versions: dict[str, str], unseen: tuple[str, ...], sentence: str
) -> None:
    about = About("far", 1, {**Replica.versions(), **versions}, unseen)
    with pytest.raises(UsageError, match=sentence):
        cluster._check_same(about)


@pytest.mark.parametrize(
    ("engine", "there", "found"),
    [
        ({"replicas": "auto"}, {"GPU": 8, "CPU": 64}, (8, 8)),
        ({"replicas": 4}, {"GPU": 8, "CPU": 64}, (4, 16)),
        ({"replicas": 4, "device": "cpu"}, {"GPU": 8, "CPU": 64}, (4, 16)),
        ({"replicas": 9}, {"GPU": 8, "CPU": 64}, "needs as many free GPUs, and there are 8"),
        ({"replicas": 2}, {"GPU": 1, "CPU": 64}, "needs as many free GPUs, and there is 1"),
        ({"replicas": 2, "device": "cuda"}, {"CPU": 64}, "needs GPUs and Ray finds none"),
        ({"replicas": "auto", "gpus_per_replica": 0.5}, {"GPU": 2, "CPU": 64}, (4, 16)),
        ({"replicas": 3, "gpus_per_replica": 0.25}, {"GPU": 1, "CPU": 2}, (3, 1)),
        ({"replicas": "auto", "gpus_per_replica": 0.3}, {"GPU": 3, "CPU": 64}, (9, 7)),
        ({"replicas": "auto", "gpus_per_replica": 0.1}, {"GPU": 1.3, "CPU": 64}, (13, 4)),
        ({"replicas": "auto"}, {"GPU": 0.5, "CPU": 64}, "and there are 0; wait until one is free"),
        (
            {"replicas": 3, "gpus_per_replica": 0.5},
            {"GPU": 1, "CPU": 64},
            r"needs as many free parts of 0\.5 of a GPU, and there are 2; use --replicas 2 or auto",
        ),
        (
            {"replicas": "auto", "gpus_per_replica": 0.5},
            {"CPU": 64},
            "divides GPUs, and there are none to run on",
        ),
    ],
)
def test_replicas_divide_what_is_there(
    engine: dict[str, Any], there: dict[str, float], found: Any
) -> None:
    section = EngineSection(**engine)
    if isinstance(found, str):
        with pytest.raises(UsageError, match=found):
            cluster.divide(section, there)
        return
    count, options = cluster.divide(section, there)
    assert (count, options["num_cpus"]) == found
    on_gpus = "GPU" in there and section.device != "cpu"
    assert options["num_gpus"] == (section.gpus_per_replica if on_gpus else 0)
