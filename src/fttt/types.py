"""The facts that travel from a question to a report.

``Question -> Completion -> Verdict -> Example -> Trial -> Record``: each is a frozen dataclass,
and ``Usage`` rides on what cost something. Nothing here knows a model, a file or a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]
"""Anything that a JSON file can hold."""

Outcome = Literal["correct", "incorrect", "unanswered"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
FinishReason = Literal["stop", "length"]
Ablation = Literal["shuffle", "constant", "random-verdict"]
"""What is put in the place of an attempt and its verdict where a method learns from them."""
Quantize = Literal["int8", "nf4", "fp4", "none"]
"""How a base model's weights are quantised as they are read; ``none``: not at all."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What something cost.

    Tokens are counted as the model saw them: ``prompt_tokens`` were given, ``generated_tokens``
    sampled, ``trained_tokens`` carried a loss, ``scored_tokens`` were given a log-probability
    without a step, and ``verifier_tokens`` a judging model read and wrote. ``seconds`` is wall time
    from request to answer, so the seconds of requests that shared a batch overlap.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    generations: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0
    scored_tokens: int = 0
    verifier_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.trained_tokens + other.trained_tokens,
            self.generations + other.generations,
            self.verifier_calls + other.verifier_calls,
            self.seconds + other.seconds,
            self.scored_tokens + other.scored_tokens,
            self.verifier_tokens + other.verifier_tokens,
        )

    def rounded(self) -> Usage:
        """The same with seconds to the microsecond, as they are written."""
        seconds = round(self.seconds, 6)
        return self if seconds == self.seconds else replace(self, seconds=seconds)


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
    """The answer's tokens decoded, without special tokens; a thought is no part of it."""
    token_ids: tuple[int, ...]
    """As sampled, a thought and the stop token included where one ended it."""
    finish_reason: FinishReason
    generation: int
    """Its place among all generations of its question, from 0."""
    usage: Usage = Usage()
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each token under the model at temperature 1, where asked for."""
    thought: str | None = None
    """What the model thought before its answer; ``None`` where it has not thought."""
    thought_tokens: int = 0
    """How many of the first tokens are the thought and its markers."""


Role = Literal["user", "system", "assistant"]


@dataclass(frozen=True, slots=True)
class Text:
    """A turn that no model wrote here: a user's, a system's, or an assistant's given answer."""

    content: str
    role: Role = "user"


def user(content: str) -> Text:
    """What the user says."""
    return Text(content)


def system(content: str) -> Text:
    """What stands before the conversation."""
    return Text(content, "system")


def assistant(content: str) -> Text:
    """An answer that was given, a gold solution, say."""
    return Text(content, "assistant")


Turn = Text | Completion
"""One turn of a conversation: a text and who says it, or what the model wrote."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """What a target's tokens should be predicted as: ``T`` places, up to ``k`` tokens at each.

    The loss at a place is ``-sum_k weights[k] log p_k - tail log(1 - sum_k p_k)``. With the weights
    of a distribution that is the cross-entropy against it, all tokens but the ``k`` taken as one;
    signed weights, those of a difference of two teachers, say, push some tokens up and others down.
    """

    token_ids: tuple[tuple[int, ...], ...]
    """``[T][k]``, different ones at each place."""
    weights: tuple[tuple[float, ...], ...]
    """``[T][k]``."""
    tail: tuple[float, ...]
    """``[T]``, of all other tokens together."""

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.weights) == len(self.tail):
            raise ValueError(
                f"a teacher of {len(self.token_ids)} places has {len(self.weights)} rows of "
                f"weights and {len(self.tail)} tails; give one of each a place"
            )

    def __sub__(self, other: Teacher) -> Teacher:
        """The difference of two teachers of the same places; a token that one lacks has 0 there."""
        if len(self.token_ids) != len(other.token_ids):
            raise ValueError(
                f"teachers of {len(self.token_ids)} and {len(other.token_ids)} places have no "
                "difference; score the same target for both"
            )
        rows = [
            dict(zip(ids, weights, strict=True))
            for ids, weights in zip(self.token_ids, self.weights, strict=True)
        ]
        for row, ids, weights in zip(rows, other.token_ids, other.weights, strict=True):
            for token, weight in zip(ids, weights, strict=True):
                row[token] = row.get(token, 0.0) - weight
        return Teacher(
            tuple(tuple(row) for row in rows),
            tuple(tuple(row.values()) for row in rows),
            tuple(one - two for one, two in zip(self.tail, other.tail, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of a target's ``T`` tokens, and of the ``k`` likeliest at each place."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_ids: tuple[tuple[int, ...], ...] = ()
    """``[T][k]``, the likeliest first; empty where none were asked for."""
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    usage: Usage = Usage()

    def teacher(self) -> Teacher:
        """The distribution that was scored, as something to learn towards."""
        weights = tuple(tuple(math.exp(log) for log in row) for row in self.top_logprobs)
        return Teacher(self.top_ids, weights, tuple(max(0.0, 1 - sum(row)) for row in weights))

    def divergence(self, other: Scores, place: int) -> float:
        """KL divergence from another prediction of the same place, in nats.

        Over the tokens that both list, and all others as one, so that it is a lower bound.
        """
        one = dict(zip(self.top_ids[place], self.top_logprobs[place], strict=True))
        two = dict(zip(other.top_ids[place], other.top_logprobs[place], strict=True))
        common = one.keys() & two.keys()
        total = sum(math.exp(one[token]) * (one[token] - two[token]) for token in common)
        rest_one = 1 - sum(math.exp(one[token]) for token in common)
        rest_two = 1 - sum(math.exp(two[token]) for token in common)
        if rest_one > 1e-6:
            total += rest_one * math.log(rest_one / max(rest_two, 1e-9))
        return 0.0 if total < 0 else total  # NaN stays NaN


@dataclass(frozen=True, slots=True)
class Example:
    """One term of a train step's loss: a target and the conversation that it stands in.

    The loss is ``weight`` times the mean over the target's tokens of ``-log p`` (``"nll"``), of
    ``-log(1 - p)`` (``"unlikelihood"``, Welleck et al. 2020), or of the loss against ``teacher``.
    """

    target: Turn
    """Whose tokens carry the loss, that which ends the turn included."""
    after: tuple[Turn, ...] = ()
    """Turns between the question and the target: an attempt, feedback, ..."""
    before: tuple[Text, ...] = ()
    """Texts in front of the question: a system's turn, or what its own turn begins with."""
    weight: float | tuple[float, ...] = 1.0
    """One for all tokens, or one for each token of a completion; a negative one pushes down."""
    teacher: Teacher | None = None
    form: Literal["nll", "unlikelihood"] = "nll"
    whole: bool = False
    """Whether all tokens carry the loss, from the question's first to the target's last."""

    def __post_init__(self) -> None:
        if isinstance(self.weight, tuple):
            tokens = len(self.target.token_ids) if isinstance(self.target, Completion) else None
            if self.whole or len(self.weight) != tokens:
                raise ValueError(
                    f"an example has {len(self.weight)} weights for "
                    f"{'a text' if tokens is None else f'{tokens} tokens'}; give one weight for "
                    "all of them, or one for each token of a completion that carries the loss alone"
                )
        if self.teacher is not None and (self.whole or self.form != "nll"):
            raise ValueError("an example with a teacher has its loss on the target, in form nll")


