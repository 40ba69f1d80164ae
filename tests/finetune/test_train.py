"""Training: it learns, exactly what it should, and resumes where it was stopped."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from fttt.errors import RunError, UsageError
from fttt.finetune import solution_trainer
from fttt.finetune import train as train_module
from fttt.finetune.finetune_plan import FinetunePlan
from fttt.finetune.load import load_finetuned
from fttt.finetune.metadata import METHODS, read_info
from fttt.finetune.parameters import prepare
from fttt.finetune.solution_trainer import SolutionTrainer, checkpoints
from fttt.finetune.train import train
from fttt.models import load_model
from fttt.progress import StepProgress
from fttt.training import gold_examples

ALL_AT_ONCE = {"samples": 40, "max_steps": 3, "every": 3, "clip": 0.0, "warmup": 0.4}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


class Kill(TrainerCallback):
    """Stops a process in the middle, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def _loss_of_what_peft_reads(plan: FinetunePlan, folder: Path) -> float:
    """The validation loss of a saved checkpoint that PEFT reads in its usual way."""
    from peft import PeftModel

    loaded = load_model(plan.config.model)
    model: Any = PeftModel.from_pretrained(loaded.model, str(folder)).eval()
    _, kept = train_module._examples(plan, loaded, StepProgress("test"))
    total = 0.0
    for sample in kept:
        ids = torch.tensor([sample.prompt_ids + sample.solution_ids])
        logits = model(input_ids=ids).logits[0, len(sample.prompt_ids) - 1 : -1]
        target = torch.tensor(sample.solution_ids)
        total += torch.nn.functional.cross_entropy(logits, target).item()
    return total / len(kept)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # by PEFT, of its prefix
