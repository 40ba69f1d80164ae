"""A conversation goes on from the keys and values of its last turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fttt.engine import jobs
from fttt.experiment.plan import Plan
from fttt.experiment.progress import Quiet
from fttt.experiment.runner import Cell, run_cells
from fttt.methods.base import Method, MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.methods.fttt import FTTT, FTTTSettings
from fttt.methods.revision import Revision, RevisionSettings
from fttt.methods.self_refine import SelfRefine, SelfRefineSettings
from fttt.testing import FakeEngine, play, tiny_model
from fttt.types import Trial

REVISION = Revision(RevisionSettings(feedback="Wrong."))
SELF_REFINE = SelfRefine(SelfRefineSettings(critique_tokens=9))


def followed(engine: FakeEngine) -> list[int | None]:
    """Which kept sequence each generation went on from, by number."""
    requests = engine.generations
    assert all(kept.closed for kept in engine.kept)
    return [None if r.follows is None else engine.kept.index(r.follows) for r in requests]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (REVISION, [None, 0, 1, 2]),
        # an attempt, its critique, the refined attempt, whose critique knows nothing of the first
        (SELF_REFINE, [None, 0, 1, None, 3, None, 5]),
        (BestOfN(MethodSettings()), [None] * 4),
        # an attempt's keys are its adapter's, and the critique is the base model's
        (FTTT(FTTTSettings(reflection=True)), [None] * 7),
    ],
)
def test_a_turn_goes_on_from_the_one_that_it_begins_with(
    method: Method, expected: list[int | None]
) -> None:
    engine = play(method, lambda *_: "1", trials=4).engine
    assert followed(engine)[: len(expected)] == expected


def test_what_a_conversation_has_left_out_is_let_go() -> None:
    whole = play(REVISION, lambda *_: "1", trials=6).engine
    prompts = [len(request.prompt_ids) for request in whole.generations]
    short = play(
        REVISION, lambda *_: "1", trials=6, max_new_tokens=16, max_length=prompts[2] + 16
    ).engine
    assert followed(short) == [None, 0, 1, None, None, None]


def test_methods_without_a_conversation_hold_nothing() -> None:
    engine = play(BestOfN(MethodSettings()), lambda *_: "1", trials=3).engine
    assert not engine.kept


@pytest.mark.parametrize("method", ["revision", "self-refine"])
def test_the_run_is_the_same_as_without(
    method: str, plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, verdicts and usage, whose prompt tokens are those of the whole prompt."""
    made = plan(method, sampling={"max_new_tokens": 12}, model="smollm2-135m")

    def facts(folder: str) -> list[Trial]:
        (run,) = run_cells([Cell(made, tmp_path / folder)], tiny_model(max_context=4096), Quiet())
        trials = sorted(run.trials, key=lambda t: (t.question_id, t.trial))
        return [replace(t, usage=replace(t.usage, seconds=0.0)) for t in trials]

    taken: list[bool] = []
    follow = jobs._followed
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "_followed", lambda r: taken.append(bool(follow(r))) or follow(r))
        reused = facts("reused")
    assert any(taken)
    monkeypatch.setattr(jobs, "_followed", lambda request: None)
    assert facts("computed") == reused
