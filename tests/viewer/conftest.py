"""Run folders that are written trial by trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fttt.store import GenerationEvent, RunWriter
from fttt.types import Completion, Outcome, Question, Trial, Usage, Verdict

HOSTILE = (
    "</script><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\">\ud800\x00"
)
LETTERS: Mapping[str, Outcome] = {"c": "correct", "i": "incorrect", "u": "unanswered"}


class Growing:
    """A run whose trials are written when a test says so."""

    def __init__(self, path: Path, ids: list[str], **config: object) -> None:
        self.path = path
        facts = {
            "method": "fttt", "task": "toy", "model": "/models/tiny", "seed": 1,
            "budget": {"trials": 4, "unanswered": "count"},
            "settings": {"feedback": "No: {feedback} Again."},
            **config,
        }  # fmt: skip
        questions = [Question(i, f"What is {i}? {HOSTILE}", HOSTILE) for i in ids]
        self.writer = RunWriter.create(path, config=facts, environment={}, questions=questions)
        self._made = dict.fromkeys(ids, 0)

    def trials(self, question: str, letters: str, score: float | None = None) -> None:
        """Write one trial a letter; a correct one, and the fourth, end the question."""
        for letter in letters:
            number = self._made[question]
            self._made[question] += 1
            self.writer.generation(
                GenerationEvent(question, number, Completion(HOSTILE, (1, 2), "stop", number))
            )
            verdict = Verdict(LETTERS[letter], HOSTILE, HOSTILE, 0.1, f"hint {number} {HOSTILE}")
            self.writer.verdict(question, number, verdict)
            ends = letter == "c" or number == 3
            self.writer.trial(
                Trial(
                    question, number, number, HOSTILE, (1, 2), "stop",
                    None if letter == "u" else HOSTILE, LETTERS[letter], HOSTILE,
                    None if ends else 0.25, Usage(5, 2, 0 if ends else 7, 1, 1, 0.5),
                    score=score, divergence=None if ends else 0.5,
                )
            )  # fmt: skip
            if ends:
                self.writer.done(question)

    def finish(self) -> None:
        """End every question that is left with wrong trials, and sum up."""
        for question, made in self._made.items():
            if not self.writer.history(question).done and made < 4:
                self.trials(question, "i" * (4 - made))
        self.writer.finish()


MakeGrowing = Callable[..., Growing]


@pytest.fixture
def grow(tmp_path: Path) -> MakeGrowing:
    """A function that begins a run of some questions."""

    def make(name: str, *ids: str, **config: object) -> Growing:
        return Growing(tmp_path / "runs" / name, list(ids) or ["q/0", "q/1", "q/2"], **config)

    return make
