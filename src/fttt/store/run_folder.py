"""The run folder: reading one, finished or not, and writing one."""

from __future__ import annotations

import hashlib
import json
import os
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tomli_w

from fttt.errors import UsageError
from fttt.files import cannot_write, check_unused, write_whole
from fttt.store.journal import (
    DivergenceEvent,
    EncodedAnswer,
    GenerationEvent,
    History,
    ScoreEvent,
    answer_contents,
    answer_line,
    as_read,
    divergence_to_json,
    generation_to_json,
    histories,
    score_to_json,
    trial_from_json,
    trial_line,
    verdict_to_json,
)
from fttt.store.line_file import LineFile, encode, read_lines
from fttt.store.outcome import DecidedBy, Unanswered, summarize
from fttt.types import Question, Record, Trial, Usage, Verdict

__all__ = [
    "RUN_FILES",
    "Run",
    "RunWriter",
    "check_free",
    "fingerprint",
    "open_runs",
    "question_line",
    "read_settings",
    "run_folders",
]

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
QUESTIONS = "questions.jsonl"
TRIALS = "trials.jsonl"
EVENTS = "events.jsonl"
PENDING = "pending.jsonl"
SUMMARY = "summary.json"
RUN_FILES = (CONFIG, ENVIRONMENT, QUESTIONS, TRIALS, EVENTS, SUMMARY, "run.log")
"""What a finished run consists of."""


