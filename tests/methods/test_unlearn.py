"""A wrong attempt's probable tokens are pushed down, and the adapter is reset past the bound."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fttt.config import build
from fttt.errors import UsageError
from fttt.methods.base import MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.methods.unlearn import Unlearn, UnlearnSettings
from fttt.report.text import show_runs
from fttt.testing import play
from fttt.types import Trial

pytestmark = pytest.mark.usefixtures("one_thread")


def wrong(_: str) -> bool:
    return False


def unlearn(**settings: Any) -> Unlearn:
    return Unlearn(UnlearnSettings.model_validate({"dropout": 0.0, "lr": 1e-3, **settings}))


@pytest.mark.parametrize("form", ["nll", "unlikelihood"])
@pytest.mark.parametrize("forking", [False, True])
def test_the_loss_is_that_of_the_probable_tokens(
    form: str, forking: bool, play_on_tiny: Any, reference: Any, tmp_path: Path
) -> None:
    run, recorded = play_on_tiny(unlearn(form=form, forking=forking), tmp_path / "run", wrong)
    for trial in run.trials:
        if trial.trial != 0:
            continue
        logs = reference.logs(trial.question_id, (), trial.token_ids)
        p = logs.gather(1, torch.tensor(trial.token_ids)[:, None])[:, 0].exp()
        assert 0 < (p > 0.1).sum() < len(p), "some tokens are probable, and some are not"
        each = p.log() if form == "nll" else -(1 - p).log()
        weight = (p > 0.1) * (
            (1 - p.float()) if forking else 1.0
        )  # the first step begins at the base
        assert trial.loss == pytest.approx(float((each * weight).sum() / len(p)), rel=1e-3)
        assert trial.usage.trained_tokens == int((weight.float() > 0).sum())
        assert trial.divergence is not None
        assert 0 < trial.divergence < 1
        assert not trial.reset
    assert len(recorded.steps) == 2, "one a question; the last trial teaches nothing"


def test_without_a_mask_all_tokens_count() -> None:
    (request,) = play(unlearn(mask=0.0), ["1", "7"], trials=4).engine.trainings
    (target,) = request.lessons[0].targets
    assert target.weights == (-1 / len(target.token_ids),) * len(target.token_ids)


def test_an_attempt_of_improbable_tokens_teaches_nothing() -> None:
    scene = play(unlearn(mask=0.7), ["1", "7"], trials=4)  # the scripted engine's are e^-0.5
    assert not scene.engine.trainings
    assert scene.trials[0].loss is None


def draws(trials: tuple[Trial, ...]) -> list[tuple[int, ...]]:
    return [trial.token_ids for trial in trials]


def test_past_the_bound_the_adapter_is_fresh_again_which_is_counted_and_said(
    play_on_tiny: Any, tmp_path: Path
) -> None:
    frozen, _ = play_on_tiny(BestOfN(MethodSettings()), tmp_path / "frozen", wrong, trials=4)
    free, _ = play_on_tiny(unlearn(lr=0.3, bound=0), tmp_path / "free", wrong, trials=4)
    bound, recorded = play_on_tiny(unlearn(lr=0.3, bound=0.01), tmp_path / "b", wrong, trials=4)
    assert draws(free.trials) != draws(frozen.trials), "this rate changes what is drawn"
    assert not any(trial.reset for trial in free.trials)
    assert draws(bound.trials) == draws(frozen.trials), "fresh weights write as the base model does"
    taught = [trial for trial in bound.trials if trial.trial < 3]
    assert all(trial.reset and (trial.divergence or 0) > 0.01 for trial in taught)
    assert [trial.reset for trial in bound.trials if trial.trial == 3] == [False, False]
    assert len({id(request.adapter) for request, _ in recorded.steps}) == 6, "one a step"
    assert bound.summary["resets"] == 6
    assert bound.summary["divergence"]["max"] >= bound.summary["divergence"]["mean"] > 0.01
    out = io.StringIO()
    show_runs([bound], Console(file=out))
    assert "adapters were reset 6 times, of 2 questions" in " ".join(out.getvalue().split())


def test_bad_settings_are_named() -> None:
    for name, value in [("mask", 1.0), ("form", "down"), ("bound", -1), ("lr", float("inf"))]:
        with pytest.raises(UsageError, match=f"'{name}' in the settings"):
            build(UnlearnSettings, {name: value}, "the settings")