@dataclass(frozen=True, slots=True)
class Step:
    """What one train step reports."""

    loss: float | None
    """Before the step; ``None`` where the step is taken later, with those of other questions."""
    trained_tokens: int = 0
    divergence: float | None = None
    """Mean KL divergence in nats from the base model at the trained tokens, after the step, of the
    likeliest tokens and all others as one (a lower bound); ``None`` where it was not asked for."""
    reset: bool = False
    """Whether the divergence passed the bound, so that the adapter is fresh again."""


FEEDBACK = "{feedback}"
"""Stands in a text of the settings for what the verifier lets the model know."""
_SHOWN = 600
"""Characters of feedback that a model is shown, of its beginning and its end."""


def shortened(text: str, longest: int = _SHOWN) -> str:
    """The text, or its beginning and its end where it is longer."""
    text = text.strip()
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end]} ... {text[-end:]}"


def filled_in(text: str, feedback: str) -> str:
    """A text of the settings as a model reads it, with a verdict's feedback filled in."""
    return text.replace(FEEDBACK, shortened(feedback) or "Your answer is incorrect.")


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
    failed: bool = False
    """Whether the verifier itself failed (it raised, hung, could not be run or could not read the
    gold answer), so that nothing was said of the answer; such a verdict is ``incorrect``, and
    ``detail`` says what happened. An answer that cannot be read is the model's own failure."""
    tokens: int = 0
    """That a judging model read and wrote for it."""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(
                f"the score of a verdict is {self.score}; give a finite number or None"
            )
        if self.outcome not in OUTCOMES:
            raise ValueError(
                f"the outcome of a verdict is {self.outcome!r}; give one of {', '.join(OUTCOMES)}"
            )
        if self.failed and self.outcome != "incorrect":
            raise ValueError(
                f"the verdict of a verifier that failed is {self.outcome!r}; give 'incorrect'"
            )

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    def reaching(self, until: float | None) -> Verdict:
        """The verdict where an answer is correct from the score ``until`` on, if one is given."""
        if until is None or self.score is None or not self.answered or self.failed:
            return self
        return replace(self, outcome="correct" if self.score >= until else "incorrect")

    @property
    def answered(self) -> bool:
        return self.outcome != "unanswered"


@dataclass(frozen=True, slots=True)
class Judged:
    """An attempt and what the verifier said of it."""

    completion: Completion
    verdict: Verdict


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
    divergence: float | None = None
    reset: bool = False
    """Of the step that was taken after it; see :class:`Step`."""
    failed: bool = False
    """Whether the verifier itself failed; see :class:`Verdict`."""
    thought: str | None = None
    thought_tokens: int = 0
    """Of the completion; see :class:`Completion`."""


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
    def best(self) -> Trial | None:
        """The first trial with the best score, or ``None`` where no trial has one."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)

    @property
    def answer(self) -> str | None:
        """The completion that was verified as correct, or ``None``."""
        return next((t.completion for t in self.trials if t.verdict == "correct"), None)