def fingerprint(question: Question) -> str:
    """SHA-256, in hexadecimal, of a question's prompt and gold as a JSON list.

    Which of a program's tests may be shown is left out: it decides no verdict, and version 0.1 did
    not say it.
    """
    gold = question.gold
    if isinstance(gold, Mapping):
        gold = {key: value for key, value in gold.items() if key != "visible"}
    facts = json.dumps([question.prompt, gold], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def question_line(question: Question) -> dict[str, Any]:
    """The line of ``questions.jsonl`` for a question."""
    line = {
        "id": question.id,
        "sha256": fingerprint(question),
        "prompt": question.prompt,
        "gold": question.gold,
    }
    return line if question.rendered is None else {**line, "rendered": question.rendered}


@dataclass(frozen=True)
class Run:
    """What a run folder holds, finished or not; nothing here writes."""

    path: Path
    config: Mapping[str, Any]
    """``config.toml`` as it was written: the resolved settings."""
    environment: Mapping[str, Any]
    questions: tuple[Question, ...]
    """In the run's order. Worked solutions are not stored."""

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run folder.

        Raises:
            UsageError: the folder is missing, is no run folder, or a file of it is broken. A torn
                last line is no error: its trial is made again.
        """
        path = Path(path)
        return cls(path, *read_settings(path), _questions(path / QUESTIONS))

    @property
    def method(self) -> str:
        return str(self.config["method"])

    @property
    def task(self) -> str:
        return str(self.config["task"])

    @property
    def model(self) -> str:
        return str(self.config["model"])

    @property
    def adapter(self) -> str | None:
        """The fine-tuned checkpoint that the run started from, if any."""
        return self.config.get("adapter")

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def trial_budget(self) -> int | None:
        """Trials granted to each question; ``None`` where tokens or seconds were the budget."""
        budget = self.config.get("budget", {})
        return int(budget["trials"]) if "trials" in budget else None

    @property
    def unanswered(self) -> Unanswered:
        """Whether a trial without an answer spent budget."""
        rule = self.config.get("budget", {}).get("unanswered", "count")
        return cast(Unanswered, rule)

    @property
    def decided_by(self) -> DecidedBy:
        """How the trials of a question make its outcome."""
        return cast(DecidedBy, self.environment.get("decided_by", "first"))

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial on disk, by question in the run's order, then by number."""
        place = self._places
        path = self.path / TRIALS
        found: dict[tuple[int, int], Trial] = {}
        for number, line in enumerate(_lines(path), start=1):
            try:
                trial = trial_from_json(line)
                found[place[trial.question_id], trial.trial] = trial
            except (KeyError, TypeError, ValueError) as error:
                why = f"{error} is missing" if isinstance(error, KeyError) else error
                raise UsageError(
                    _broken(self.path, f"line {number} of {TRIALS} is no trial ({why})")
                ) from error
        return tuple(found[key] for key in sorted(found))

    def knowing(self, trials: Iterable[Trial]) -> Run:
        """The run with its trials given, all that its file holds, so that it is not read."""
        place = self._places
        found = {(place[trial.question_id], trial.trial): trial for trial in trials}
        vars(self)["trials"] = tuple(found[key] for key in sorted(found))
        return self

    @property
    def _places(self) -> dict[str, int]:
        """The place of each question in the run's order, by its id."""
        return {question.id: n for n, question in enumerate(self.questions)}

    @cached_property
    def histories(self) -> Mapping[str, History]:
        """The journal by question: every generation (critiques too), verdict and end."""
        try:
            contents = answer_contents(self.trials, _lines(self.path / PENDING))
            return histories(_lines(self.path / EVENTS), contents)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                _broken(self.path, f"{EVENTS} (or {PENDING}) holds a foreign line")
            ) from error

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """What happened to each question, questions without a trial included."""
        trials: dict[str, list[Trial]] = {question.id: [] for question in self.questions}
        for trial in self.trials:
            trials[trial.question_id].append(trial)
        return tuple(_record(question, trials[question.id]) for question in self.questions)

    @property
    def finished(self) -> bool:
        """Whether every question is done."""
        return (self.path / SUMMARY).is_file()

    @cached_property
    def lost(self) -> tuple[str, ...]:
        """Ids of the questions of a finished run whose trials on disk are not those that it had.

        ``summary.json`` says whether there are any, and the journal which; where it does not, they
        are all questions.
        """
        if not (self.path / SUMMARY).is_file():
            return ()
        told, found = self.summary, self.summarize()
        if all(told.get(name, found[name]) == found[name] for name in ("trials_total", "solved")):
            return ()
        made: dict[str, set[int]] = {question.id: set() for question in self.questions}
        for trial in self.trials:
            made[trial.question_id].add(trial.trial)
        known = {i: self.histories.get(i, History()) for i in made}
        less = tuple(i for i, own in known.items() if not own.done or own.judged - made[i])
        return less or tuple(made)

    @property
    def loss(self) -> str | None:
        """What a finished run has lost and how it comes back, without the full stop."""
        if not self.lost:
            return None
        told = self.summary
        return (
            f"The run {str(self.path)!r} has lost trials of {len(self.lost)} of its "
            f"{len(self.questions)} questions: it ended with {told['trials_total']} trials and "
            f"{told['solved']} questions solved, and {TRIALS} holds others; restore that file from "
            f"a copy, or make them again by `fttt run --resume {self.path}`"
        )

    @cached_property
    def owed(self) -> tuple[str, ...]:
        """Ids of the questions that are not done."""
        if self.finished:
            return ()
        done = {i for i, history in self.histories.items() if history.done}
        return tuple(question.id for question in self.questions if question.id not in done)

    @cached_property
    def seconds(self) -> float:
        """How long the run has worked, resumed parts added, as its journal tells."""
        last = 0.0
        for line in _lines(self.path / EVENTS):
            last = max(last, float(line.get("at", 0.0)))
        return last

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """``summary.json``, or the same figures computed from the trials so far.

        Raises:
            UsageError: ``summary.json`` is broken.
        """
        path = self.path / SUMMARY
        if not path.is_file():
            return self.summarize()
        try:
            return cast(Mapping[str, Any], json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UsageError(_broken(self.path, f"{SUMMARY}: {error}")) from error

    def summarize(self, seconds: float | None = None) -> dict[str, Any]:
        """Compute the summary from the trials, whatever ``summary.json`` says."""
        return summarize(
            self.records,
            head={
                "method": self.method,
                "task": self.task,
                "model": self.model,
                **({} if self.adapter is None else {"adapter": self.adapter}),
                "seed": self.seed,
            },
            budget=self.trial_budget,
            decided_by=self.decided_by,
            unanswered=self.unanswered,
            seconds=self.seconds if seconds is None else seconds,
        )


def read_settings(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """``config.toml`` and ``environment.json`` of a run folder.

    Raises:
        UsageError: the folder is missing, is no run folder, or one of the two is broken.
    """
    if not path.is_dir():
        raise UsageError(f"There is no run folder {str(path)!r}; name one that `fttt run` made.")
    if not (path / CONFIG).is_file() or not any(map(Path.exists, _own_files(path))):
        missing = CONFIG if not (path / CONFIG).is_file() else ENVIRONMENT
        raise UsageError(
            f"The folder {str(path)!r} is no run folder: it holds no {missing}; "
            "name one that `fttt run` made."
        )
    try:
        config = tomllib.loads((path / CONFIG).read_text(encoding="utf-8"))
        environment = json.loads((path / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(_broken(path, f"{error}")) from error
    for key in ("method", "model", "task", "seed"):
        if key not in config:
            raise UsageError(_broken(path, f"{CONFIG} has no {key!r}"))
    return config, environment


def _lines(path: Path) -> Any:
    return read_lines(path) if path.exists() else iter(())


def _questions(path: Path) -> tuple[Question, ...]:
    questions = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            rendered = line.get("rendered")  # version 0.1 did not keep it
            question = Question(line["id"], line["prompt"], line["gold"], rendered=rendered)
            questions.append(question)
        except KeyError as error:
            raise UsageError(
                _broken(path.parent, f"line {number} of {QUESTIONS} has no {error}")
            ) from error
    return tuple(questions)


def _record(question: Question, trials: Sequence[Trial]) -> Record:
    usage = Usage()
    for trial in trials:
        usage += trial.usage
    return Record(question, tuple(trials), usage)


def _own_files(path: Path) -> list[Path]:
    """What no other folder with a ``config.toml`` holds."""
    return [path / name for name in (ENVIRONMENT, QUESTIONS, TRIALS)]


def _broken(path: Path, what: str) -> str:
    return (
        f"The run folder {str(path)!r} is broken: {what}; "
        "restore it from a copy or start a new run."
    )


def run_folders(folder: Path) -> Iterator[Path]:
    """The folders at and below ``folder`` that look like run folders.

    Hidden folders and what lies within a run are not looked into.
    """
    for place, folders, files in os.walk(folder):
        if CONFIG in files and not {ENVIRONMENT, QUESTIONS, TRIALS}.isdisjoint(files):
            folders.clear()
            yield Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]


def open_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read run folders; a folder of runs, such as a sweep's, means all runs in it.

    Raises:
        UsageError: a folder is no run folder and holds none, or one of them is broken.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        within = [] if (path / CONFIG).is_file() else sorted(path.glob(f"*/{QUESTIONS}"))
        runs.extend(map(Run.open, [questions.parent for questions in within] or [path]))
    return runs


class RunWriter:
    """The journal of a run folder, held by one process at a time.

    The content of an answer is written twice during a run and kept once: into
    ``pending.jsonl`` before anything follows from it, and into its trial's line when the trial
    ends. The first file is removed when the run is finished.
    """

    def __init__(self, path: Path) -> None:
        """Lock an existing run folder; torn last lines are cut off.

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
            self._answers: LineFile | None = None
            self._read(Run.open(path))
            on_error.pop_all()

    def _read(self, run: Run) -> None:
        """Load the facts that an earlier process wrote."""
        if run.lost:  # they are made again, and then summed up again
            (self.path / SUMMARY).unlink()
        self._histories = dict(run.histories)
        self._all_trials = list(run.trials)
        """Those on disk, as they would be read from there."""
        self._written: dict[str, set[int]] = {}
        for trial in run.trials:
            self._written.setdefault(trial.question_id, set()).add(trial.trial)
        for question_id, history in self._histories.items():
            # a power cut may keep the journal's last lines and lose those of the trials
            history.done = history.done and history.judged <= self.written(question_id)
        ended = {(trial.question_id, trial.generation) for trial in run.trials}
        self._pending: dict[tuple[str, int], EncodedAnswer | None] = {
            (question_id, number): None
            for question_id, history in self._histories.items()
            for number, event in history.generations.items()
            if event.trial is not None and (question_id, number) not in ended
        }
        """Answers, by question and generation, whose trials have not ended; ``None`` of those that
        an earlier process wrote."""
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
        if event.trial is not None:
            answer = EncodedAnswer.of(event.completion)
            self._pending[event.question_id, event.completion.generation] = answer
            self._append_pending(answer_line(event.question_id, answer))
        self._append_event(generation_to_json(event))

    def score(self, event: ScoreEvent) -> None:
        self._append_event(score_to_json(event))

    def divergence(self, event: DivergenceEvent) -> None:
        self._append_event(divergence_to_json(event))

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        self._append_event(verdict_to_json(question_id, generation, verdict))

    def trial(self, trial: Trial) -> None:
        answer = self._pending.get(key := (trial.question_id, trial.generation))
        self._trials.append(trial_line(trial, answer))
        self._pending.pop(key, None)
        self._all_trials.append(as_read(trial))

    def done(self, question_id: str) -> None:
        self._append_event({"event": "done", "question_id": question_id})

    async def kept(self, question_id: str) -> None:
        pass  # each line is with the operating system once it is appended

    def copy_journal(self, run: Run) -> None:
        """Take over the facts of another run, its clock included, but not its verdicts."""
        for line in _lines(run.path / PENDING):
            self._pending[line["question_id"], line["generation"]] = None
            self._append_pending(encode(line))
        for line in _lines(run.path / EVENTS):
            if line.get("event") != "verdict":
                self._events.append(line)
        self._began -= run.seconds

    @property
    def seconds(self) -> float:
        """How long the run has worked, resumed parts added."""
        return time.monotonic() - self._began

    def finish(self) -> Run:
        """Write ``summary.json``, once every question is done, and open the finished run.

        Its trials are those that were written and are not read again.
        ``pending.jsonl`` is removed, unless an answer in it belongs to no trial.

        Raises:
            RunError: it cannot be written.
        """
        seconds = self.seconds
        self.close()
        run = Run.open(self.path).knowing(self._all_trials)
        summary = json.dumps(run.summarize(seconds), indent=2, ensure_ascii=False) + "\n"
        try:
            if not self._pending:  # the trials are on disk, since their file is closed
                (self.path / PENDING).unlink(missing_ok=True)
            write_whole(self.path / SUMMARY, summary)
        except OSError as error:
            command = f"fttt run --resume {self.path}"
            advice = f"make room and run `{command}`, which only has this file left to write"
            raise cannot_write(self.path / SUMMARY, error, advice) from error
        return run

    def close(self) -> None:
        """Sync, close and unlock the folder. Calling it twice is harmless."""
        with ExitStack() as files:
            for file in (self._trials, self._events, self._answers):
                if file is not None:
                    files.callback(file.close)

    def _append_pending(self, record: str) -> None:
        if self._answers is None:
            self._answers = LineFile(self.path / PENDING)
        self._answers.append(record)

    def _append_event(self, record: dict[str, Any]) -> None:
        record["at"] = round(self.seconds, 3)
        self._events.append(record)


def check_free(path: Path) -> None:
    """Refuse a place for a new run that holds more than a beginning that was killed may leave.

    Raises:
        UsageError: it does.
        RunError: it cannot be read.
    """
    begun = [name + end for name in (QUESTIONS, ENVIRONMENT, CONFIG) for end in ("", ".partial")]
    check_unused(path, "fttt run --resume", [name for name in begun if name != CONFIG])
