"""The facts that travel from a question to a report.

``Question -> Completion -> Verdict -> Feedback -> Trial -> Record``: each is a frozen dataclass,
and ``Usage`` rides on what cost something. Nothing here knows a model, a file or a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]
"""Anything that a JSON file can hold."""

Outcome = Literal["correct", "incorrect", "unanswered"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What something cost.

    Tokens are counted as the model saw them: ``prompt_tokens`` were given, ``generated_tokens``
    sampled, ``trained_tokens`` carried a loss. ``seconds`` is wall time from request to answer,
    so the seconds of requests that shared a batch overlap.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    generations: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.trained_tokens + other.trained_tokens,
            self.generations + other.generations,
            self.verifier_calls + other.verifier_calls,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Question:
    """One problem: what the model reads, and what the verifier holds against its answer."""

    id: str
    prompt: str
    """The text of the user's turn, instructions included."""
    gold: JSON = None
    """What the verifier compares with: an answer's text, a judge's problem object, or nothing."""
    solution: str | None = None
    """A worked solution, for methods that train on gold solutions."""
    rendered: str | None = None
    """The prompt as the model's chat template wrote it when the run began, which some template
    writes otherwise on another day."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote for one request."""

    text: str
    """The tokens decoded, without special tokens."""
    token_ids: tuple[int, ...]
    """As sampled, the stop token included where one ended it."""
    finish_reason: FinishReason
    generation: int
    """Its place among all generations of its question, from 0."""
    usage: Usage = Usage()
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each token under the model at temperature 1, where asked for."""


Turn = str | Completion
"""One turn of a conversation after the question: the user's text, or what the model wrote."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier said of one completion."""

    outcome: Outcome
    extracted: str | None = None
    """The answer that was found in the completion, as the verifier read it."""
    detail: str = ""
    """Why, for people: a failed assertion, a time-out, an error of the verifier itself. It may
    quote the gold answer or a hidden test, so no method reads it."""
    seconds: float = 0.0
    feedback: str = ""
    """What a model may be shown of the verdict; never the gold answer or a hidden test."""
    score: float | None = None
    """How close the answer came, higher is better: for a program the share of its tests that
    passed. ``None`` where the verifier only tells right from wrong."""
    tests_passed: int | None = None
    tests_total: int | None = None
    """Of a program's tests; ``None`` where none were run."""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(
                f"the score of a verdict is {self.score}; give a finite number or None"
            )

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def answered(self) -> bool:
        return self.outcome != "unanswered"


@dataclass(frozen=True, slots=True)
class Feedback:
    """Something to learn from, said after an attempt.

    ``turns`` follow the attempt in its conversation; the last of them carries the loss (mean
    cross-entropy over its tokens, times ``weight``). With ``on="attempt"`` the attempt's own
    tokens carry it instead and ``turns`` stays empty; a negative weight pushes them down. With
    ``on="conversation"`` all tokens carry it together: question, attempt and turns.
    """

    turns: tuple[Turn, ...]
    weight: float = 1.0
    on: Literal["turn", "attempt", "conversation"] = "turn"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial as it is written to ``trials.jsonl``."""

    question_id: str
    trial: int
    generation: int
    completion: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    extracted: str | None
    verdict: Outcome
    detail: str
    loss: float | None
    usage: Usage
    score: float | None = None
    tests_passed: int | None = None
    tests_total: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that happened to one question."""

    question: Question
    trials: tuple[Trial, ...]
    usage: Usage

    @property
    def solved(self) -> bool:
        return any(trial.verdict == "correct" for trial in self.trials)

    @property
    def score(self) -> float | None:
        """The best score of its trials, or ``None`` where no trial has one."""
        return max((t.score for t in self.trials if t.score is not None), default=None)

    @property
    def answer(self) -> str | None:
        """The completion that was verified as correct, or ``None``."""
        return next((t.completion for t in self.trials if t.verdict == "correct"), None)
