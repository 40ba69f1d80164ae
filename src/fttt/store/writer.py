"""Writing a run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from fttt.files import cannot_write, check_unused, write_whole
from fttt.store.events import (
    GenerationEvent,
    History,
    ScoreEvent,
    generation_to_json,
    score_to_json,
    trial_to_json,
    verdict_to_json,
)
from fttt.store.lines import LineFile
from fttt.store.run import (
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    QUESTIONS,
    SUMMARY,
    TRIALS,
    Run,
    question_line,
)
from fttt.types import Question, Trial, Verdict

__all__ = ["Journal", "MemoryJournal", "RunWriter", "check_free"]


class Journal(Protocol):
    """Where a run's facts go, each before the next step begins."""

    def history(self, question_id: str) -> History:
        """What an earlier process wrote of a question; empty where there was none."""

    def written(self, question_id: str) -> frozenset[int]:
        """Numbers of the trials of a question that an earlier process wrote."""

    def generation(self, event: GenerationEvent) -> None:
        """Keep a generation that has just ended."""

    def score(self, event: ScoreEvent) -> None:
        """Keep scores that have just been computed."""

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        """Keep a verdict."""

    def trial(self, trial: Trial) -> None:
        """Keep a trial that has just ended."""

    def done(self, question_id: str) -> None:
        """Keep that a question's method has returned."""


class MemoryJournal:
    """A journal without a folder, for a question asked from Python."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def history(self, question_id: str) -> History:
        return History()

    def written(self, question_id: str) -> frozenset[int]:
        return frozenset()

    def generation(self, event: GenerationEvent) -> None:
        pass

    def score(self, event: ScoreEvent) -> None:
        pass

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        pass

    def trial(self, trial: Trial) -> None:
        self.trials.append(trial)

    def done(self, question_id: str) -> None:
        pass


class RunWriter:
    """The journal of a run folder, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Take hold of an existing run folder; torn last lines are cut off.

        Raises:
            UsageError: it is no run folder, is broken, or another process holds it.
        """
        Run.open(path)
        self.path = path
        with ExitStack() as on_error:
            self._events = LineFile(path / EVENTS)
            on_error.callback(self._events.close)
            self._trials = LineFile(path / TRIALS)
            on_error.callback(self._trials.close)
            self._read(Run.open(path))
            on_error.pop_all()

    def _read(self, run: Run) -> None:
        """Take note of what an earlier process wrote."""
        self._histories = dict(run.histories)
        self._written: dict[str, set[int]] = {}
        for trial in run.trials:
            self._written.setdefault(trial.question_id, set()).add(trial.trial)
        for question_id, history in self._histories.items():
            # a power cut may keep the journal's last lines and lose those of the trials
            history.done = history.done and history.judged <= self.written(question_id)
        self._began = time.monotonic() - run.seconds

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        questions: Sequence[Question],
        heading: str = "",
    ) -> RunWriter:
        """Begin a run folder. ``config.toml`` comes last: with it the folder is a run folder.

        Args:
            heading: comment lines at the top of ``config.toml``.

        Raises:
            UsageError: the folder exists and is not empty.
            RunError: it cannot be written.
        """
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(question_line(q), ensure_ascii=False) for q in questions]
            write_whole(path / QUESTIONS, "".join(line + "\n" for line in lines))
            write_whole(path / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
            write_whole(path / CONFIG, heading + tomli_w.dumps(config, multiline_strings=True))
        except OSError as error:
            raise cannot_write(path, error) from error
        return cls(path)

    def history(self, question_id: str) -> History:
        return self._histories.get(question_id) or History()

    def written(self, question_id: str) -> frozenset[int]:
        return frozenset(self._written.get(question_id, ()))

    def generation(self, event: GenerationEvent) -> None:
        self._append_event(generation_to_json(event))

    def score(self, event: ScoreEvent) -> None:
        self._append_event(score_to_json(event))

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        self._append_event(verdict_to_json(question_id, generation, verdict))

    def trial(self, trial: Trial) -> None:
        self._trials.append(trial_to_json(trial))

    def done(self, question_id: str) -> None:
        self._append_event({"event": "done", "question_id": question_id})

    @property
    def seconds(self) -> float:
        """How long the run has worked, resumed parts added."""
        return time.monotonic() - self._began

    def finish(self) -> Run:
        """Write ``summary.json``, once every question is done, and read the folder again.

        Raises:
            RunError: it cannot be written.
        """
        seconds = self.seconds
        self.close()
        run = Run.open(self.path)
        summary = json.dumps(run.summarize(seconds), indent=2, ensure_ascii=False) + "\n"
        try:
            write_whole(self.path / SUMMARY, summary)
        except OSError as error:
            command = f"fttt run --resume {self.path}"
            advice = f"make room and run `{command}`, which only has this file left to write"
            raise cannot_write(self.path / SUMMARY, error, advice) from error
        return run

    def close(self) -> None:
        """Sync and let the folder go. Calling it twice is harmless."""
        with ExitStack() as both:
            both.callback(self._trials.close)
            both.callback(self._events.close)

    def _append_event(self, record: dict[str, Any]) -> None:
        self._events.append({**record, "at": round(self.seconds, 3)})


def check_free(path: Path) -> None:
    """Refuse a place for a new run that holds more than a beginning that was killed may leave.

    Raises:
        UsageError: it does.
        RunError: it cannot be read.
    """
    begun = [name + end for name in (QUESTIONS, ENVIRONMENT, CONFIG) for end in ("", ".partial")]
    check_unused(path, "fttt run --resume", [name for name in begun if name != CONFIG])
