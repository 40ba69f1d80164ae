"""Runs: many questions at once, stopped after any write and resumed."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fttt.engine.request import GenerateRequest
from fttt.errors import RunError, UsageError
from fttt.experiment.plan import Plan, check_fits
from fttt.experiment.runner import Cell
from fttt.store import Run
from fttt.store.line_file import LineFile
from fttt.testing import FakeEngine, fake_model
from fttt.types import Trial, Usage

MakePlan = Callable[..., Plan]
Play = Callable[..., Run]
METHODS = [
    "greedy", "best-of-n", "sample", "self-consistency", "beam-search", "revision", "self-refine",
    "fttt",
]  # fmt: skip
SETTINGS = {"fttt": {"reflection": True}}


def facts(run: Run) -> list[Trial]:
    """The trials without what depends on the clock."""
    return [replace(t, usage=replace(t.usage, seconds=0.0)) for t in run.trials]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_gives_everything_back(
    method: str, plan: MakePlan, play_plan: Play
) -> None:
    engines: list[FakeEngine] = []
    run = play_plan(plan(method), engines=engines)
    assert run.finished
    assert run.summary["questions"] == 4
    assert run.summary["trials_total"] == len(run.trials)
    assert all(history.done for history in run.histories.values())
    (engine,) = engines
    assert engine.closed
    assert all(thing.closed for thing in (*engine.kept, *engine.slots))
    usage = sum((trial.usage for trial in run.trials), Usage())
    assert usage.generations == engine.completions
    assert usage.generated_tokens == engine.generated_tokens


@pytest.mark.usefixtures("nothing_frozen")
def test_the_collector_passes_over_older_objects_while_a_run_lasts(
    plan: MakePlan, play_plan: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, before = len(gc.get_objects()), gc.get_threshold()
    append, seen = LineFile.append, []

    def notes(file: LineFile, record: Any) -> None:
        if file.path.name == "events.jsonl" and "generation" in str(record):
            seen.append((gc.get_freeze_count(), gc.get_threshold()[0]))
        append(file, record)

    monkeypatch.setattr(LineFile, "append", notes)
    play_plan(plan("greedy"))
    assert seen
    assert all(frozen >= objects for frozen, _ in seen)
    assert all(threshold > before[0] for _, threshold in seen)
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_after_any_write_ends_as_if_it_had_not(
    method: str, plan: MakePlan, play_plan: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.get(method, {})
    made = plan(method, trials=3, count=3, settings=settings)
    engines: list[FakeEngine] = []
    whole = play_plan(made, "whole", engines=engines)
    writes = sum(1 for name in ("events", "trials") for _ in open_lines(whole, name))
    append = LineFile.append
    for stop in range(writes):
        count = 0

        def dies(file: LineFile, record: Any, stop: int = stop) -> None:
            nonlocal count
            count += 1
            if count > stop:
                raise RuntimeError("killed")
            append(file, record)

        with monkeypatch.context() as patch:
            patch.setattr(LineFile, "append", dies)
            with pytest.raises(RuntimeError, match="killed"):
                play_plan(made, f"stop-{stop}")
        again: list[FakeEngine] = []
        resumed = play_plan(made, f"stop-{stop}", resume=True, engines=again)
        assert facts(resumed) == facts(whole)
        # nothing that had been generated is generated again, and nothing is written twice
        events = open_lines(resumed, "events")
        done = [(e["question_id"], e["generation"]) for e in events if e["event"] == "generation"]
        assert len(set(done)) == engines[0].completions
        assert len(done) == len(set(done)) or made.method.searches
        assert again[0].completions <= engines[0].completions
        ended = [(t["question_id"], t["trial"]) for t in open_lines(resumed, "trials")]
        assert len(ended) == len(set(ended))


def test_a_search_is_made_again_only_where_beams_are_missing(
    plan: MakePlan, play_plan: Play
) -> None:
    made = plan("beam-search", trials=3, count=1)
    engines: list[FakeEngine] = []
    whole = play_plan(made, "whole", engines=engines)
    assert len(engines[0].searches) == 1
    for kept in range(4):
        folder = whole.path.with_name(f"kept-{kept}")
        shutil.copytree(whole.path, folder)
        (folder / "summary.json").unlink()
        (folder / "trials.jsonl").unlink()
        events = folder / "events.jsonl"
        events.write_text("".join(events.read_text().splitlines(keepends=True)[:kept]))
        lines = [{**line, "text": line["completion"]} for line in open_lines(whole, "trials")]
        pending = folder / "pending.jsonl"
        pending.write_text("".join(json.dumps(line) + "\n" for line in lines[:kept]))
        again: list[FakeEngine] = []
        resumed = play_plan(made, folder.name, resume=True, engines=again)
        assert len(again[0].searches) == (kept < 3)
        assert facts(resumed) == facts(whole)


def open_lines(run: Run, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / f"{name}.jsonl").read_text().splitlines()]


def test_a_folder_killed_when_events_held_the_answers_is_resumed(
    plan: MakePlan, play_plan: Play, tmp_path: Path
) -> None:
    """Written on 2026-11-28, before answers were kept once; as version 0.1 wrote it."""
    made = plan("fttt", trials=3, count=2, settings={"reflection": True})
    whole = play_plan(made, "whole")
    shutil.copytree(Path(__file__).parent / "killed_run", tmp_path / "killed")
    before = Run.open(tmp_path / "killed")
    assert [len(record.trials) for record in before.records] == [1, 1]
    assert [len(history.generations) for history in before.histories.values()] == [4, 3]
    engines: list[FakeEngine] = []
    resumed = play_plan(made, "killed", resume=True, engines=engines)
    assert facts(resumed) == facts(whole)
    assert engines[0].completions == 3  # a critique, and each question's last answer
    assert not (resumed.path / "pending.jsonl").exists()


def test_a_finished_run_asks_nothing_again(plan: MakePlan, play_plan: Play) -> None:
    first = play_plan(plan("fttt"))
    engines: list[FakeEngine] = []
    again = play_plan(plan("fttt"), resume=True, engines=engines)
    assert not engines[0].generations
    assert not engines[0].trainings
    assert again.trials == first.trials


def test_neighbours_change_nothing(plan: MakePlan, play_plan: Play) -> None:
    together = play_plan(plan("fttt", count=4), "together")
    alone = play_plan(plan("fttt", count=1), "alone")
    assert facts(alone) == [t for t in facts(together) if t.question_id == "tiny/0"]


def test_a_foreign_journal_is_refused(plan: MakePlan, play_plan: Play) -> None:
    made = plan("best-of-n", trials=2, count=1)
    run = play_plan(made)
    (run.path / "summary.json").unlink()
    path = run.path / "events.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"done"' not in line]
    lines[0] = lines[0].replace('"prompt_tokens":', '"prompt_tokens":9')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match="made by another version or from other data"):
        play_plan(made, resume=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(
    plan: MakePlan, play_plan: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan("fttt")
    written = 0

    def full(fd: int, data: bytes) -> int:
        nonlocal written
        written += 1
        if written == 9:
            return write(fd, data[:10])  # a part still fits ...
        if written > 9:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    import os

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("fttt.store.line_file.os.write", full)
        with pytest.raises(RunError, match=r"Cannot write '.*': No space left on device"):
            play_plan(made)
    resumed = play_plan(made, resume=True)
    assert facts(resumed) == facts(play_plan(made, "whole"))


def test_an_error_of_the_engine_stops_the_others(plan: MakePlan, play_plan: Play) -> None:
    calls = 0

    def script(conversation: str, request: GenerateRequest) -> str:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise RunError("cuda ran out of memory.")
        return "3"

    with pytest.raises(RunError, match="cuda ran out of memory"):
        play_plan(plan("best-of-n", trials=50), script=script)
    assert calls < 20


def test_cells_share_one_engine_unless_their_adapters_differ(
    plan: MakePlan, play_all: Callable[..., list[Run]], tmp_path: Path
) -> None:
    cells = [
        Cell(plan("best-of-n"), tmp_path / "a"),
        Cell(plan("fttt"), tmp_path / "b"),
        Cell(plan("fttt", settings={"lr": 1e-3}), tmp_path / "c"),
    ]
    engines: list[FakeEngine] = []
    runs = play_all(cells, engines)
    assert [run.path.name for run in runs] == ["a", "b", "c"]
    assert [{slot.spec.lr for slot in engine.slots} for engine in engines] == [{1e-5}, {1e-3}]
    assert len(engines[0].generations) == len(runs[0].trials) + len(runs[1].trials)


def test_greedy_saves_what_it_solved(
    plan: MakePlan, play_plan: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = play_plan(plan("greedy"), script=lambda c, _: "3" if "number 3" in c else "0")
    path = tmp_path / "metadata" / "smollm2-135m_arithmetic_correct_cases.json"
    assert json.loads(path.read_text()) == ["tiny/0", "tiny/3"]
    assert run.summary["solved"] == 2
    assert run.summary["accuracy_at"] == {"1": 0.5}
    play_plan(plan("best-of-n"), "other")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_question_longer_than_the_context_is_named(
    plan: MakePlan, play_plan: Play, tmp_path: Path
) -> None:
    made = plan("best-of-n", sampling={"max_new_tokens": 100})
    prompt = len(fake_model().chat.prompt_ids(made.questions[0].prompt))
    assert check_fits(made, fake_model(max_context=prompt + 100)) == prompt + 100
    with pytest.raises(
        UsageError, match=r"'tiny/0' has \d+ tokens.*--max-new-tokens 100 is longer"
    ):
        check_fits(made, fake_model(max_context=prompt + 99))


def test_rows_hold_the_methods_longest_conversation(plan: MakePlan) -> None:
    made = plan("revision", sampling={"max_new_tokens": 100}, settings={"attempts": 2})
    chat = fake_model().chat
    prompt = len(chat.prompt_ids(made.questions[0].prompt))
    turn = len(chat.turn_ids("Your answer is incorrect. Please try again."))
    assert check_fits(made, fake_model(max_context=4096)) == prompt + 200 + turn
    assert check_fits(made, fake_model(max_context=200)) == 200


def test_questions_run_at_once(plan: MakePlan, play_plan: Play) -> None:
    waiting = 0
    all_wait = asyncio.Event()

    class Slow(FakeEngine):
        async def generate(self, request: GenerateRequest) -> Any:
            nonlocal waiting
            waiting += 1
            if waiting == 10:
                all_wait.set()
            async with asyncio.timeout(60):
                await all_wait.wait()
            return await super().generate(request)

    from fttt.experiment.executor import LocalExecutor
    from fttt.experiment.runner import run_cells
    from fttt.progress import Quiet

    folder = play_plan(plan("greedy"), "first").path.with_name("slow")
    run_cells(
        [Cell(plan("best-of-n", count=10), folder)],
        LocalExecutor(fake_model(), lambda *_: Slow(lambda *_: "3")),
        Quiet(),
    )
    assert all_wait.is_set()
