"""A run folder that is read while it grows: each line once, and texts only when they are looked at.

A finished run that nobody looks into costs its ``config.toml`` and ``summary.json``. Of all others
the trials are kept without their texts, and where each line begins, so that the texts of one
question are read when it is opened.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from fttt.errors import UsageError
from fttt.files import held_files
from fttt.store.journal import trial_from_json
from fttt.store.line_file import LineTail, read_line_at
from fttt.store.outcome import solved_within
from fttt.store.run_folder import (
    CONFIG,
    EVENTS,
    QUESTIONS,
    SUMMARY,
    TRIALS,
    Run,
    read_settings,
    run_folders,
)
from fttt.types import Question, Trial

__all__ = [
    "FollowedQuestion",
    "FollowedRun",
    "PartialRun",
    "QuestionTexts",
    "Reached",
    "RunState",
    "find_runs",
]

RunState = Literal["running", "stopped", "finished"]

_LATELY = 60.0
"""Seconds over which the speed of a run is measured; more where no trial has ended in them."""
_QUIET = 120.0
"""Seconds without a new line after which a run counts as stopped, where locks do not tell."""


@dataclass(slots=True)
class FollowedQuestion:
    """What has been read of one question."""

    id: str
    sha256: str
    offset: int
    """Where its line begins in ``questions.jsonl``."""
    trials: dict[int, Trial] = field(default_factory=dict)
    """By number, without completions and token ids."""
    lines: array[int] = field(default_factory=lambda: array("q"))
    """Where the lines of its trials begin in ``trials.jsonl``."""
    events: array[int] = field(default_factory=lambda: array("q"))
    """Where the lines of its verdicts and critiques begin in ``events.jsonl``."""
    done: bool = False

    @property
    def in_order(self) -> tuple[Trial, ...]:
        """Its trials by number."""
        return tuple(self.trials[number] for number in sorted(self.trials))


@dataclass(frozen=True, slots=True)
class QuestionTexts:
    """One question with all that was written for it."""

    question: Question
    trials: tuple[Trial, ...]
    critiques: tuple[tuple[int, str], ...]
    """Number and text of each generation that was no attempt."""
    feedback: Mapping[int, str]
    """What a model may be shown of a verdict, by the generation that was judged."""


@dataclass(frozen=True)
class PartialRun(Run):
    """A run as far as it was read at one moment: its trials without texts."""

    made: tuple[Trial, ...]
    undone: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return not self.undone

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        return self.made

    @cached_property
    def owed(self) -> tuple[str, ...]:
        return self.undone

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        return self.summarize()


@dataclass(frozen=True, slots=True)
class Reached:
    """What a run has reached."""

    questions: int
    done: int
    solved: int
    """By the run's own rule."""
    trials: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a run had reached at a moment of this process's clock."""

    moment: float
    trials: int
    tokens: int


