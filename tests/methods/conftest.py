"""Learners on a tiny model: what they ask the engine to learn, and the same by a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fttt.config import resolve
from fttt.engine.request import Trained, TrainRequest
from fttt.experiment.executor import LocalExecutor, make_engine
from fttt.experiment.plan import Plan, settle
from fttt.experiment.runner import Cell, run_cells
from fttt.methods import Method
from fttt.models import LoadedModel
from fttt.progress import Quiet
from fttt.store import Run
from fttt.testing import tiny_model
from fttt.types import Question, Trial, Verdict


class Parity:
    """Judges by the length of an answer, so that some attempts of a random model are right."""

    def __init__(self, right: Callable[[str], bool]) -> None:
        self.right = right

    async def verify(self, question: Question, completion: str) -> Verdict:
        score = len(set(completion)) / 10
        return Verdict("correct" if self.right(completion) else "incorrect", score=score)

    async def close(self) -> None:
        pass


class Asked:
    """Two questions under that verifier."""

    name = "asked"
    splits = ("test",)

    def __init__(self, right: Callable[[str], bool]) -> None:
        self.right = right

    def load(self, options: Any) -> list[Question]:
        return [Question(f"q{n}", f"Question {n}?") for n in range(2)]

    def verifier(self) -> Parity:
        return Parity(self.right)


class Recorded:
    """What a run asked its engine to learn, and what came of it."""

    def __init__(self) -> None:
        self.steps: list[tuple[TrainRequest, Trained]] = []

    def __call__(self, plans: Sequence[Plan], loaded: LoadedModel) -> Any:
        engine = make_engine(plans, loaded)
        train = engine.train

        async def recorded(request: TrainRequest) -> Trained:
            trained = await train(request)
            self.steps.append((request, trained))
            return trained

        engine.train = recorded  # type: ignore[method-assign]
        return engine


def make_sharp_model() -> LoadedModel:
    """A tiny model that is sure of some tokens."""
    loaded = tiny_model()
    with torch.no_grad():
        loaded.model.lm_head.weight *= 12
    return loaded


def play_tiny(
    method: Method, folder: Path, right: Callable[[str], bool], trials: int = 2
) -> tuple[Run, Recorded]:
    values = {
        "method": method.name, "task": "arithmetic", "budget": {"trials": trials},
        "sampling": {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0},
    }  # fmt: skip
    task: Any = Asked(right)
    settled = settle(resolve(values), method=method, task=task)
    recorded = Recorded()
    cell = Cell(Plan(settled, tuple(task.load(None))), folder)
    (run,) = run_cells([cell], LocalExecutor(make_sharp_model(), recorded), Quiet())
    return run, recorded


class Reference:
    """The base model by its own forward pass, in float64."""

    def __init__(self) -> None:
        self.loaded = make_sharp_model()
        self.model = self.loaded.model.double()

    def logs(self, question: str, turns: tuple[Any, ...], answer: Sequence[int]) -> torch.Tensor:
        """Log-probabilities ``[T, V]`` of what each token of an answer was predicted as."""
        prompt = f"Question {question[1:]}?"
        before = self.loaded.chat.conversation_ids(prompt, turns)
        ids = torch.tensor([[*before, *answer]])
        with torch.no_grad():
            logits = self.model(input_ids=ids).logits[0, len(before) - 1 : -1]
        return logits.log_softmax(-1)

    def nll(self, trial: Trial) -> float:
        logs = self.logs(trial.question_id, (), trial.token_ids)
        ids = torch.tensor(trial.token_ids)
        return float(-logs.gather(1, ids[:, None]).mean())


@pytest.fixture
def play_on_tiny() -> Callable[..., tuple[Run, Recorded]]:
    return play_tiny


@pytest.fixture
def sharp_model() -> Callable[[], LoadedModel]:
    return make_sharp_model


@pytest.fixture
def reference() -> Reference:
    return Reference()
