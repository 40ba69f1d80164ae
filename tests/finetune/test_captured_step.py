"""Replayed training passes beside plain ones, with a stand-in for a GPU's graphs."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from fttt.finetune import captured_step, solution_trainer
from fttt.finetune import train as train_module
from fttt.finetune.captured_step import CapturedSteps
from fttt.finetune.metadata import METHODS
from fttt.finetune.packing import PaddedPass, SampleGroup
from fttt.finetune.train import train
from fttt.progress import StepProgress

FEW = {"samples": 5, "max_steps": 9, "every": 3, "lr": 1e-2}


class Way:
    """How steps run: by the usual path, on padded tensors, or recorded and replayed."""

    def __init__(self, patch: pytest.MonkeyPatch, recorder: Any) -> None:
        self._patch, self._make = patch, recorder
        self.recorders: list[Any] = []
        self.losses: list[float] = []
        patch.setattr(StepProgress, "stepped", lambda _, step, loss, rate: self._note(loss))

    def _note(self, loss: float) -> None:
        self.losses.append(loss)

    def _record(self, step: Any) -> Any:
        self.recorders.append(self._make())
        return self.recorders[-1](step)

    def take(self, name: str, *, after: int = 0) -> None:
        """Let trainings from now on run in this way."""
        self.recorders.clear()
        self.losses.clear()
        patch = self._patch
        patch.setattr(solution_trainer, "captures_steps", lambda *_: name != "plain")
        steps = partial(CapturedSteps, capture=lambda: self._record)
        patch.setattr(solution_trainer, "CapturedSteps", steps)
        patch.setattr(captured_step, "AFTER", after if name == "replayed" else 10**6)

    @property
    def replays(self) -> int:
        return sum(one.replays for one in self.recorders)


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch, graph_recorder: Any) -> Way:
    return Way(monkeypatch, graph_recorder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "prefix"])
def test_replayed_steps_learn_what_plain_ones_do(
    method: str, tmp_path: Path, run_train: Any, way: Way
) -> None:
    more: dict[str, Any] = {"training": FEW}
    if method == "lora":
        more["settings"] = {"dropout": 0.0}
    found = {}
    for name in ("plain", "replayed"):
        way.take(name)
        info = run_train(method, tmp_path / name, **more)
        found[name] = [*way.losses], info.validation_loss
    assert way.replays >= 5
    assert found["replayed"][0] == pytest.approx(found["plain"][0], rel=1e-4)
    assert found["replayed"][1] == pytest.approx(found["plain"][1], rel=1e-4)
    for key, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "replayed")[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])  # with dropout
def test_what_is_replayed_is_what_the_same_padded_passes_compute(
    method: str, tmp_path: Path, run_train: Any, way: Way
) -> None:
    cut = {"training": {**FEW, "batch_tokens": 150}}  # several passes a step
    for name, after in (("padded", 0), ("replayed", 1)):
        way.take(name, after=after)
        run_train(method, tmp_path / name, **cut)
    assert way.replays >= 5
    for key, value in weights(tmp_path / "padded").items():
        assert torch.equal(weights(tmp_path / "replayed")[key], value), key


def test_a_resumed_training_ends_where_one_that_was_never_stopped_does(
    tmp_path: Path, make_plan: Any, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    monkeypatch.setitem(solution_trainer.LATE, "cpu", 1)  # as on a GPU
    plan = make_plan("lora", training=FEW)
    way.take("replayed", after=1)
    train(plan, tmp_path / "whole")
    whole = [*way.losses]
    assert len(whole) == 9
    callbacks = train_module._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_callbacks", lambda *a: [*callbacks(*a), Kill()])
        with pytest.raises(KeyboardInterrupt):
            train(plan, tmp_path / "stopped")
    assert way.losses[9:] == whole[:6]  # the seventh was taken, and not read yet
    way.losses.clear()
    train(plan, tmp_path / "stopped", resume=True)
    assert way.losses == whole[6:]
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "stopped")[key], value), key


def test_large_passes_run_plainly_beside_replayed_ones(
    tmp_path: Path, run_train: Any, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = {"training": {**FEW, "batch_tokens": 150}}
    way.take("plain")
    run_train("ia3", tmp_path / "plain", **cut)
    steps, large = CapturedSteps.run, cycle([True, False])

    def every_other(self: CapturedSteps, group: SampleGroup, scale: float) -> Any:
        return None if next(large) else steps(self, group, scale)

    monkeypatch.setattr(CapturedSteps, "run", every_other)
    way.take("replayed")
    run_train("ia3", tmp_path / "mixed", **cut)
    assert way.replays >= 3
    for key, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "mixed")[key], value, rtol=1e-3, atol=1e-4)


def test_a_model_that_asks_the_host_is_not_captured(
    tmp_path: Path, run_train: Any, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = PaddedPass.loss

    def asks(self: Any, logits_MV: torch.Tensor) -> torch.Tensor:
        assert logits_MV.sum().item() != 0.123
        return loss(self, logits_MV)

    monkeypatch.setattr(PaddedPass, "loss", asks)
    for name in ("padded", "replayed"):
        way.take(name)
        run_train("full", tmp_path / name, training=FEW)
    assert len(way.recorders) == 1
    assert way.replays == 0
    for key, value in weights(tmp_path / "padded").items():
        assert torch.equal(weights(tmp_path / "replayed")[key], value), key
