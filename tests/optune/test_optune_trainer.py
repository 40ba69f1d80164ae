"""Training on a tiny model: killed and resumed, and by two processes as by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fttt.config import resolve, to_toml
from fttt.config.training_configs import OpTuneConfig
from fttt.errors import RunError, UsageError
from fttt.experiment.executor import LocalExecutor
from fttt.experiment.plan import plan_run, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.models import load_model
from fttt.optune import load_checkpoint, read_info
from fttt.optune.gradient import Sums
from fttt.optune.optune_plan import check_resumable, plan_training, read_settings
from fttt.optune.optune_trainer import OpTuneTrainer, ProcessGroup, TrainingResult, learning_rate
from fttt.progress import Quiet, StepProgress
from fttt.testing import save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two attempts at each of eight training questions."""
    root = tmp_path_factory.mktemp("attempts")
    model = str(save_tiny_model(root / "tiny", layers=3))
    plan = plan_run(settle(resolve(
            {
                "method": "sample", "model": model, "task": "arithmetic",
                "data": {"split": "train", "limit": 8}, "budget": {"trials": 2},
                "sampling": {"max_new_tokens": 12, "temperature": 1.0},
                "engine": {"device": "cpu"},
            }
        )))  # fmt: skip
    executor = LocalExecutor(load_model(model, device="cpu"))
    run_cells([Cell(plan, root / "run")], executor, Quiet())
    return root / "run"


def settings(attempts: Path, **more: Any) -> OpTuneConfig:
    given = {
        "attempts_from": attempts, "window": 3, "epochs": 2, "held_out": 0.2, "rank": 4,
        "lr": 1e-3, "alpha": 1e-3, "dropout": 0.2, "checkpoint_every": 3, "validate_every": 4,
        "tracker": "none", "device": "cpu",
    }  # fmt: skip
    return OpTuneConfig.model_validate(given | more)


def trainer(attempts: Path, folder: Path, **more: Any) -> OpTuneTrainer:
    config = settings(attempts, **more)
    plan = plan_training(config)
    loaded = load_model(plan.model, device="cpu")
    processes = ProcessGroup("cpu", config.tracker, folder)
    return OpTuneTrainer(plan, loaded, folder, processes, StepProgress("optune", shown=False))


def train(attempts: Path, folder: Path, **more: Any) -> TrainingResult:
    return trainer(attempts, folder, **more).run()