class FollowedRun:
    """One run folder, read on whenever it has grown."""

    def __init__(self, path: Path) -> None:
        """Read the settings of a run folder.

        Raises:
            UsageError: it is no run folder, or a broken one.
        """
        self.path = path
        self.epoch = 0
        """How often it was read from the start, as after another run has taken its place."""
        self._begin()

    def _begin(self) -> None:
        self.config, self.environment = read_settings(self.path)
        self.run = Run(self.path, self.config, self.environment, ())
        """The same folder's settings by name, without its questions."""
        self.questions: list[FollowedQuestion] = []
        self.changes: list[int] = []
        """The question that each line read so far belongs to; it only grows."""
        self.broken = ""
        """What is wrong with the folder, in a sentence."""
        self.tokens = self.trials = self.solved = self.done = 0
        self.clock = 0.0
        """The latest time in its journal."""
        self.written = 0.0
        """When it was last written to, in seconds since the epoch."""
        self.summary: Mapping[str, Any] | None = None
        self._place: dict[str, int] = {}
        self._questions = LineTail(self.path / QUESTIONS)
        self._events = LineTail(self.path / EVENTS)
        self._trials = LineTail(self.path / TRIALS, without="token_ids")
        self._samples: deque[_Sample] = deque()
        self._seen_held = False
        self.state: RunState = "stopped"

    def look(self, held: frozenset[int] | None) -> bool:
        """Whether the folder holds what was not read yet; its state and age are brought up to date.

        Args:
            held: inodes of files in use, see :func:`fttt.files.held_files`.

        Raises:
            UsageError: another run has taken the folder, and it is a broken one.
            OSError: the folder is gone.
        """
        if any(tail.replaced for tail in (self._questions, self._events, self._trials)):
            self.epoch += 1
            self._begin()
        if self.summary is None and (self.path / SUMMARY).is_file():
            with suppress(OSError, ValueError):
                text = (self.path / SUMMARY).read_text(encoding="utf-8")
                self.summary = cast(Mapping[str, Any], json.loads(text))
        times = [(self.path / CONFIG).stat().st_mtime]
        journal = None
        for name in (SUMMARY, TRIALS, EVENTS):
            with suppress(OSError):
                journal = (self.path / name).stat()
                times.append(journal.st_mtime)
        self.written = max(times)
        self.state = self._state(held, journal)
        return bool(self._questions.waiting or self._events.waiting or self._trials.waiting)

    def _state(self, held: frozenset[int] | None, journal: os.stat_result | None) -> RunState:
        if self.summary is not None:
            return "finished"
        if held is not None and journal is not None:
            if journal.st_ino in held:
                self._seen_held = True
                return "running"
            if self._seen_held or os.major(journal.st_dev):  # a disk of this machine
                return "stopped"
        # it may run on another machine, whose locks are not listed here
        return "running" if time.time() - self.written < _QUIET else "stopped"

    def read(self, most: int = 1 << 20) -> None:
        """Read about so many bytes more of each file."""
        for offset, line in self._questions.read(most):
            self._take(self._question, offset, line)
        if self._questions.waiting:
            return
        for offset, line in self._events.read(most):
            self._take(self._event, offset, line)
        for offset, line in self._trials.read(most):
            self._take(self._trial, offset, line)
        self.broken = self.broken or self._trials.broken or self._events.broken
        if self._trials.waiting:
            return  # what was written before this process looked tells nothing of the speed
        now = _Sample(time.monotonic(), self.trials, self.tokens)
        self._samples.append(now)
        while len(self._samples) > 2 and now.moment - self._samples[1].moment > 10 * _LATELY:
            self._samples.popleft()

    def _take(self, reader: Any, offset: int, line: dict[str, Any]) -> None:
        try:
            reader(offset, line)
        except (KeyError, TypeError, ValueError) as error:
            self.broken = (
                f"The run folder {str(self.path)!r} holds a foreign line ({error!r}), which is "
                "passed over; restore it from a copy or start a new run."
            )

    def _question(self, offset: int, line: dict[str, Any]) -> None:
        self._place[line["id"]] = len(self.questions)
        self.questions.append(FollowedQuestion(line["id"], line.get("sha256", ""), offset))

    def _event(self, offset: int, line: dict[str, Any]) -> None:
        self.clock = max(self.clock, float(line.get("at", 0.0)))
        kind, place = line["event"], self._place[line["question_id"]]
        question = self.questions[place]
        if kind == "done" and not question.done:
            question.done = True
            self.done += 1
            self.changes.append(place)
        elif kind == "verdict" or (kind == "generation" and line["trial"] is None):
            question.events.append(offset)

    def _trial(self, offset: int, line: dict[str, Any]) -> None:
        place = self._place[line["question_id"]]
        question = self.questions[place]
        line |= {"question_id": question.id, "completion": "", "thought": None, "token_ids": ()}
        trial = trial_from_json(line)
        if trial.verdict not in ("correct", "incorrect", "unanswered"):
            raise ValueError(f"the verdict {trial.verdict}")
        before = self.is_solved(question)
        question.lines.append(offset)
        if trial.trial not in question.trials:
            self.trials += 1
            self.tokens += trial.usage.generated_tokens
        question.trials[trial.trial] = trial
        self.solved += self.is_solved(question) - before
        self.changes.append(place)

    def is_solved(self, question: FollowedQuestion) -> bool:
        """Whether a question counts as solved so far, by the run's own rule."""
        if self.run.decided_by == "first":
            return any(trial.verdict == "correct" for trial in question.trials.values())
        return solved_within(question.in_order, decided_by=self.run.decided_by)

    @property
    def reached(self) -> Reached:
        """Counts by the summary of a finished run, else by what has been read."""
        summary = self.summary
        if summary is None:
            return Reached(len(self.questions), self.done, self.solved, self.trials)
        questions = int(summary["questions"])
        return Reached(questions, questions, int(summary["solved"]), int(summary["trials_total"]))

    def partial(self, ids: Sequence[str]) -> PartialRun:
        """The run as far as it has been read, with these questions only."""
        chosen = [self.questions[self._place[question_id]] for question_id in ids]
        return PartialRun(
            self.path,
            self.config,
            self.environment,
            tuple(Question(question.id, "") for question in chosen),
            tuple(trial for question in chosen for trial in question.in_order),
            () if self.summary is not None else tuple(q.id for q in chosen if not q.done),
        )

    def texts(self, place: int) -> QuestionTexts:
        """All that is written of one question, read from the disk.

        Raises:
            UsageError: a file of the folder cannot be read, or was replaced.
            KeyError, TypeError: a line lacks a field or holds a wrong one.
        """
        known = self.questions[place]
        line = read_line_at(self.path / QUESTIONS, known.offset)
        question = Question(line["id"], line["prompt"], line["gold"])
        trials = [trial_from_json(one) for one in self._lines(TRIALS, known.lines)]
        critiques, feedback = [], {}
        for event in self._lines(EVENTS, known.events):
            if event["event"] == "verdict":
                feedback[event["generation"]] = event.get("feedback") or ""
            else:
                critiques.append((event["generation"], event["text"]))
        by_number = {trial.trial: trial for trial in trials}
        return QuestionTexts(
            question,
            tuple(by_number[number] for number in sorted(by_number)),
            tuple(sorted(critiques)),
            feedback,
        )

    def _lines(self, name: str, offsets: Sequence[int]) -> Iterator[dict[str, Any]]:
        return (read_line_at(self.path / name, offset) for offset in list(offsets))

    @property
    def seconds(self) -> float:
        """How long the run has worked, resumed parts added."""
        return self.clock if self.summary is None else float(self.summary["seconds"])

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second: of late while it runs, else over all its time; 0 if unknown.

        Tokens are counted as their trials end.
        """
        seconds, _, tokens = self._lately()
        if self.summary is not None:
            seconds, tokens = self.seconds, self.summary["usage"]["generated_tokens"]
        return tokens / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the run takes at most at its present speed, if no further question is solved.

        ``None`` where it does not run, has another budget than trials, or has not begun.
        """
        budget = self.run.trial_budget
        seconds, trials, _ = self._lately()
        if self.state != "running" or budget is None or not trials:
            return None
        owed = sum(
            max(0, budget - len(question.trials))
            for question in self.questions
            if not question.done
        )
        return owed * seconds / trials

    def _lately(self) -> tuple[float, int, int]:
        """Seconds, trials and tokens of the last time that tells a speed."""
        if not self._samples:
            return 0.0, 0, 0
        now = self._samples[-1]
        for sample in reversed(self._samples):
            seconds = now.moment - sample.moment
            if seconds >= _LATELY and now.trials > sample.trials:
                return seconds, now.trials - sample.trials, now.tokens - sample.tokens
        return self.clock, self.trials, self.tokens


def find_runs(folder: Path) -> list[FollowedRun]:
    """The runs at and below a folder with what they have reached, the latest first.

    A broken one is passed over.
    """
    held, found = held_files(), []
    for path in run_folders(folder):
        try:
            run = FollowedRun(path)
            while run.look(held) and run.summary is None:
                run.read()
        except (UsageError, OSError):
            continue
        found.append(run)
    return sorted(found, key=lambda run: -run.written)
