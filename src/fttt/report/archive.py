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
    }


def _chunked(
    run: Run, trials: dict[str, tuple[Trial, ...]], chunks: list[str]
) -> Iterator[tuple[int, int]]:
    """Pack each question's texts; yield the chunk and the place in it, for each question."""
    waiting: list[JSON] = []
    size = 0
    for question in run.questions:
        rows = [_row(trial) for trial in trials[question.id]]
        waiting.append([question.prompt, _gold(question.gold), rows])
        size += len(question.prompt) + sum(len(t.completion) for t in trials[question.id])
        yield len(chunks), len(waiting) - 1
        if size >= CHUNK_CHARACTERS:
            chunks.append(_packed(waiting))
            waiting, size = [], 0
    if waiting:
        chunks.append(_packed(waiting))


def _row(trial: Trial) -> list[JSON]:
    """One trial; the page's script reads the fields by their place."""
    usage = trial.usage
    return [
        trial.trial + 1,
        LETTERS[trial.verdict],
        trial.finish_reason,
        trial.extracted,
        trial.detail,
        trial.loss if trial.loss is None or np.isfinite(trial.loss) else None,
        usage.prompt_tokens,
        usage.generated_tokens,
        usage.trained_tokens,
        round(usage.seconds, 3),
        trial.completion,
    ]


def _gold(gold: JSON) -> str | None:
    """The gold answer as text; a judge's problem object as JSON."""
    if gold is None or isinstance(gold, str):
        return gold
    return json.dumps(gold, ensure_ascii=False, indent=2)


def _packed(value: JSON | dict[str, Any]) -> str:
    # ASCII JSON keeps lone surrogates, which a model may write, as escapes.
    raw = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")