def newest(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(max(folder.glob("step-*")) / name)


def equal(first: Path, second: Path) -> None:
    for name in ("network.safetensors", "training.safetensors"):
        a, b = newest(first, name), newest(second, name)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


def test_it_learns_and_says_what_it_did(attempts: Path, tmp_path: Path) -> None:
    trained = train(attempts, tmp_path, epochs=6, tracker="tensorboard")
    info = read_info(tmp_path)
    assert info.step == trained.step == 6 * 4  # 12 attempts of 6 questions in windows of 3
    assert (info.task, info.ablation, info.feedback) == (
        "arithmetic", "none", "Your answer is incorrect.",
    )  # fmt: skip
    assert trained.skipped == 0
    assert trained.base_loss is not None
    first, *_, last = trained.validation.values()
    assert last < first
    assert info.validation_loss == last
    assert trained.shuffled_loss is not None
    assert trained.shuffled_loss != last
    assert sorted(trained.validation) == [0, 4, 8, 12, 16, 20, 24]
    assert list(tmp_path.glob("logs/events.out.tfevents.*"))
    network = load_checkpoint(tmp_path).network
    assert sum(network.count_parameters()) == info.parameters


def test_a_training_that_diverges_stops_and_says_so(attempts: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no example of step \d+ has a finite loss.*lower --lr"):
        train(attempts, tmp_path, lr=1e36, checkpoint_every=1)
    assert read_info(tmp_path).step >= 1


def test_a_step_is_the_mean_gradient_shortened_only_where_it_is_too_long(
    attempts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(attempts, tmp_path, clip=2.0, lr=0.5)
    made.optimizer = torch.optim.SGD(made.runner.parameters)  # AdamW hides a gradient's length
    size = sum(p.numel() for p in made.runner.parameters)

    def changed(length: float) -> tuple[float, float]:
        before = torch.cat([p.detach().flatten().clone() for p in made.runner.parameters])
        norm = made._update(torch.full((size,), length / size**0.5))
        after = torch.cat([p.detach().flatten() for p in made.runner.parameters])
        return norm, float((before - after).norm())

    assert changed(8.0) == pytest.approx((8.0, 0.5 * 2.0), rel=1e-4)
    assert changed(0.5) == pytest.approx((0.5, 0.5 * 0.5), rel=1e-4)
    # two of four examples could be used
    sums = Sums(torch.full((size,), 1 / size**0.5), torch.tensor(6.0), 2)
    monkeypatch.setattr(made.runner, "record", lambda _: [])
    monkeypatch.setattr(made.runner, "gradient", lambda *_: sums)
    assert made._learn(made.examples.training[:4]) == pytest.approx((3.0, 0.5), rel=1e-4)
    assert made.skipped == 2


def test_a_killed_training_resumes_as_if_it_had_never_stopped(
    attempts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(attempts, whole, clip=0.5, schedule="cosine", warmup=0.2)
    learn = OpTuneTrainer._learn

    def die(self: OpTuneTrainer, window: Any) -> tuple[float, float]:
        if self.step == 5:  # two steps after the last checkpoint
            raise KeyboardInterrupt
        return learn(self, window)

    monkeypatch.setattr(OpTuneTrainer, "_learn", die)
    with pytest.raises(KeyboardInterrupt):
        train(attempts, killed, clip=0.5, schedule="cosine", warmup=0.2)
    monkeypatch.undo()
    assert read_info(killed).step == 3
    trained = train(attempts, killed, clip=0.5, schedule="cosine", warmup=0.2)
    assert 0 not in trained.validation  # it was resumed
    equal(whole, killed)


def test_micro_batches_and_a_longer_training_change_nothing_before(
    attempts: Path, tmp_path: Path
) -> None:
    train(attempts, tmp_path / "whole", max_steps=6)
    train(attempts, tmp_path / "cut", max_steps=6, batch_tokens=1)
    a, b = (newest(tmp_path / name, "network.safetensors") for name in ("whole", "cut"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=2e-6)
    train(attempts, tmp_path / "short", max_steps=3)
    train(attempts, tmp_path / "short", max_steps=6)
    equal(tmp_path / "whole", tmp_path / "short")


def test_several_processes_are_not_given_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--device cuda:1 names one GPU for several processes"):
        ProcessGroup("cuda:1", "none", tmp_path)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(attempts: Path, tmp_path: Path, free_port: int) -> None:
    """Started with the environment that ``torchrun`` and ``accelerate launch`` set."""
    config = settings(attempts, held_out=0.3, max_steps=4, clip=1.0, device="auto")
    (tmp_path / "recipe.toml").write_text(to_toml(config), encoding="utf-8")
    words = ["optune", "train", "--recipe", "recipe.toml", "--out", "two"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "fttt", *words], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port), "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank,
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        train(attempts, tmp_path / "one", held_out=0.3, max_steps=4, clip=1.0)
        ended = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], ended
    assert "validation loss after 4 steps" in ended[0][0]
    assert "4 steps on 2 x cpu" in ended[0][1]
    assert ended[1] == ("", "")  # only the main process shows anything
    one, two = (newest(tmp_path / name, "network.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        # four steps move a weight by up to 4e-3; Adam makes much of a tiny gradient's rounding
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)
    assert read_info(tmp_path / "one").validation_loss == pytest.approx(
        read_info(tmp_path / "two").validation_loss, rel=1e-5
    )


@pytest.mark.parametrize("ablation", ["shuffle-attempts", "constant-input"])
def test_an_ablation_is_trained_and_recorded(attempts: Path, tmp_path: Path, ablation: str) -> None:
    train(attempts, tmp_path, ablation=ablation, max_steps=3)
    assert read_info(tmp_path).ablation == ablation
    network = load_checkpoint(tmp_path).network
    assert (network.constant is not None) == (ablation == "constant-input")
    if network.constant is not None:  # whatever it is given, it predicts the same
        own = network(network.constant)
        runner = trainer(attempts, tmp_path, ablation=ablation).runner
        more = trainer(attempts, tmp_path / "other").examples.training[:3]
        for part in runner.record(more):
            for name, delta in network(part.factors).items():
                assert torch.equal(delta, own[name].expand_as(delta))


def test_learning_rates(attempts: Path) -> None:
    constant = settings(attempts, lr=1.0)
    assert [learning_rate(constant, step, 10) for step in (0, 9)] == [1.0, 1.0]
    cosine = settings(attempts, lr=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(cosine, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.05


def test_bad_input_is_refused_before_a_model_is_loaded(
    attempts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, **more: Any) -> None:
        with pytest.raises(UsageError, match=match):
            plan_training(settings(attempts, **more))

    refused("did you mean 'q_proj'", targets=["q_prj"])
    refused("not by 'owner/other'", model="owner/other")
    refused("at the task 'arithmetic', not 'gsm8k'", task="gsm8k")
    refused("no tracker 'paper'.*tensorboard", tracker="paper")
    refused("no run folder", attempts_from=tmp_path / "nowhere")
    refused("No dtype 'float8'", dtype="float8")
    refused("in float16 needs its losses scaled", dtype="float16")
    monkeypatch.setattr("fttt.optune.optune_plan.find_spec", lambda _: None)
    refused("needs the package 'accelerate'.*pip install")


def test_a_training_is_resumed_under_its_own_settings_only(attempts: Path, tmp_path: Path) -> None:
    own = settings(attempts)
    check_resumable(own, settings(attempts, max_steps=9, batch_tokens=5), tmp_path)
    with pytest.raises(UsageError, match=r"started with lr = 0.001 and cannot be resumed with 0.1"):
        check_resumable(own, settings(attempts, lr=0.1), tmp_path)
    cosine = settings(attempts, schedule="cosine")
    with pytest.raises(UsageError, match=r"max_steps = None and cannot be resumed with 9"):
        check_resumable(cosine, settings(attempts, schedule="cosine", max_steps=9), tmp_path)
    with pytest.raises(UsageError, match=r"holds no OpTune training to resume"):
        read_settings(tmp_path)
