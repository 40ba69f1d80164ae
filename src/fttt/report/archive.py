"""Every trial of the report, packed into the page: small to load, opened only where it is read.

A page that held 50,000 completions as text would take seconds to open. Here an index (one letter
a trial) is read at once, and the texts lie in compressed chunks, each opened when a question in it
is looked at. The chunks are gzip in base64, so whatever a model wrote, no byte of it can end the
element that holds it or be taken for markup.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fttt.report.arms import Arm
from fttt.report.outcomes import Outcomes, trials_by_question
from fttt.store import Run
from fttt.types import JSON, Trial

__all__ = ["Archive", "pack", "unpack"]

CHUNK_CHARACTERS = 400_000
"""Text in a chunk before it is closed: about ten milliseconds to open."""
LETTERS = {"correct": "c", "incorrect": "i", "unanswered": "u"}


@dataclass(frozen=True)
class Archive:
    """The index and the chunks, each packed for the page."""

    index: str
    chunks: tuple[str, ...]
    trials: int


def pack(arms: Sequence[Arm]) -> Archive:
    """Pack the trials of every run of every side."""
    chunks: list[str] = []
    runs = []
    trials = 0
    for arm in arms:
        for run in arm.runs:
            entry = _run_entry(run, arm, chunks)
            trials += sum(len(letters) for letters in entry["verdicts"])
            runs.append(entry)
    return Archive(_packed({"runs": runs}), tuple(chunks), trials)


def unpack(packed: str) -> Any:
    """What :func:`pack` packed, read back."""
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def _run_entry(run: Run, arm: Arm, chunks: list[str]) -> dict[str, Any]:
    """The index of one run; its texts are appended to ``chunks``."""
    trials = trials_by_question(run)
    outcomes = Outcomes.of(run)
    first_right = outcomes.right.argmax(axis=1)
    rows = np.arange(len(outcomes.ids))
    needed = outcomes.costs["trials"][rows, first_right]
    places = []
    for number, place in _chunked(run, trials, chunks):
        places.append([number, place])
    return {
        "name": run.path.name,
        "label": arm.label,
        "task": run.task,
        "model": run.model,
        "seed": run.seed,
        "ids": list(outcomes.ids),
        "verdicts": ["".join(LETTERS[t.verdict] for t in trials[i]) for i in outcomes.ids],
        # The trials that a question took, or 0 where it was not solved.
        "solved": [
            int(n) if solved else 0 for n, solved in zip(needed, outcomes.solved, strict=True)
        ],
        "tokens": [int(n) for n in outcomes.spent["tokens"]],
        "places": places,
        "feedback": _feedback(run),
    }


def _chunked(
    run: Run, trials: dict[str, tuple[Trial, ...]], chunks: list[str]
) -> Iterator[tuple[int, int]]:
    """Pack each question's texts; yield the chunk and the place in it, for each question."""
    waiting: list[JSON] = []
    size = 0
    critiques = _critiques(run)
    for question in run.questions:
        made = trials[question.id]
        said = _after_trials(made, critiques.get(question.id, []))
        rows = [_row(trial, texts) for trial, texts in zip(made, said, strict=True)]
        waiting.append([question.prompt, _gold(question.gold), rows])
        size += len(question.prompt) + sum(len(t.completion) for t in made)
        size += sum(len(text) for texts in said for text in texts)
        yield len(chunks), len(waiting) - 1
        if size >= CHUNK_CHARACTERS:
            chunks.append(_packed(waiting))
            waiting, size = [], 0
    if waiting:
        chunks.append(_packed(waiting))


def _critiques(run: Run) -> dict[str, list[tuple[int, str]]]:
    """Number and text of each generation that was no attempt, for each question.

    The journal is read only where the trials spent more tokens than their completions hold.
    """
    if all(t.usage.generated_tokens == len(t.token_ids) for t in run.trials):
        return {}
    return {
        question_id: [
            (number, event.completion.text)
            for number, event in sorted(history.generations.items())
            if event.trial is None
        ]
        for question_id, history in run.histories.items()
    }


def _after_trials(trials: Sequence[Trial], critiques: list[tuple[int, str]]) -> list[list[str]]:
    """What was written after each trial's attempt and before the next one's."""
    ends = [trial.generation for trial in trials[1:]] + [math.inf]
    return [
        [text for number, text in critiques if trial.generation < number < end]
        for trial, end in zip(trials, ends[: len(trials)], strict=True)
    ]


def _feedback(run: Run) -> str | None:
    """What the run's method says after a wrong attempt, where its settings tell."""
    said = run.config.get("settings", {}).get("feedback")
    return said if isinstance(said, str) else None


def _row(trial: Trial, critiques: list[str]) -> list[JSON]:
    """One trial; the page's script reads the fields by their place."""
    usage = trial.usage
    return [
        trial.trial + 1,
        LETTERS[trial.verdict],
        trial.finish_reason,
        trial.extracted,
        trial.detail,
        trial.loss if trial.loss is None or math.isfinite(trial.loss) else None,
        usage.prompt_tokens,
        usage.generated_tokens,
        usage.trained_tokens,
        round(usage.seconds, 3),
        trial.completion,
        critiques,
        _score(trial),
    ]


def _score(trial: Trial) -> str | None:
    """How close a trial came, where its verifier tells."""
    if trial.tests_total is not None:
        return f"{trial.tests_passed} of {trial.tests_total} tests passed"
    return None if trial.score is None else f"score {trial.score:g}"


def _gold(gold: JSON) -> str | None:
    """The gold answer as text; a judge's problem object as JSON."""
    if gold is None or isinstance(gold, str):
        return gold
    return json.dumps(gold, ensure_ascii=False, indent=2)


def _packed(value: JSON | dict[str, Any]) -> str:
    # ASCII JSON keeps lone surrogates, which a model may write, as escapes.
    raw = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")
