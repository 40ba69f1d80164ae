"""Many questions at once: the runs of one or more plans on one loaded model."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fttt.engine import BatchedEngine
from fttt.engine.request import AdapterSpec, Engine
from fttt.errors import FTTTError, RunError
from fttt.experiment.bench import Bench, Observer
from fttt.experiment.cases import save_cases
from fttt.experiment.environment import describe_environment
from fttt.experiment.plan import Plan, check_fits
from fttt.experiment.session import QuestionSession
from fttt.methods import Method
from fttt.models import LoadedModel
from fttt.progress import Progress
from fttt.store import Journal, Run, RunWriter, solved_within
from fttt.types import Question
from fttt.verifiers.verifier import Verifier

__all__ = [
    "Cell",
    "MakeEngine",
    "StoppedError",
    "ask_all",
    "make_bench",
    "make_engine",
    "run_cells",
]

_AT_ONCE = {"cpu": 32, "cuda": 1024}
"""Questions in progress at once, where the batch size is left to the engine: twice its batch, so
that some are judged while others are written."""


class StoppedError(RunError):
    """Ctrl-C: the run stopped cleanly and can go on."""

    exit_code = 130


class CountingEngine(Engine, Protocol):
    """An engine that says how many tokens it has generated so far."""

    @property
    def generated_tokens(self) -> int: ...


MakeEngine = Callable[[Sequence[Plan], LoadedModel], CountingEngine]


@dataclass(frozen=True)
class Cell:
    """A plan and the folder that it runs in."""

    plan: Plan
    folder: Path
    resume: bool = False

    def open(self, loaded: LoadedModel) -> RunWriter:
        """Begin the folder, or go on with it."""
        if self.resume:
            return RunWriter(self.folder)
        return RunWriter.create(
            self.folder,
            config=self.plan.config.to_toml(),
            environment=describe_environment(loaded, self.plan.method),
            questions=self.plan.questions,
            heading="# fttt run --recipe config.toml\n",
        )


@dataclass(frozen=True)
class Job:
    """One question that is owed."""

    question: Question
    method: Method
    bench: Bench


def make_engine(plans: Sequence[Plan], loaded: LoadedModel) -> CountingEngine:
    """The engine that all of ``plans``, which agree in their adapters, fit in.

    Raises:
        UsageError: a question does not fit the model's context, or the memory does not suffice.
    """
    widths = [
        (plan.config.budget.trials or 1)
        if plan.method.together or plan.method.searches or plan.method.fresh
        else 1
        for plan in plans
    ]
    sequences = sum(len(p.questions) * width for p, width in zip(plans, widths, strict=True))
    return BatchedEngine(
        loaded,
        max_length=max(check_fits(plan, loaded) for plan in plans),
        batch_size=plans[0].config.engine.batch_size,
        concurrency=min(sequences, _at_most(loaded, plans[0])),
        adapter=next((plan.adapter_spec for plan in plans if plan.adapter_spec is not None), None),
        beams=max(w if p.method.searches else 0 for p, w in zip(plans, widths, strict=True)),
    )


def make_bench(
    plan: Plan,
    loaded: LoadedModel,
    engine: Engine,
    verifier: Verifier,
    journal: Journal,
    observer: Observer,
) -> Bench:
    """What the questions of a plan share."""
    config = plan.config
    return Bench(
        engine=engine,
        chat=loaded.chat,
        stop_ids=loaded.stop_ids,
        verifier=verifier,
        journal=journal,
        observer=observer,
        seed=config.seed,
        sampling=config.sampling,
        budget=config.budget,
        adapter_spec=plan.adapter_spec,
        method=plan.method,
    )


def run_cells(
    cells: Sequence[Cell],
    loaded: LoadedModel,
    progress: Progress,
    *,
    make_engine: MakeEngine = make_engine,
) -> list[Run]:
    """Run the questions of all cells in the batches of one engine; return the finished runs.

    Cells whose adapters differ in shape or optimizer take an engine each, one after the other.

    Raises:
        UsageError: a question does not fit the model's context, or the memory does not suffice.
        RunError: a run could not go on; what was finished is on disk.
        StoppedError: stopped by Ctrl-C.
    """
    cells = _rendered(cells, loaded)
    for cell in cells:
        check_fits(cell.plan, loaded)  # all of them, before the first begins
    runs: dict[int, Run] = {}
    for members in _by_adapter(cells):
        group = [cells[n] for n in members]
        engine = make_engine([cell.plan for cell in group], loaded)
        runs.update(zip(members, _Group(group, loaded, engine, progress).run(), strict=True))
    return [runs[n] for n in range(len(cells))]


def _rendered(cells: Sequence[Cell], loaded: LoadedModel) -> list[Cell]:
    """The cells with each question as the chat template writes it now, where it is not known."""
    known: dict[str, str] = {}

    def rendered(question: Question) -> Question:
        if question.rendered is not None:
            return question
        if question.prompt not in known:
            known[question.prompt] = loaded.chat.rendered(question.prompt)
        return replace(question, rendered=known[question.prompt])

    return [
        replace(cell, plan=replace(cell.plan, questions=tuple(map(rendered, cell.plan.questions))))
        for cell in cells
    ]


class _Group:
    """The cells that share one engine."""

    def __init__(
        self,
        cells: Sequence[Cell],
        loaded: LoadedModel,
        engine: CountingEngine,
        progress: Progress,
    ) -> None:
        self.cells = cells
        self.loaded = loaded
        self.engine = engine
        self.progress = progress
        self.writers: list[RunWriter] = []

    def run(self) -> list[Run]:
        """Ask what is owed and sum up; the engine and the folders are let go in any case."""
        try:
            asyncio.run(self._run())
            return [self._finish(*pair) for pair in zip(self.cells, self.writers, strict=True)]
        finally:
            for writer in self.writers:
                writer.close()

    async def _run(self) -> None:
        benches: list[Bench] = []
        try:
            for cell in self.cells:
                self.writers.append(cell.open(self.loaded))
                verifier = cell.plan.task.verifier()
                benches.append(
                    make_bench(
                        cell.plan,
                        self.loaded,
                        self.engine,
                        verifier,
                        self.writers[-1],
                        self.progress,
                    )
                )
            jobs = [
                Job(question, cell.plan.method, bench)
                for cell, bench in zip(self.cells, benches, strict=True)
                for question in cell.plan.questions
                if not bench.journal.history(question.id).done
            ]
            trials = sum(_owed(job) for job in jobs)
            stop = asyncio.Event()
            with _stop_signals(stop.set):
                async with self.progress.watching(self.engine, len(jobs), trials):
                    finished = await ask_all(
                        jobs, workers=_at_most(self.loaded, self.cells[0].plan), stop=stop
                    )
        finally:
            await self.engine.close()
            for bench in benches:
                await bench.verifier.close()
        if not finished:
            raise StoppedError("The run was stopped; all that had ended is on disk.")

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
            save_cases(cell.plan.cases_file, [q.id for q in run.questions], solved)
        return run


async def ask_all(jobs: Sequence[Job], *, workers: int, stop: asyncio.Event) -> bool:
    """Ask every question, ``workers`` of them at once, until ``stop`` is set.

    Returns whether every question was asked to its end.

    Raises:
        FTTTError: the first error of any question; the others were stopped.
    """
    owed = iter(jobs)

    async def work() -> None:
        for job in owed:
            await _ask(job)

    tasks = [asyncio.create_task(work()) for _ in range(min(workers, len(jobs)))]
    everything = asyncio.gather(*tasks)
    stopper = asyncio.create_task(stop.wait())
    first: set[asyncio.Future[Any]] = {everything, stopper}
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if everything.done():
            everything.result()
        return everything.done()
    except BaseExceptionGroup as group:  # from a method with a task group of its own
        raise _first_leaf(group) from group
    finally:
        for task in (*tasks, stopper):
            task.cancel()
        await asyncio.gather(*tasks, stopper, everything, return_exceptions=True)


async def _ask(job: Job) -> None:
    session = QuestionSession(job.question, job.bench)
    try:
        await job.method.solve(job.question, session)
        session.end_trials()
    finally:
        session.close()
    job.bench.journal.done(job.question.id)
    ledger = session.ledger
    spared = max(0, (job.bench.budget.trials or 0) - ledger.handed_out)
    job.bench.observer.question_ended(solved=ledger.solved, spared=spared)


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of several: one that was raised on purpose, if there is one."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first_leaf(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if isinstance(error, FTTTError)), leaves[0])


def _owed(job: Job) -> int:
    """Trials that a question may still need; 0 where tokens or seconds are its budget."""
    written = len(job.bench.journal.written(job.question.id))
    return max(0, (job.bench.budget.trials or 0) - written)


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


def _at_most(loaded: LoadedModel, plan: Plan) -> int:
    """Questions in progress at once."""
    batch_size = plan.config.engine.batch_size
    return 2 * batch_size if batch_size else _AT_ONCE[loaded.device.split(":")[0]]


@contextmanager
def _stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into ``stop()``; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    loop = asyncio.get_running_loop()
    asked = False

    def handle() -> None:
        nonlocal asked
        if asked:
            os._exit(StoppedError.exit_code)
        asked = True
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
