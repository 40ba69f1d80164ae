"""Runs from their folders to their summaries: what is owed of them is asked by an executor."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fttt.engine.request import AdapterSpec
from fttt.errors import RunError, StoppedError
from fttt.experiment.cases import save_cases
from fttt.experiment.executor import Executor, Owed
from fttt.experiment.plan import Plan
from fttt.forecast import Forecast
from fttt.progress import Progress
from fttt.store import Run, RunWriter, solved_within
from fttt.types import Question

__all__ = ["Cell", "run_cells"]


@dataclass(frozen=True)
class Cell:
    """A plan and the folder that it runs in."""

    plan: Plan
    folder: Path
    resume: bool = False

    def open(self, environment: Mapping[str, Any]) -> RunWriter:
        """Begin the folder, or resume it."""
        if self.resume:
            return RunWriter(self.folder)
        return RunWriter.create(
            self.folder,
            config=self.plan.config.to_toml(),
            environment=environment,
            questions=self.plan.questions,
            heading="# fttt run --recipe config.toml\n",
        )


def run_cells(cells: Sequence[Cell], executor: Executor, progress: Progress) -> list[Run]:
    """Ask the questions of all cells by an executor; return the finished runs.

    Cells whose adapters differ in shape or optimizer are asked one group after the other.

    Raises:
        UsageError: a question does not fit the model's context, or the memory does not suffice.
        RunError: a run failed; what was finished is on disk.
        StoppedError: stopped by Ctrl-C or SIGTERM.
    """
    cells = _rendered(cells, executor)
    for cell in cells:
        executor.check_fits(cell.plan)  # all of them, before the first begins
    runs: dict[int, Run] = {}
    for members in _by_adapter(cells):
        group = _Group([cells[n] for n in members], executor, progress)
        runs.update(zip(members, group.run(), strict=True))
    return [runs[n] for n in range(len(cells))]


def _rendered(cells: Sequence[Cell], executor: Executor) -> list[Cell]:
    """The cells with each question as the chat template writes it now, where it is not known."""

    def with_texts(plan: Plan) -> Plan:
        unknown = [question.prompt for question in plan.questions if question.rendered is None]
        if not unknown:
            return plan
        texts = executor.rendered(unknown, plan.config.template_args)
        known = dict(zip(unknown, texts, strict=True))

        def rendered(question: Question) -> Question:
            if question.rendered is not None:
                return question
            return replace(question, rendered=known[question.prompt])

        return replace(plan, questions=tuple(map(rendered, plan.questions)))

    return [replace(cell, plan=with_texts(cell.plan)) for cell in cells]


class _Group:
    """The cells that are asked together."""

    def __init__(self, cells: Sequence[Cell], executor: Executor, progress: Progress) -> None:
        self.cells = cells
        self.executor = executor
        self.progress = progress
        self.writers: list[RunWriter] = []

    def run(self) -> list[Run]:
        """Ask what is owed and sum up; the folders are let go in any case."""
        environments = [self.executor.describe(cell.plan.settled) for cell in self.cells]
        try:
            self.executor.prepare([cell.plan for cell in self.cells])
        except BaseException:
            asyncio.run(self.executor.release())
            raise
        try:
            asyncio.run(self._run(environments))
            return [self._finish(*pair) for pair in zip(self.cells, self.writers, strict=True)]
        finally:
            for writer in self.writers:
                writer.close()

    async def _run(self, environments: Sequence[Mapping[str, Any]]) -> None:
        try:
            for cell, environment in zip(self.cells, environments, strict=True):
                self.writers.append(cell.open(environment))
            owed = self._owed()
            trials = sum(map(self._trials, owed))
            stop = asyncio.Event()
            with _stop_signals(stop.set, self._how_to_resume()):
                async with self.progress.watching(
                    self.executor,
                    self._forecast(owed),
                    trials,
                    folders=[cell.folder for cell in self.cells],
                    names=self._names(),
                    past=[Run.open(c.folder).trials if c.resume else [] for c in self.cells],
                ):
                    self._say_size(owed, trials)
                    if not await self.executor.ask(owed, self.writers, self.progress, stop):
                        raise StoppedError("The run was stopped; all that had ended is on disk.")
        finally:
            await self.executor.release()

    def _say_size(self, owed: Sequence[Owed], trials: int) -> None:
        """Tell how much there is to do, and in how much memory, before it begins."""
        if trials == 0:
            return
        plans = [cell.plan for cell in self.cells]
        tokens = sum(
            self._trials(one) * plans[one.run].config.sampling.max_new_tokens for one in owed
        )
        size = self.executor.size
        self.progress.note(
            f"{len(owed):,} questions, at most {trials:,} trials and {tokens:,} generated tokens"
            + (f"; {size}" if size else "")
        )

    def _forecast(self, owed: Sequence[Owed]) -> Forecast:
        """What tells the time left from the trials that end."""
        plans = [cell.plan for cell in self.cells]
        waits = [p for p in plans if not (p.method.together or p.method.searches)]
        return Forecast(
            len(owed),
            max((plan.config.budget.trials or 0 for plan in waits), default=0),
            lanes=self.executor.lanes,
            abreast=min((plan.method.at_once for plan in waits), default=1),
            begun=Counter(len(self.writers[one.run].written(one.question.id)) for one in owed),
        )

    def _names(self) -> list[str]:
        """Names of the runs, where there are several: their methods, else their folders."""
        if len(self.cells) == 1:
            return []
        methods = [cell.plan.config.method for cell in self.cells]
        if len(set(methods)) == len(methods):
            return methods
        return [cell.folder.name for cell in self.cells]

    def _how_to_resume(self) -> str:
        if len(self.cells) > 1:
            return "the same command"
        return f"`fttt run --resume {self.cells[0].folder}`"

    def _owed(self) -> list[Owed]:
        """What is not done; an adapter of all questions is learned again from all of them."""
        return [
            Owed(run, question)
            for run, (cell, writer) in enumerate(zip(self.cells, self.writers, strict=True))
            for question in cell.plan.questions
            if cell.plan.method.shared or not writer.history(question.id).done
        ]

    def _trials(self, one: Owed) -> int:
        """Trials that a question may still need; 0 where tokens or seconds are its budget."""
        written = len(self.writers[one.run].written(one.question.id))
        return max(0, (self.cells[one.run].plan.config.budget.trials or 0) - written)

    def _finish(self, cell: Cell, writer: RunWriter) -> Run:
        run = writer.finish()
        if cell.plan.cases_file is not None:
            solved = [
                record.question.id
                for record in run.records
                if solved_within(
                    record.trials, decided_by=run.decided_by, unanswered=run.unanswered
                )
            ]
            try:
                save_cases(cell.plan.cases_file, [q.id for q in run.questions], solved)
            except RunError as error:  # the run itself is complete
                self.progress.note(f"fttt: {error}")
        return run


def _by_adapter(cells: Sequence[Cell]) -> list[list[int]]:
    """Cells that can share an engine; those without an adapter go with the first others."""
    groups: dict[AdapterSpec, list[int]] = {}
    plain: list[int] = []
    for number, cell in enumerate(cells):
        if cell.plan.adapter_spec is None:
            plain.append(number)
        else:
            groups.setdefault(cell.plan.adapter_spec, []).append(number)
    if not groups:
        return [plain]
    first = next(iter(groups))
    groups[first] = sorted([*groups[first], *plain])
    return list(groups.values())


@contextmanager
def _stop_signals(stop: Callable[[], None], resume: str) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into ``stop()``; a second one ends the process at once.

    Args:
        stop: asks for a clean end.
        resume: the command that resumes what is ended at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    loop = asyncio.get_running_loop()
    asked = False

    def handle() -> None:
        nonlocal asked
        if asked:
            cursor = "\x1b[?25h" if os.isatty(2) else ""  # which a progress bar hides
            said = f"{cursor}fttt: Stopped at once; what had ended is on disk.\n"
            os.write(2, f"{said}fttt: Resume with {resume}.\n".encode())
            os._exit(StoppedError.exit_code)
        asked = True
        stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