@pytest.mark.parametrize("method", METHODS)
def test_the_validation_loss_falls_and_a_stopped_training_ends_as_an_unstopped_one(
    method: str, tmp_path: Path, run_train: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    evaluate = SolutionTrainer.evaluate

    def watched(self: SolutionTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = evaluate(self, *args, **kwargs)
        seen.append(metrics["eval_loss"])
        return metrics

    monkeypatch.setattr(SolutionTrainer, "evaluate", watched)
    info = run_train(method, tmp_path / "whole")
    assert info == read_info(tmp_path / "whole")
    assert len(seen) == 2
    assert info.validation_loss == seen[1] < seen[0]
    assert (info.step, info.method) == (6, method)
    assert not (tmp_path / "whole/checkpoints").exists()
    assert not (tmp_path / "whole/tensorboard").exists()  # no tracker was asked for

    plan = make_plan(method)
    if method in ("lora", "ia3", "prefix"):
        loss = _loss_of_what_peft_reads(plan, tmp_path / "whole")
        assert loss == pytest.approx(info.validation_loss, abs=1e-4)
    callbacks = train_module._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_callbacks", lambda *a: [*callbacks(*a), Kill(4)])
        with pytest.raises(KeyboardInterrupt):
            train(plan, tmp_path / "stopped")
    assert [read_info(c).step for c in checkpoints(tmp_path / "stopped/checkpoints")] == [3]
    again = train(plan, tmp_path / "stopped", resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert (again.tokens, again.trained_tokens) == (info.tokens, info.trained_tokens)
    assert again.validation_loss == info.validation_loss


@pytest.mark.parametrize("method", ["full", "lora"])
def test_steps_are_those_of_a_plain_loop_over_single_samples(
    method: str, tmp_path: Path, run_train: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"dropout": 0.0} if method == "lora" else {}
    losses: list[float] = []
    monkeypatch.setattr(StepProgress, "stepped", lambda _, step, loss, rate: losses.append(loss))
    over = {"training": ALL_AT_ONCE, "data": {"held_out": 0.0}, "settings": settings}
    run_train(method, tmp_path / "ours", **over)

    plan = make_plan(method, **over)
    loaded = load_model(plan.config.model)
    torch.manual_seed(plan.config.seed)
    model = prepare(loaded.model, plan.settings)
    model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2, weight_decay=0.0)
    samples = gold_examples(plan.questions, loaded.chat)
    for factor in (0.0, 1.0, 0.5):  # a step of warm-up, then a cosine over two
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        total = 0.0
        for sample in samples:
            ids = torch.tensor([sample.prompt_ids + sample.solution_ids])
            logits = model(input_ids=ids).logits[0, len(sample.prompt_ids) - 1 : -1]
            target = torch.tensor(sample.solution_ids)
            loss = torch.nn.functional.cross_entropy(logits, target) / len(samples)
            loss.backward()
            total += float(loss.detach())
        assert losses.pop(0) == pytest.approx(total, rel=1e-3)
        optimizer.step()
        optimizer.zero_grad()
    ours = weights(tmp_path / "ours")
    state = model.state_dict()
    for name, value in ours.items():
        mine = state[name.replace(".weight", ".default.weight") if method == "lora" else name]
        torch.testing.assert_close(value, mine, rtol=1e-3, atol=1e-4)


def test_a_training_of_one_step_learns(tmp_path: Path, run_train: Any) -> None:
    run_train("ln-tuning", tmp_path / "one", training={"max_steps": 1})
    assert any(bool((value != 1).any()) for value in weights(tmp_path / "one").values())


def test_what_fits_into_memory_at_once_does_not_change_the_result(
    tmp_path: Path, run_train: Any
) -> None:
    for tokens in (1, 500, 100_000):
        few = {"batch_tokens": tokens, "max_steps": 3}
        run_train("ia3", tmp_path / str(tokens), training=few)
    first = weights(tmp_path / "1")
    for other in ("500", "100000"):
        for name, value in weights(tmp_path / other).items():
            torch.testing.assert_close(value, first[name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_result(tmp_path: Path, run_train: Any) -> None:
    for on in (False, True):
        few = {"gradient_checkpointing": on, "max_steps": 3}
        run_train("full", tmp_path / str(on), training=few)
    for name, value in weights(tmp_path / "True").items():
        torch.testing.assert_close(value, weights(tmp_path / "False")[name])


@pytest.mark.parametrize("method", ["adapter", "ln-tuning"])
def test_half_precision_learns_about_the_same_with_float32_weights(
    method: str, tmp_path: Path, run_train: Any
) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        engine = {"device": "cpu", "dtype": dtype}
        losses.append(run_train(method, tmp_path / dtype, engine=engine).validation_loss)
        assert {value.dtype for value in weights(tmp_path / dtype).values()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_low_rank_weights_learn_beside_a_quantised_base(
    tmp_path: Path, make_plan: Any, run_train: Any
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantises: pip install 'fttt[quantized]'")
    packed = {"engine": {"quantize": "nf4"}}
    more: dict[str, Any] = {"settings": {"dropout": 0.0}}
    whole = run_train("lora", tmp_path / "whole", **more)
    info = run_train("lora", tmp_path / "packed", **packed, **more)
    assert info.quantize == "nf4"
    assert info.validation_loss == pytest.approx(whole.validation_loss, abs=0.3)
    assert info.validation_loss != whole.validation_loss
    assert load_finetuned(tmp_path / "packed", device="cpu").quantized == "nf4"
    for method in ("full", "ia3", "ln-tuning", "adapter", "prefix"):
        with pytest.raises(UsageError, match=f"'{method}' does not train a base model whose"):
            make_plan(method, **packed)


@pytest.mark.parametrize("method", ["lora", "prefix"])  # whose prefix takes from the context
def test_samples_that_are_too_long_are_left_out_and_counted(
    method: str, tmp_path: Path, run_train: Any, make_plan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan("lora")
    chat = load_model(plan.config.model).chat
    lengths = sorted(
        len(e.prompt_ids + e.solution_ids) for e in gold_examples(plan.questions, chat)
    )
    most = lengths[12]
    over = sum(n > most for n in lengths)
    context = load_model(plan.config.model).max_context
    short = {"data": {"max_length": most}}
    if method == "prefix":
        short = {"settings": {"length": context - most}}
    run_train(method, tmp_path, **short, training={"max_steps": 1})
    assert f"finetune {method}: {over} samples over {most} tokens are left out" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("late", [0, 1])
def test_a_learning_rate_that_diverges_stops_at_its_step(
    late: int, tmp_path: Path, run_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(solution_trainer.LATE, "cpu", late)
    wild = {"lr": 1e3, "every": 1, "clip": 0.0, "warmup": 0.3}
    with pytest.raises(RunError, match=r"loss after step 2 is .*checkpoint-1'.*lower --lr"):
        run_train("full", tmp_path / "seen", training=wild)
    (kept,) = checkpoints(tmp_path / "seen/checkpoints")
    assert read_info(kept).step == 1
    assert weights(kept)
    unseen = {"training": wild, "data": {"held_out": 0.0}}
    with pytest.raises(RunError, match=r"the loss of step 3 is .*checkpoint-2'.*lower --lr"):
        run_train("full", tmp_path / "unseen", **unseen)
    assert [read_info(c).step for c in checkpoints(tmp_path / "unseen/checkpoints")] == [2]
    between = {**unseen, "training": {**wild, "every": 4}}  # a step later than the one that failed
    with pytest.raises(RunError, match=r"the loss of step 3 is .*no checkpoint.*lower --lr"):
        run_train("full", tmp_path / "between", **between)
    assert not checkpoints(tmp_path / "between/checkpoints")


def test_figures_that_are_read_late_are_logged_once_at_their_own_step(
    tmp_path: Path, run_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none is read before the next step is launched, but where something is written."""

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            events.append(f"launch {state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "loss" in logs:
                events.append(f"log {state.global_step}")
                found.append((state.global_step, state.epoch, dict(logs)))
            elif "eval_loss" in logs:
                events.append("validate")

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            history.extend(e for e in state.log_history if "loss" in e)

    callbacks = train_module._callbacks
    monkeypatch.setattr(train_module, "_callbacks", lambda *a: [*callbacks(*a), Note()])
    every = {"training": {"max_steps": 7, "every": 4}}
    seen = []
    for late in (0, 1):
        monkeypatch.setitem(solution_trainer.LATE, "cpu", late)
        events: list[str] = []
        found: list[tuple[int, float, dict[str, float]]] = []
        history: list[dict[str, float]] = []
        run_train("lora", tmp_path / str(late), **every)
        assert history == [{**logs, "step": step} for step, _, logs in found]
        assert [logs["epoch"] for *_, logs in found] == [epoch for _, epoch, _ in found]
        seen.append(found)
    assert [step for step, *_ in found] == [*range(1, 8)]
    assert seen[0] == seen[1]
    assert {"loss", "grad_norm", "learning_rate"} <= found[0][2].keys()
    assert events == [
        "launch 1", "launch 2", "log 1", "launch 3", "log 2", "launch 4", "log 3", "log 4",
        "validate", "launch 5", "launch 6", "log 5", "launch 7", "log 6", "log 7", "validate",
    ]  # fmt: skip


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, run_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-6" in str(file):
            Path(file).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")
        save(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"checkpoint-6.* could not be saved .*earlier is whole"):
        run_train("lora", tmp_path, training={"max_steps": 9})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert read_info(tmp_path / "checkpoints/checkpoint-3").step == 3


def test_a_file_system_without_second_names_takes_the_result(
    tmp_path: Path, run_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run_train("lora", tmp_path, training={"max_steps": 1})
    assert weights(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_training_that_was_stopped_after_its_last_step_only_writes_its_result(
    tmp_path: Path, run_train: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train("lora", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_train("lora", tmp_path / "stopped")
    monkeypatch.setattr(train_module, "load_model", lambda *_, **__: pytest.fail("loaded"))
    again = train(make_plan("lora"), tmp_path / "stopped", resume=True)
    assert again.step == 6
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "stopped")[name])


def test_an_early_stop_keeps_the_best_weights(
    tmp_path: Path, run_train: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 1.0}

    def scripted(self: SolutionTrainer, *_: Any, **__: Any) -> Any:
        return torch.tensor(losses[self.state.global_step]), None, None

    monkeypatch.setattr(SolutionTrainer, "prediction_step", scripted)
    info = run_train("lora", tmp_path / "out", training={"every": 1, "early_stop": 2})
    assert (info.step, info.validation_loss) == (2, 3.0)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    early = {"every": 1, "early_stop": 2}
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_train("lora", tmp_path / "killed", training=early)
    (tmp_path / "killed").rename(tmp_path / "moved")
    again = train(make_plan("lora", training=early), tmp_path / "moved", resume=True)
    assert (again.step, again.tokens) == (2, info.tokens), "it had stopped, and trains no further"
    with monkeypatch.context():
        shorter = {"every": 1, "max_steps": 6}
        kept = weights(tmp_path / "out")
        monkeypatch.setattr(train_module, "_finish", lambda folder, state, spent: None)
        callbacks = train_module._callbacks
        monkeypatch.setattr(train_module, "_callbacks", lambda *a: [*callbacks(*a), Kill(2)])
        with pytest.raises(KeyboardInterrupt):
            run_train("lora", tmp_path / "two", training=shorter)
    (second,) = checkpoints(tmp_path / "two/checkpoints")
    saved = load_file(second / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
