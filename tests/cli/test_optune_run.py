"""``fttt run optune`` as a process: from a checkpoint to a run, killed and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fttt.engine import hidden_cache
from fttt.engine.adapters.delta import Factors
from fttt.optune import load_checkpoint
from fttt.store import Run
from fttt.testing import call, save_tiny_model, tiny_model
from fttt.types import Trial

TRIALS, QUESTIONS = 4, 3
FOLDERS = ("whole", "torn")


pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def flags(make_network: Callable[..., Path]) -> list[str]:
    """Questions whose answers no random model hits upon."""
    model = save_tiny_model(Path("tiny-llama"))
    data = model / "questions.jsonl"
    line = '{"question": "Question %d?", "answer": "123456789"}\n'
    data.write_text("".join(line % n for n in range(QUESTIONS)))
    checkpoint = make_network().parent  # the folder of a training, as a user names it
    return [
        *("--task", "jsonl", "--data-dir", str(data), "--verifier", "number", "--device", "cpu"),
        *("--trials", str(TRIALS), "--max-new-tokens", "12", "--temperature", "0"),
        *("--checkpoint", str(checkpoint)),
    ]


class Alone:
    """A question at a time: the weights replaced, the factors taken by autograd on plain code."""

    def __init__(self, checkpoint: Path) -> None:
        self.loaded = tiny_model()
        self.network = load_checkpoint(checkpoint).network
        self.base = {
            layer.name: self.loaded.model.get_submodule(layer.name).weight.clone()
            for layer in self.network.layers
        }

    def use(self, changes: dict[str, torch.Tensor]) -> None:
        for name, weight in self.base.items():
            change = changes.get(name, torch.zeros_like(weight))
            self.loaded.model.get_submodule(name).weight.data = weight + change

    @torch.no_grad()
    def greedy(self, prompt: str) -> tuple[int, ...]:
        ids = list(self.loaded.chat.prompt_ids(prompt))
        start = len(ids)
        while len(ids) - start < 12 and ids[-1] != 2:
            ids.append(int(self.loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
        return tuple(ids[start:])

    def predict(self, prompt: str, trial: Trial) -> tuple[dict[str, torch.Tensor], float]:
        """The change after an attempt, and the loss."""
        feedback = "\n<|im_start|>user\nWrong.<|im_end|>\n"
        if trial.finish_reason == "length":
            feedback = "<|im_end|>" + feedback
        ids = [
            *self.loaded.chat.prompt_ids(prompt), *trial.token_ids,
            *self.loaded.tokenizer(feedback)["input_ids"],
        ]  # fmt: skip
        x: dict[str, torch.Tensor] = {}
        y: dict[str, torch.Tensor] = {}

        def note(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                x[name] = inputs[0][0].detach()
                y[name] = output + torch.zeros_like(output, requires_grad=True)
                return y[name]

            return hook

        model = self.loaded.model
        hooks = [model.get_submodule(n).register_forward_hook(note(n)) for n in self.base]
        whole = torch.tensor([ids])
        loss = F.cross_entropy(model(whole).logits[0, :-1], whole[0, 1:])
        gradients = torch.autograd.grad(loss, list(y.values()))
        for hook in hooks:
            hook.remove()
        factors = Factors(
            x, {n: g[0] for n, g in zip(y, gradients, strict=True)}, (len(ids),),
            torch.zeros(len(ids), dtype=torch.int64), loss[None],
        )  # fmt: skip
        with torch.no_grad():
            found = {name: change[0] for name, change in self.network(factors).items()}
        return found, float(loss.detach())


@pytest.mark.parametrize("schedule", ["alternate", "accumulate"])
def test_a_run_equals_one_question_at_a_time(
    flags: list[str], schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    held_tokens = hidden_cache._held_tokens

    def counted(context: Any, ids: tuple[int, ...]) -> tuple[int, int]:
        row, past = held_tokens(context, ids)
        taken.append(past)
        return row, past

    monkeypatch.setattr(hidden_cache, "_held_tokens", counted)
    more = ["--schedule", schedule] if schedule == "accumulate" else []
    assert call("optune", "evaluate", *flags, *more, "--out", "whole") == 0
    whole = Run.open(Path("whole"))
    steps = [trial.loss for record in whole.records for trial in record.trials if trial.loss]
    assert len(taken) == len(steps) > 0
    assert min(taken) > 12  # each began with what was kept of its question and attempt
    assert whole.config["method"] == "optune"
    assert whole.config["model"] == str(Path("tiny-llama").absolute())  # the checkpoint's own
    alone = Alone(Path(whole.config["settings"]["checkpoint"]))
    differ = 0
    for record in whole.records:
        changes: dict[str, torch.Tensor] = {}
        for trial in record.trials:
            edited = schedule == "accumulate" or trial.trial % 2 == 1
            alone.use(changes if edited else {})
            assert alone.greedy(record.question.prompt) == trial.token_ids
            differ += trial.token_ids != record.trials[0].token_ids
            learns = schedule == "accumulate" or not edited
            if not learns or trial.trial == TRIALS - 1:
                assert trial.loss is None
                continue
            fresh, loss = alone.predict(record.question.prompt, trial)
            assert trial.loss == pytest.approx(loss, rel=1e-4)
            changes = {
                n: c + changes.get(n, 0) if schedule == "accumulate" else c
                for n, c in fresh.items()
            }
    assert differ >= QUESTIONS  # the changes are seen in what is written


def test_a_torn_run_resumes_with_the_changes_it_had(flags: list[str], tmp_path: Path) -> None:
    words = ["run", "optune", *flags, "--temperature", "1.0", "--schedule", "accumulate"]
    assert call(*words, "--out", "whole") == 0
    assert call(*words, "--out", "torn") == 0
    for name, lines in (("events.jsonl", 13), ("trials.jsonl", 5)):
        file = Path("torn") / name
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))
    (Path("torn") / "summary.json").unlink()
    assert call("run", "--resume", "torn") == 0
    whole, torn = ([t for r in Run.open(Path(f)).records for t in r.trials] for f in FOLDERS)
    assert [t.token_ids for t in torn] == [t.token_ids for t in whole]
    assert [t.loss or 0.0 for t in torn] == pytest.approx([t.loss or 0.0 for t in whole], rel=1e-3)
    assert sum(t.loss is not None for t in whole) == QUESTIONS * (TRIALS - 1)


def test_a_network_that_was_trained_anew_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "optune", *flags, "--out", "old") == 0
    (Path("old") / "summary.json").unlink()
    checkpoint = Path(Run.open(Path("old")).config["settings"]["checkpoint"])
    file = checkpoint / "network.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert call("run", "--resume", "old") == 2
    assert "has changed since the run in 'old' began" in capsys.readouterr().err


def test_a_network_of_another_architecture_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(Path("shallow"), layers=1)
    assert call("run", "optune", *flags, "--model", "shallow") == 2
    said = capsys.readouterr().err
    assert "where 'model.layers.1.self_attn.q_proj' is 32 x 32" in said
    assert "Traceback" not in said
